"""What real corpora have in them: broken Unicode, names in GBK, endless lines; named with place and reason, the rest is read."""

import gzip
import json
import os
import resource
import subprocess
import sys

import pytest
import zstandard

from data_tools.cli import main as huatuo_data
from data_tools.collect.reading import Document, InputFile, grouped, list_shards, read_documents
from data_tools.collect.settings import ReadingConfig
from huatuo_jax.io.jsonl import Fault, iterate_json

TEXT = "患者因反复发热、咳嗽伴胸痛入院，胸片提示肺炎，给予青霉素静脉滴注治疗，第三天体温恢复正常，准予出院随访。"


def collect(raw, out):
    """Runs the command; returns what went into quarantine and the files of passages."""
    assert huatuo_data(["collect", str(raw), "--domain", "medicine", "--out", str(out), "--quiet"]) == 0
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    return entries, list((out / "passages").iterdir())


@pytest.mark.parametrize("field", ["text", "title", "id"])
def test_a_lone_surrogate_in_any_field_is_named_and_the_run_goes_on(tmp_path, field):
    row = {"text": TEXT, "title": "肺炎", "id": "1"} | {field: "\ud800"}
    (tmp_path / "raw.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"text": TEXT}))
    (entry,), _ = collect(tmp_path / "raw.jsonl", tmp_path / "out")
    assert (entry["line"], entry["reason"]) == (1, f"{field} is not valid Unicode (lone surrogate at character 0)")


def test_a_lone_surrogate_in_a_key_can_be_listed(tmp_path):
    (tmp_path / "raw.jsonl").write_text('{"te\\ud800": 1}\n' + json.dumps({"text": TEXT}))
    (entry,), _ = collect(tmp_path / "raw.jsonl", tmp_path / "out")
    assert "the row's keys: te\\ud800" in entry["reason"]


def test_file_names_in_gbk_are_read(tmp_path):
    (tmp_path / "raw").mkdir()
    for suffix, content in ((b".txt", TEXT.encode()), (b".jsonl", b"{torn"), (b".png", b"")):
        with open(os.fsencode(tmp_path / "raw") + b"/" + "法".encode("gbk") + suffix, "wb") as file:
            file.write(content)
    entries, files = collect(tmp_path / "raw", tmp_path / "out")
    assert sorted(os.path.basename(entry["file"]) for entry in entries) == ["\\udcb7\\udca8.jsonl", "\\udcb7\\udca8.png"]
    assert len(files) == 2


def test_long_names_of_folders_become_one_file_name(tmp_path):
    for letter in "ab":
        folder = tmp_path / "raw" / ("长" * 60) / (letter * 200)
        folder.mkdir(parents=True)
        (folder / "page.txt").write_text(TEXT + letter, encoding="utf-8")
    _, files = collect(tmp_path / "raw", tmp_path / "out")
    assert len(files) == 2 and all(len(os.fsencode(path.name)) < 220 for path in files)


def test_a_million_small_files_are_grouped_in_one_pass():
    files = [InputFile(f"/raw/{i:07}.txt", f"{i:07}.txt", 1_000, 0) for i in range(1_000_000)]
    shards = list(grouped(files, 64 << 20))
    assert [len(shard.files) for shard in shards] == [20_000] * 50


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_value_over_the_limit_ends_the_reading_of_a_json_document(tmp_path, compress):
    content = json.dumps(["one", "two", "x" * 3_000_000, "four"]).encode()
    (tmp_path / "a.json").write_bytes(compress(content))
    (shard,) = list_shards([tmp_path]).shards
    *documents, refused = read_documents(shard.files[0], ReadingConfig(max_line_bytes=1_000_000))
    assert [document.text for document in documents] == ["one", "two"]
    assert refused.reason == "a value is longer than the limit of 1,000,000 bytes; raise --max-line-bytes to read it"


def test_lines_of_a_json_file_have_the_limit_too(tmp_path):
    (tmp_path / "a.json").write_text('\n{"text": "one"}\n' + json.dumps({"text": "x" * 3_000_000}) + '\n{"text": "three"}\n')
    (shard,) = list_shards([tmp_path]).shards
    first, refused, third = read_documents(shard.files[0], ReadingConfig(max_line_bytes=1_000_000))
    assert isinstance(first, Document) and isinstance(third, Document)
    assert refused.line == 3 and "limit of 1,000,000 bytes" in refused.reason


def test_unify_and_import_read_on_after_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("huatuo_jax.io.jsonl.LONGEST_LINE", 1_000)
    (tmp_path / "a.jsonl").write_text('"one"\n"' + "x" * 5_000 + '"\n' + json.dumps("y" * 997) + '\n"three"\n"' + "z" * 1_000)
    items = list(iterate_json(tmp_path / "a.jsonl"))
    assert [number for number, _ in items] == [1, 2, 3, 4, 5]
    assert [value for _, value in items if isinstance(value, str)] == ["one", "y" * 997, "three"]
    assert all("longer than the limit of 1,000 bytes" in value.reason for _, value in items if isinstance(value, Fault))


READ = """
import resource, sys
from pathlib import Path
from data_tools.collect.reading import list_shards, read_documents
from data_tools.collect.settings import ReadingConfig
(shard,) = list_shards([Path(sys.argv[1])]).shards
for found in read_documents(shard.files[0], ReadingConfig()):
    print(getattr(found, "text", None) or found.reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, read", [("a.jsonl.gz", ["one", "three"]), ("a.jsonl.zst", ["one", "three"]), ("a.json.gz", ["one"]), ("a.txt.gz", [])]
)
def test_a_line_of_more_than_a_gigabyte_is_refused_in_bounded_memory(tmp_path, name, read):
    start, end = (b'"one"\n"', b'"\n"three"\n') if "jsonl" in name else (b'["one", "', b'"]')
    path, packed = tmp_path / name, name.endswith("zst")
    with zstandard.open(path, "wb") if packed else gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(1_100):
            file.write(b"x" * (1 << 20))
        file.write(end)
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    *found, mebibytes = done.stdout.splitlines()
    (refused,) = [text for text in found if text not in read]
    assert "limit of 268,435,456 bytes; raise --max-line-bytes" in refused and len(found) == len(read) + 1
    assert int(mebibytes) < 900, f"{mebibytes} MiB"


@pytest.mark.parametrize("command", ["decontaminate", "unify"])
def test_a_full_disk_is_named_by_the_other_commands(tmp_path, capsys, command):
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": f"{TEXT}{i}"}) + "\n" for i in range(200)))
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": "与这些内容没有任何关系的一道关于桥梁工程的题目是哪一道"}))
    words = {
        "decontaminate": ["--exams", tmp_path / "exam.jsonl", "--out", tmp_path / "out"],
        "unify": ["--template", "--out", tmp_path / "out" / "pairs.jsonl"],
    }
    command_line = [command, *map(str, [tmp_path / "raw.jsonl", *words[command]]), "--quiet"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert huatuo_data(command_line) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "make room, then give the same command" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tmp" or path.name in ("raw.json", "pairs.jsonl")]
    assert huatuo_data(command_line) == 0
