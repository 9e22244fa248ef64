"""One reader of JSON: lines or a document by what the file holds, torn and malformed content named, memory bounded."""

import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huatuo_jax.io import jsonl
from huatuo_jax.io.files import TornFileError
from huatuo_jax.io.jsonl import Fault, KeyedValue, iterate_json, iterate_values


def read(content: str | bytes, name: str = "a.json") -> list:
    data = content.encode() if isinstance(content, str) else content
    return [value for _, value in iterate_values(Path(name), io.BytesIO(data))]


RECORD = {"instruction": "头痛怎么办？", "output": "多休息。"}
TALK = {"tools": [], "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
TAGGED = {"tags": [["x"]], "text": "x"}
BY_SOURCE = {"Meidcal_Web_en": [["q1", "a1"], ["q2", "a2", "q3", "a3"]], "SFT_data": [["q4", "a4"]]}
PAIRS = [KeyedValue(key, value) for key, values in BY_SOURCE.items() for value in values]


def lines(*values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


SHAPES = {
    "lines whose first key holds an empty list": (lines(TALK, TALK, TALK), [TALK] * 3),
    "lines whose first key holds a list of lists": (lines(TAGGED, TAGGED), [TAGGED] * 2),
    "one line whose first key holds a list": (lines(TAGGED), [TAGGED]),
    "one line that begins with a key of records": (lines(TALK), [TALK]),
    "lines that are lists": (lines(["问", "答"], ["q", "a"]), [["问", "答"], ["q", "a"]]),
    "lines that are lists of lists": (lines([["q", "a"]], [["q", "a"]]), [[["q", "a"]]] * 2),
    "lines after blank ones": ("\n \n" + lines(TALK, TALK), [TALK] * 2),
    "lines that end in CR LF": (lines(TALK, TALK).replace("\n", "\r\n"), [TALK] * 2),
    "lines that are passages": (lines("一", "二"), ["一", "二"]),
    "a record, pretty-printed": (json.dumps(RECORD, indent=2), [RECORD]),
    "a record of lists, pretty-printed": (json.dumps(TALK, indent=4), [TALK]),
    "a record whose first key holds a list, pretty-printed": (json.dumps(TAGGED, indent=1), [TAGGED]),
    "a record whose brace stands alone": ("{\n\n" + json.dumps(RECORD)[1:-1] + "\n}\n", [RECORD]),
    "an array in one line": (json.dumps([TALK, RECORD]), [TALK, RECORD]),
    "an array, pretty-printed": (json.dumps([TALK, RECORD], indent=2), [TALK, RECORD]),
    "an array with a value per line": (f"[\n{json.dumps(TALK)},\n{json.dumps(RECORD)}\n]", [TALK, RECORD]),
    "an array with leading commas": (f"[{json.dumps(TALK)}\n,{json.dumps(RECORD)}\n]", [TALK, RECORD]),
    "an array of dialogues": (json.dumps([["q", "a"], ["q", "a"]]), [["q", "a"]] * 2),
    "an array of passages": (json.dumps(["一", "二"], indent=0), ["一", "二"]),
    "lists by source in one line": (json.dumps(BY_SOURCE), PAIRS),
    "lists by source, pretty-printed": (json.dumps(BY_SOURCE, indent=2), PAIRS),
    "lists by source, the first one empty": (json.dumps({"web": [], **BY_SOURCE}), PAIRS),
    "lists of objects by source": (
        json.dumps({"train": [RECORD], "test": [RECORD]}),
        [KeyedValue("train", RECORD), KeyedValue("test", RECORD)],
    ),
    "an empty array": ("[]", []),
    "nothing": ("", []),
    "blank lines": ("\n\n", []),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1 << 20, 5], ids=["", "in small blocks"])
def test_the_content_says_whether_a_file_is_lines_or_a_document(shape, chunk, monkeypatch):
    monkeypatch.setattr(jsonl, "CHUNK", chunk)
    content, values = SHAPES[shape]
    assert read(content) == values
    assert read(b"\xef\xbb\xbf" + content.encode()) == values
    for name in ("a.jsonl", "a.data"):
        assert read(content, name) == values


def test_the_only_line_of_a_file_of_lines_may_be_a_dialogue():
    assert read('["问","答"]\n', "a.jsonl") == [["问", "答"]]
    assert read('["问","答"]\n', "a.jsonl.gz") == [["问", "答"]]
    assert read('["一段","另一段"]\n', "a.json") == ["一段", "另一段"]
    assert read('{"data":["问：q","答：a"]}\n', "a.jsonl") == [{"data": ["问：q", "答：a"]}]
    assert read('{"data":["一段","另一段"]}\n', "a.json") == [KeyedValue("data", text) for text in ("一段", "另一段")]
    for name in ("a.jsonl", "a.json"):
        assert read(lines(TALK["messages"]), name) == [TALK["messages"]]
        assert read(lines([RECORD, TALK]), name) == [RECORD, TALK]
        assert read(json.dumps(BY_SOURCE), name) == PAIRS


LONG = "药" * 50_000


@pytest.mark.parametrize("shape", ["lines", "array", "by source", "record"])
def test_values_longer_than_what_is_looked_at(shape, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_FIRST_LINE", 1_000)
    monkeypatch.setattr(jsonl, "CHUNK", 1_000)
    content, values = {
        "lines": (lines({"text": LONG}, {"text": "x"}), [{"text": LONG}, {"text": "x"}]),
        "array": (json.dumps([{"text": LONG}, RECORD], ensure_ascii=False), [{"text": LONG}, RECORD]),
        "by source": (
            json.dumps({"a": [[LONG, LONG]], "b": [["q", "a"]]}),
            [KeyedValue("a", [LONG] * 2), KeyedValue("b", ["q", "a"])],
        ),
        "record": (json.dumps({"a": 1, "text": LONG}, indent=1), [{"a": 1, "text": LONG}]),
    }[shape]
    assert read(content) == values


TORN_LINES = {
    "torn at a comma": '{"turns": ["q",',
    "torn in a list of lists": '{"tags": [["x",',
    "torn in a string": '{"turns": ["q',
    "torn after a key": '{"text":',
    "torn word": "{torn",
    "no JSON": "Human: hello",
    "two values": '{"text": "x"} {"text": "y"}',
}


@pytest.mark.parametrize("first", TORN_LINES)
def test_a_torn_first_line_costs_only_itself(first):
    found = read(TORN_LINES[first] + "\n" + lines(TALK, TALK))
    assert isinstance(found[0], Fault) and found[1:] == [TALK, TALK]


BROKEN_DOCUMENTS = {
    "torn in a value": (json.dumps([RECORD] * 3)[:-9], "torn: it ends within the value at character"),
    "torn between values": (json.dumps([RECORD] * 3)[:-1], "torn: it ends at character"),
    "torn after a comma": ("[1, 2,", "torn"),
    "torn in a number": ("[1, 2.", "torn"),
    "torn in an escape": ('["\\u4f', "torn"),
    "torn in a list by source": (json.dumps(BY_SOURCE)[:-3], "torn"),
    "torn between sources": ('{"a": [["q", "a"]], "b', "torn"),
    "torn in a key's colon": ('{"a": [["q", "a"]], "b"', "expected a key"),
    "comma missing": ("[1 2]", "expected ',' or ']', found '2', at character 3"),
    "comma missing in a value": ('[{"a": 1 "b": 2}, 3]', "not valid JSON (Expecting ',' delimiter) at character 9"),
    "a value per line, one malformed": ('[\n{"a": 1},\n{"a" 2},\n{"a": 3}\n]', "not valid JSON"),
    "a value per line, the first malformed": ('[{"a" 1},\n{"a": 2},\n{"a": 3}\n]', "not valid JSON"),
    "content after the end": ("[1]\nx", "content after the end of the document at character 4"),
    "content after a record": (json.dumps(RECORD, indent=1) + json.dumps(RECORD), "content after the end"),
    "nested too deeply": ("[\n" + "[" * 100_000, "nested too deeply"),
    "not UTF-8": (b'["\xe5\xa4\xb4", "\xff"]', "not UTF-8"),
}


@pytest.mark.parametrize("kind", BROKEN_DOCUMENTS)
def test_a_broken_document_is_refused_as_a_whole_with_its_place(kind):
    content, reason = BROKEN_DOCUMENTS[kind]
    with pytest.raises(TornFileError) as refused:
        read(content)
    assert reason in str(refused.value) and str(refused.value).startswith("a.json: ")
    assert "the whole file is rejected" in str(refused.value)


@pytest.mark.parametrize("content", ["[{}, 1 2, ", '[{"a": 1 "b": 2}, ', '{"web": [["q" "a"], ', '[\n{"a": nul},\n'])
def test_a_malformed_part_ends_the_reading_at_once(tmp_path, content):
    (tmp_path / "a.json").write_text(content + '{"text": "0123456789"},\n' * 1_000_000)
    read = 0

    def on_read(count: int) -> None:
        nonlocal read
        read += count

    with pytest.raises(TornFileError):
        list(iterate_json(tmp_path / "a.json", on_read))
    assert read < 12 << 20


def test_a_part_over_the_limit_is_refused_and_what_precedes_it_is_read():
    values = iterate_values(Path("a.json"), io.BytesIO(json.dumps(["one", "x" * 9_000_000]).encode()), 1_000_000)
    assert next(values) == (1, "one")
    with pytest.raises(TornFileError, match="a value is longer than the limit of 1,000,000 bytes; split it"):
        next(values)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)


def same(one, other) -> bool:
    """Equal, with NaN equal to itself and 1 not equal to 1.0."""
    return repr(one) == repr(other)


@settings(deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=5), st.sampled_from([None, 0, 1]), st.booleans(), st.integers(1, 30))
def test_every_array_comes_back_whatever_its_layout(values, indent, ascii, chunk):
    text = json.dumps([{"v": value} for value in values], indent=indent, ensure_ascii=ascii)
    before, jsonl.CHUNK = jsonl.CHUNK, chunk
    try:
        content = text.encode("utf-8", "strict" if ascii else "surrogatepass")
        try:
            content.decode()
        except UnicodeDecodeError:
            with pytest.raises(TornFileError, match="not UTF-8"):
                read(content)
        else:
            assert same(read(content), [{"v": value} for value in values])
    finally:
        jsonl.CHUNK = before


@settings(deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=5))
def test_every_value_comes_back_from_lines(values):
    rows = [{"v": value} for value in values]
    assert same(read("".join(json.dumps(row) + "\n" for row in rows)), rows)


def test_duplicate_keys_and_numbers_are_those_of_the_json_module():
    text = '[{"a": 1, "a": 2}, 12345678901234567890123, 1e400, NaN, -Infinity, 1.0, "\\ud800"]'
    assert same(read(text), json.loads(text))


def test_a_file_compressed_twice_over_is_not_json(tmp_path):
    (tmp_path / "a.json").write_bytes(gzip.compress(gzip.compress(b"[1]")))
    assert all(isinstance(value, Fault) for _, value in iterate_json(tmp_path / "a.json"))
