"""`huatuo-data import`: files in, a unified dataset out, with everything that was rejected on record."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from data_tools.cli import main
from data_tools.records.unified import UnifiedDataset

PAIR = {"turns": ["头痛怎么办？", "多休息。"], "source": "sft"}


def write_lines(path: Path, *rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows))
    return path


def run(out: Path, *arguments) -> int:
    return main(["import", *map(str, arguments), "--out", str(out), "--quiet"])


def records(out: Path):
    return list(UnifiedDataset(out))


def rejected(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def test_overwriting_replaces_a_dataset_by_a_whole_one_or_leaves_it(tmp_path, capsys):
    good, bad = write_lines(tmp_path / "a.jsonl", PAIR), write_lines(tmp_path / "b.jsonl", PAIR, "{", PAIR)
    assert run(tmp_path / "out", good) == 0
    assert run(tmp_path / "out", bad, "--overwrite") == 1
    assert "out.rejected.jsonl" in capsys.readouterr().err.replace("\n", "")
    assert len(records(tmp_path / "out")) == 1 and rejected(tmp_path / "out") == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "out", "out.rejected.jsonl"}
    assert run(tmp_path / "out", bad, "--overwrite", "--max-rejected", "0.5") == 0
    assert len(records(tmp_path / "out")) == 2 and len(rejected(tmp_path / "out")) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "out"}


def test_records_keep_their_order_and_tfds_reads_them(tmp_path):
    rows = [{"id": str(i), "turns": [f"问{i}", f"答{i}"], "source": ("sft", "books")[i % 2]} for i in range(20)]
    assert run(tmp_path / "out", write_lines(tmp_path / "a.jsonl", *rows)) == 0
    assert [r.turns for r in records(tmp_path / "out")] == [tuple(row["turns"]) for row in rows]
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.builder_from_directory(str(tmp_path / "out")).as_data_source(split="train")
    assert [[turn.decode() for turn in one["turns"]] for one in source] == [row["turns"] for row in rows]
    assert [one["id"].decode() for one in source] == [str(i) for i in range(20)]


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstandard.compress, bytes], ids=["gz", "xz", "zst", "plain"])
def test_compressed_files_are_read_whatever_their_name(tmp_path, compress):
    content = "".join(json.dumps({"turns": [f"q{i}" * 50, "a"]}) + "\n" for i in range(5000)).encode()
    (tmp_path / "a.data").write_bytes(compress(content))
    assert run(tmp_path / "out", tmp_path / "a.data") == 0
    assert len(records(tmp_path / "out")) == 5000


def test_the_originals_training_layout(tmp_path):
    content = {"Meidcal_Web_en": [["q1", "a1"], ["q2", "a2", "q3", "a3"]], "SFT_data": [["q4", "a4"]]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "pretty.json").write_text(json.dumps({"SFT_data": [["q5", "a5"]]}, indent=2))
    assert run(tmp_path / "out", tmp_path / "train.json", tmp_path / "pretty.json") == 0
    found = [(r.source, r.turns) for r in records(tmp_path / "out")]
    web = "medical_web_corpus_en"
    assert found == [(web, ("q1", "a1")), (web, ("q2", "a2", "q3", "a3")), ("sft", ("q4", "a4")), ("sft", ("q5", "a5"))]


def test_the_originals_hub_layout(tmp_path):
    rows = [{"idx": i, "conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": "a"}]} for i in range(3)]
    (tmp_path / "hub.json").write_text(json.dumps(rows, indent=1))
    assert run(tmp_path / "out", tmp_path / "hub.json", "--source", "SFT_data") == 0
    assert [(r.source, r.id, r.turns[0]) for r in records(tmp_path / "out")] == [("sft", str(i), f"q{i}") for i in range(3)]


def test_bad_lines_are_listed_and_the_rest_is_kept(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [json.dumps(PAIR), "", "{torn", '{"turns": ["only a question"]}', json.dumps(PAIR), r'{"turns": ["\ud800", "a"]}']
    file.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + b"\xef\xbb\xbf[1]\n")
    assert run(tmp_path / "out", file, "--max-rejected", "0.9") == 0
    assert len(records(tmp_path / "out")) == 2
    found = rejected(tmp_path / "out")
    assert [one["line"] for one in found] == [3, 4, 6, 7, 8]
    assert all(one["file"] == str(file) for one in found)
    reasons = ["not valid JSON", "odd number of turns", "lone surrogate", "not UTF-8", "BOM"]
    assert all(part in one["reason"] for part, one in zip(reasons, found, strict=True))


def test_too_many_bad_lines_fail_after_they_are_listed(tmp_path, capsys):
    file = write_lines(tmp_path / "a.jsonl", *[PAIR] * 98, "{", "{")
    assert run(tmp_path / "out", file) == 1
    assert "2.00%" in capsys.readouterr().err
    assert len(rejected(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run(tmp_path / "out", file, "--max-rejected", "0.02") == 0


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_array_rejects_the_whole_file(tmp_path, capsys, cut):
    (tmp_path / "torn.json").write_text(json.dumps([PAIR] * 50)[:-cut])
    good = write_lines(tmp_path / "good.jsonl", *[PAIR] * 500)
    assert run(tmp_path / "out", tmp_path / "torn.json", good) == 1
    assert "torn.json" in capsys.readouterr().err
    (one,) = rejected(tmp_path / "out")
    assert one["file"].endswith("torn.json") and "torn" in one["reason"] and one["line"] is None


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstandard.compress], ids=["gz", "xz", "zst"])
def test_a_torn_compressed_file_rejects_the_whole_file(tmp_path, compress):
    rows = "".join(json.dumps({"turns": [str(i * 7919), "a"]}) + "\n" for i in range(3000)).encode()
    (tmp_path / "a.jsonl").write_bytes(compress(rows)[:-20])
    assert run(tmp_path / "out", tmp_path / "a.jsonl", "--max-rejected", "1") == 1
    assert "torn" in rejected(tmp_path / "out")[-1]["reason"]
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "{}"])
def test_empty_input_is_an_error(tmp_path, capsys, content):
    (tmp_path / "a.json").write_text(content)
    assert run(tmp_path / "out", tmp_path / "a.json") == 1
    assert "error" in capsys.readouterr().err


def test_ids_are_stable_and_distinct(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", PAIR, PAIR, {**PAIR, "turns": ["x", "y"]})
    for name in ("one", "two"):
        assert run(tmp_path / name, file) == 0
    ids = [[r.id for r in records(tmp_path / name)] for name in ("one", "two")]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3


def test_an_existing_dataset_is_not_overwritten(tmp_path, capsys):
    file = write_lines(tmp_path / "a.jsonl", PAIR)
    assert run(tmp_path / "out", file) == 0
    assert run(tmp_path / "out", file) == 2
    assert "already holds a dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "not there"),
        (["a.jsonl", "a.jsonl"], "twice"),
        (["a.jsonl", "--max-rejected", "2"], "between 0 and 1"),
    ],
)
def test_wrong_usage(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", PAIR)
    assert run(tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_report_as_json(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {**PAIR, "id": "1"}, {**PAIR, "id": "1"}, {"text": "t", "source": "books"})
    assert run(tmp_path / "out", file, "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    expected = {"records": 3, "sources": {"sft": 2, "books": 1}, "rejected": 0, "duplicate_ids": 1, "duplicate_texts": 1}
    assert report == expected


def test_the_real_corpora_come_in_whole(shared_data, tmp_path):
    files = [shared_data / "corpus" / f"medical_{name}.jsonl.xz" for name in ("books_en", "literature_cn")]
    assert run(tmp_path / "out", *files, shared_data / "corpus" / "pubmed_unify_sample.json") == 0
    sources = UnifiedDataset(tmp_path / "out").manifest["sources"]
    assert sources == {"medical_books_en": 474, "medical_literature_cn": 103, "pubmed_unify_sample": 299}
