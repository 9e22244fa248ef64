"""Every format and encoding gives the same documents; what cannot be read is named with its place and reason."""

import gzip
import json
import lzma
import os

import pytest
import zstandard

from data_tools.collect.reading import Document, Unreadable, list_shards, read_documents
from data_tools.collect.settings import ReadingConfig
from data_tools.unify.passages import content_id
from huatuo_jax.errors import ConfigError, DataError

TEXTS = ["发热是感染常见的症状。", "A fever is a common sign of infection.", "腹痛三天。\n伴呕吐。"]
LINES = "".join(json.dumps({"text": text, "source": "books"}, ensure_ascii=False) + "\n" for text in TEXTS)
COMPRESS = {"": lambda b: b, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def read(folder, **config):
    documents, unreadable = [], []
    for shard in list_shards([folder]).shards:
        for file in shard.files:
            for one in read_documents(file, ReadingConfig(**config)):
                (documents if isinstance(one, Document) else unreadable).append(one)
    return documents, unreadable


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_in_every_encoding_and_compression(tmp_path, suffix, encoding, compression):
    content = LINES if suffix == ".jsonl" else json.dumps([json.loads(line) for line in LINES.splitlines()], ensure_ascii=False)
    (tmp_path / f"a{suffix}{compression}").write_bytes(COMPRESS[compression](content.encode(encoding)))
    documents, unreadable = read(tmp_path)
    assert [document.text for document in documents] == TEXTS and not unreadable
    assert {document.source for document in documents} == {"books"}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_text_file_is_one_document_of_its_folder(tmp_path, encoding, compression):
    (tmp_path / "webpages").mkdir()
    (tmp_path / "webpages" / f"page.txt{compression}").write_bytes(COMPRESS[compression](TEXTS[2].encode(encoding)))
    documents, unreadable = read(tmp_path)
    assert [(d.text, d.source) for d in documents] == [(TEXTS[2], "webpages")] and not unreadable


@pytest.mark.parametrize("compression", COMPRESS)
def test_parquet(tmp_path, compression):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"body": TEXTS, "heading": ["甲", None, "丙"], "unused": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "plain")
    (tmp_path / f"part.parquet{compression}").write_bytes(COMPRESS[compression]((tmp_path / "plain").read_bytes()))
    documents, unreadable = read(tmp_path, text_field="body", title_field="heading")
    assert [(d.text, d.title, d.source) for d in documents] == list(zip(TEXTS, ["甲", "", "丙"], ["part"] * 3, strict=True))
    assert not unreadable


def test_bare_strings_and_own_ids(tmp_path):
    (tmp_path / "a.jsonl").write_text('"just text"\n{"text": "with id", "id": 7}\n')
    documents, _ = read(tmp_path)
    assert [d.text for d in documents] == ["just text", "with id"] and documents[1].id == "7"
    assert documents[0].id == read(tmp_path)[0][0].id


BAD_LINES = {
    b'{"text": "torn': "not valid JSON",
    b'{"text": "\xff\xfe"}': "not UTF-8",
    b'{"text": "\\ud800 alone"}': "lone surrogate at character 0",
    b'{"text": "nul \x00 byte"}': "not valid JSON",
    b'{"body": "no text"}': "`text` is missing; the row's keys: body",
    b'{"text": ["a list"]}': "`text` is of type list",
    b"42": "row is of type int",
    b"[" * 5_000: "not",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda b: b[:14].decode("latin1"))
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path, bad):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + bad + b'\n{"text": "three"}\n')
    documents, (unreadable,) = read(tmp_path)
    assert [d.text for d in documents] == ["one", "three"]
    assert unreadable.line == 2 and BAD_LINES[bad] in unreadable.reason


def test_a_line_over_the_limit_is_refused_with_the_limit_and_skipped(tmp_path):
    long = json.dumps({"text": "x" * 5_000_000})
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + long + '\n{"text": "three"}')
    documents, (unreadable,) = read(tmp_path, max_line_bytes=1_000_000)
    assert [d.text for d in documents] == ["one", "three"]
    assert (unreadable.line, "limit of 1,000,000 bytes; raise --max-line-bytes" in unreadable.reason) == (2, True)


def test_one_bad_file_among_many(tmp_path):
    for i in range(20):
        (tmp_path / f"good{i:02}.txt").write_text(f"document {i}")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\0\0\0")
    (tmp_path / "torn.jsonl.xz").write_bytes(lzma.compress(LINES.encode() * 500)[:-40])
    (tmp_path / "not.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "wide.txt").write_bytes("文".encode("utf-16"))
    documents, unreadable = read(tmp_path)
    assert sorted(d.text for d in documents if d.text.startswith("document")) == sorted(f"document {i}" for i in range(20))
    reasons = {os.path.basename(u.file): u.reason for u in unreadable}
    assert "NUL" in reasons["image.txt"] and "torn" in reasons["torn.jsonl.xz"]
    assert "Parquet" in reasons["not.parquet"] and "UTF-16" in reasons["wide.txt"]
    assert all(isinstance(u, Unreadable) and u.line is None for u in unreadable)


def test_an_empty_folder_is_an_error_that_names_the_suffixes(tmp_path):
    with pytest.raises(DataError, match=r"no corpus files in .*\.jsonl"):
        list_shards([tmp_path])


def test_a_loop_of_links_ends_and_is_reported(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("text")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    listing = list_shards([tmp_path])
    assert [file.name for shard in listing.shards for file in shard.files] == ["a/x.txt"]
    assert {reason for _, reason in listing.skipped} == {"a link to a folder that is read already", "a link to nothing"}


def test_a_file_given_twice_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("text")
    with pytest.raises(ConfigError, match="given twice"):
        list_shards([tmp_path, tmp_path / "x.txt"])


def test_small_text_files_share_shards_and_others_have_their_own(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text("x" * 100)
    for name in ("big.jsonl", "big.json"):
        (tmp_path / name).write_text("[]")
    shards = list_shards([tmp_path], group_bytes=1_000).shards
    sizes = sorted(len(shard.files) for shard in shards)
    assert sizes == [1, 1, 10, 10, 10]
    assert len({shard.name for shard in shards}) == 5


def test_ids_of_rows_without_one_follow_their_content(tmp_path):
    """Not the place: a row before them, another name, format or compression of the file leaves them; unify's ids are the same."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    rows = [{"text": text, "title": title} for text, title in zip(TEXTS, ["甲", "", "丙"], strict=True)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "a" / "first.jsonl").write_text("".join(lines))
    (tmp_path / "b" / "other.jsonl.gz").write_bytes(gzip.compress("".join(["\n", '"new"\n', *lines[1:]]).encode()))
    (tmp_path / "c" / "third.json").write_text(json.dumps(rows))
    ids = {name: {document.text: document.id for document in read(tmp_path / name)[0]} for name in ("a", "b", "c")}
    assert len(set(ids["a"].values())) == 3
    assert ids["a"] == ids["c"]
    assert {text: ids["b"][text] for text in TEXTS[1:]} == {text: ids["a"][text] for text in TEXTS[1:]}
    assert ids["a"] == {row["text"]: content_id(row["text"], row["title"]) for row in rows}
