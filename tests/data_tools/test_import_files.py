"""`huatuo-data import` of files as they are found: tables, encodings, files of other kinds; and every record accounted for."""

import csv
import gzip
import io
import json
import random
import zipfile
from pathlib import Path

import pytest

from data_tools.cli import main
from data_tools.records.unified import UnifiedDataset
from huatuo_jax.data.dialogue import Record

Q, A = "头痛怎么办？", "多休息，\n少熬夜。"


def run(out: Path, *arguments) -> dict | int:
    """The report of an import, or its exit code if that is not 0."""
    report = out.with_suffix(".json")
    code = main(["import", *map(str, arguments), "--out", str(out), "--quiet", "--json", str(report)])
    return code or json.loads(report.read_text())


def records(out: Path) -> list[Record]:
    return list(UnifiedDataset(out))


def rejected(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def table(rows: list[list[str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


# ---- the inputs of ../shared/cases, with the results that its README names

CASES = {
    "first_key_list.jsonl": [(("a", "b"), "", ()), (("c", "d"), "", ()), (("e", "f"), "", ())],
    "list_turns_1.jsonl": [(("感冒怎么办？", "多休息。"), "", ())],
    "pretty_one.json": [(("a", "b"), "", ())],
    "crlf.jsonl": [(("q", "a"), "", ()), (("q2", "a\nb"), "", ())],
    "huatuo26_3.jsonl": [((f"问题{i}是什么？", f"答案{i}，请多休息。"), "", ()) for i in range(3)],
    "conversation.jsonl": [(("q", "a"), "", ())],
    "prompt_completion.jsonl": [(("q", "a"), "", ())],
    "qa.jsonl": [(("q", "a"), "", ())],
    "sys_field.jsonl": [(("a", "b"), "你是医生", ())],
    "system_prompt_field.jsonl": [(("a", "b"), "S1", ())],
    "content_parts.jsonl": [(("ab", "c"), "", ())],
    "weight0.jsonl": [(("问一", "BAD ANSWER NOT TO LEARN", "问二", "好答案"), "", (0, 1))],
    "kto_false.jsonl": "preference data",
    "dpo.jsonl": "preference data",
    "image.jsonl": "multimodal",
    "tool_calls_last.jsonl": "tools",
    "consecutive.jsonl": "message 1 is from 'user' where the assistant should speak",
    "trailing_user.jsonl": "odd number of turns (3)",
}


@pytest.mark.parametrize("name", CASES)
def test_a_public_layout(shared_data, tmp_path, name):
    file, expected = shared_data.parent / "cases" / "import" / name, CASES[name]
    if not file.exists():
        pytest.skip(f"case is absent: {file}")
    if isinstance(expected, str):
        assert run(tmp_path / "out", file) == 1
        (one,) = rejected(tmp_path / "out")
        assert expected in one["reason"] and one["line"] == 1
    else:
        assert run(tmp_path / "out", file)["rejected"] == 0
        assert [(record.turns, record.system, record.weights) for record in records(tmp_path / "out")] == expected


def test_consecutive_and_trailing_messages_on_request(shared_data, tmp_path):
    cases = shared_data.parent / "cases" / "import"
    if not cases.is_dir():
        pytest.skip(f"cases are absent: {cases}")
    files = cases / "consecutive.jsonl", cases / "trailing_user.jsonl"
    report = run(tmp_path / "out", *files, "--join-turns", "--cut-last-question")
    assert (report["records"], report["joined"], report["cut"]) == (2, 1, 1)
    assert [record.turns for record in records(tmp_path / "out")] == [("a\nb", "c"), ("a", "b")]


# ---- carriage returns, encodings


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_line_endings_of_the_file_and_in_the_text_do_not_matter(tmp_path, ending, bom):
    rows = [{"instruction": "q", "output": f"a{ending}b"}, {"turns": [f"q{ending}", f"a{ending}b"]}, {"text": f"t{ending}u"}]
    (tmp_path / "a.jsonl").write_bytes((bom + "".join(json.dumps(row) + ending for row in rows)).encode())
    assert run(tmp_path / "out", tmp_path / "a.jsonl")["records"] == 3
    assert [(r.turns, r.text) for r in records(tmp_path / "out")] == [(("q", "a\nb"), ""), (("q\n", "a\nb"), ""), ((), "t\nu")]


def json_lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


ENCODED = {
    "a.jsonl": json_lines(*[{"question": f"{Q}{i}", "answer": A} for i in range(40)]),
    "a.json": json.dumps([{"question": f"{Q}{i}", "answer": A} for i in range(40)], ensure_ascii=False, indent=1),
    "a.csv": table([["question", "answer"], *([f"{Q}{i}", A] for i in range(40))]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_encodings(tmp_path, encoding, name, compress):
    file = tmp_path / (name + (".gz" if compress is gzip.compress else ""))
    file.write_bytes(compress(ENCODED[name].encode(encoding)))
    assert run(tmp_path / "out", file)["records"] == 40
    assert [record.turns for record in records(tmp_path / "out")] == [(f"{Q}{i}", A) for i in range(40)]


def test_a_broken_line_of_gb18030_is_rejected_and_not_guessed(tmp_path):
    lines = ENCODED["a.jsonl"].encode("gb18030").split(b"\n")
    lines[3] = lines[3].replace("多".encode("gb18030"), b"\xff")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert run(tmp_path / "out", tmp_path / "a.jsonl", "--max-rejected", "0.1")["records"] == 39
    (one,) = rejected(tmp_path / "out")
    assert one["line"] == 4 and "not UTF-8" in one["reason"]


def test_latin_1_is_not_taken_for_chinese(tmp_path):
    answer = "Près d'ici, à côté de l'hôpital général."
    rows = [{"question": f"Où est le café {i}?", "answer": answer} for i in range(9)]
    (tmp_path / "a.jsonl").write_bytes(json_lines(*rows).encode("latin-1"))
    assert run(tmp_path / "out", tmp_path / "a.jsonl") == 1
    assert all("not UTF-8" in one["reason"] for one in rejected(tmp_path / "out"))


# ---- tables


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".csv", "\t"), (".tsv", "\t")])
def test_csv_keeps_every_cell(tmp_path, suffix, delimiter):
    rows = [["id", "Question", "Answer", "dept"], ["7", 'say "ah", 再说;', "line 1\nline 2", "x"], ["8", "q,\t", "a", ""], []]
    (tmp_path / f"a{suffix}").write_text(table(rows, delimiter), newline="")
    report = run(tmp_path / "out", tmp_path / f"a{suffix}")
    assert report["unread_keys"] == {"dept": 1}
    assert [(r.id, r.turns) for r in records(tmp_path / "out")] == [
        ("7", ('say "ah", 再说;', "line 1\nline 2")),
        ("8", ("q,\t", "a")),
    ]


def test_bad_rows_of_csv_are_listed_by_their_line(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"q\n1",a\nonly\nq,a,b\n"q"x,a\nq2,a2\nq3,\n')
    report = run(tmp_path / "out", tmp_path / "a.csv", "--max-rejected", "0.9")
    assert (report["records"], report["rejected"]) == (2, 4)
    found = [(one["line"], one["reason"]) for one in rejected(tmp_path / "out")]
    assert [line for line, _ in found] == [4, 5, 6, 8]
    reasons = ["row has 1 cells, the header has 2", "row has 3 cells, the header has 2", "not valid CSV", "turn 1 is blank"]
    assert all(reason in one for reason, (_, one) in zip(reasons, found, strict=True))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('question,answer\nq,"a\nq2,a2\n', "a quotation mark that opens in line 2 is never closed"),
        ("question,question\nq,a\n", "two columns have the same name"),
    ],
)
def test_a_csv_file_that_cannot_be_told_apart_is_refused_as_a_whole(tmp_path, content, reason):
    (tmp_path / "a.csv").write_text(content)
    assert run(tmp_path / "out", tmp_path / "a.csv") == 1
    assert reason in rejected(tmp_path / "out")[-1]["reason"]


def test_messages_and_weights_in_cells(tmp_path):
    messages = json.dumps([{"role": role, "content": role[0]} for role in ("user", "assistant") * 2])
    (tmp_path / "a.csv").write_text(table([["messages", "weights"], [messages, "[0, 1]"], [messages, ""]]), newline="")
    assert run(tmp_path / "out", tmp_path / "a.csv")["records"] == 2
    assert [(r.turns, r.weights) for r in records(tmp_path / "out")] == [(("u", "a") * 2, (0, 1)), (("u", "a") * 2, ())]


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_parquet(tmp_path, compress):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    messages = [{"role": "user", "content": Q, "weight": None}, {"role": "assistant", "content": A, "weight": 1.0}]
    rows = pyarrow.Table.from_pylist(
        [{"messages": messages, "question": None, "answer": None, "n": 1}, {"messages": None, "question": Q, "answer": A, "n": 2}]
    )
    parquet.write_table(rows, tmp_path / "rows")
    file = tmp_path / ("a.parquet.gz" if compress is gzip.compress else "rows")  # the content says what it is
    file.write_bytes(compress((tmp_path / "rows").read_bytes()))
    report = run(tmp_path / "out", file)
    assert (report["records"], report["unread_keys"]) == (2, {"n": 2})
    assert [record.turns for record in records(tmp_path / "out")] == [(Q, A)] * 2


def test_torn_and_damaged_parquet_is_refused_as_a_whole(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table({"text": ["t"] * 100}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    # Torn; and with damage in its first page, and in its footer.
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    damaged = [whole[:-20], *(whole[:at] + b"\xff" * 8 + whole[at + 8 :] for at in (6, footer))]
    for number, content in enumerate(damaged):
        (tmp_path / "a.parquet").write_bytes(content)
        assert run(tmp_path / f"out{number}", tmp_path / "a.parquet") == 1
        assert "not a readable Parquet file" in rejected(tmp_path / f"out{number}")[-1]["reason"]


# ---- files of other kinds


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    return content.getvalue()


OTHER_KINDS = {
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj", "is PDF"),
    "a.xlsx": (zipped(), "is a ZIP archive, or an Office file"),
    "a.jsonl": (b"\xff\xfe" + "{}".encode("utf-16-le"), "is UTF-16 or UTF-32"),
    "b.jsonl": (('{"text": "x"}\n' * 9).encode("utf-16-be"), "binary content (NUL bytes)"),
    "a.html": (b"\n<!DOCTYPE html><html><body>x</body></html>", "is HTML"),
    "a.txt": (("第一行\n第二行\n" * 50).encode(), "holds plain text"),
    "c.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a pointer of Git LFS"),
    "a.db": (b"SQLite format 3\0" + b"\0" * 100, "is an SQLite database"),
    "a.json.gz": (gzip.compress(gzip.compress(b"[1]")), "binary content"),
    "a.arrow": (b"ARROW1\0\0" + b"\0" * 50, "is an Arrow file"),
    "d.jsonl": (b"question,answer\nq,a\n", "a table needs a name that ends in .csv"),
    "a.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "is an image"),
}


@pytest.mark.parametrize("command", ["import", "unify", "decontaminate"])
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_a_file_of_another_kind_is_named_once_before_work_is_spent(tmp_path, capsys, name, command):
    content, reason = OTHER_KINDS[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "exam.jsonl").write_text('{"question": "q?", "options": ["a", "b"]}\n')
    arguments = {
        "import": ["--out", tmp_path / "out"],
        "unify": ["--template", "--out", tmp_path / "out.jsonl"],
        "decontaminate": ["--exams", tmp_path / "exam.jsonl", "--out", tmp_path / "out"],
    }[command]
    assert main([command, str(tmp_path / name), *map(str, arguments), "--quiet"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(reason) == 1 and name in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.jsonl").exists()


# ---- accounting


def values(rng: random.Random) -> list:
    """One value of every kind of layout, good and bad, and whether it is a record."""
    turn = lambda: rng.choice(["问", "a\nb", "x" * 50])
    message = lambda role: {"role": role, "content": turn()}
    good = [
        {"turns": [turn(), turn()]},
        {"text": turn(), "title": "t"},
        [turn(), turn(), turn(), turn()],
        {"messages": [message("user"), message("assistant")], "tools": []},
        {"conversations": [{"from": "human", "value": turn()}, {"from": "gpt", "value": turn()}]},
        {"conversation": [{"human": turn(), "assistant": turn()}]},
        {"instruction": turn(), "input": "", "output": turn()},
        {"instruction": turn(), "context": turn(), "response": turn()},
        {"Question": turn(), "Complex_CoT": turn(), "Response": turn()},
        {"questions": [[turn(), turn()]], "answers": [turn()]},
        {"patient": turn(), "doctor": turn()},
        {"data": [turn(), turn()]},
        {"prompt": turn(), "completion": turn()},
        {"messages": [message("user"), {**message("assistant"), "weight": 0}, message("user"), message("assistant")]},
    ]
    bad = [
        {"turns": [turn()]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"messages": [message("user"), message("assistant")], "label": False},
        {"messages": [message("user"), message("assistant")], "images": ["x"]},
        {"messages": [message("user"), message("user")]},
        {"turns": ["q", "a"], "weights": [3]},
        {"x": 1},
        {"text": ""},
        [],
        3,
    ]
    return [(True, value) for value in good] + [(False, value) for value in bad]


@pytest.mark.parametrize("seed", range(3))
def test_every_value_is_a_record_or_rejected_with_a_reason(tmp_path, seed):
    rng = random.Random(seed)
    kinds = values(rng)
    drawn = [rng.choice(kinds) for _ in range(400)]
    (tmp_path / "a.jsonl").write_text(json_lines(*(value for _, value in drawn)))
    report = run(tmp_path / "out", tmp_path / "a.jsonl", "--max-rejected", "1")
    accepted = sum(is_record for is_record, _ in drawn)
    assert (report["records"], report["rejected"]) == (accepted, 400 - accepted)
    assert sum(report["rejected_reasons"].values()) == report["rejected"] == len(rejected(tmp_path / "out"))
    assert [one["line"] for one in rejected(tmp_path / "out")] == [i for i, (good, _) in enumerate(drawn, 1) if not good]
    assert report["unread_keys"]["Complex_CoT"] == sum(good and "Complex_CoT" in value for good, value in drawn)


def test_other_weights_make_another_dataset(tmp_path):
    for name, weights in (("one", [0, 1]), ("two", [1, 0]), ("all", [1, 1]), ("none", None)):
        (tmp_path / f"{name}.jsonl").write_text(json_lines({"turns": ["q", "a", "q", "a"], "source": "s", "weights": weights}))
        assert run(tmp_path / name, tmp_path / f"{name}.jsonl")["records"] == 1
    contents = [UnifiedDataset(tmp_path / name).manifest["content"] for name in ("one", "two", "all", "none")]
    assert len(set(contents)) == 3 and contents[2] == contents[3]
    tfds = pytest.importorskip("tensorflow_datasets")
    read = lambda name: tfds.builder_from_directory(str(tmp_path / name)).as_data_source(split="train")[0]
    assert read("one")["weights"] == b"0 1" and "weights" not in read("all")


def test_a_map_and_a_layout_exclude_each_other(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("问题,答案\nq,a\n")
    assert run(tmp_path / "out", tmp_path / "a.csv", "--map", "prompt=问题,answer=答案", "--layout", "alpaca") == 2
    assert "give one of the two" in capsys.readouterr().err
    assert run(tmp_path / "out", tmp_path / "a.csv", "--map", "prompt=问题,answer=答案")["records"] == 1
    assert records(tmp_path / "out")[0].turns == ("q", "a")
