"""What identifies a call: the text that the model sees and how it is asked, and neither files, lines, ids nor addresses."""

import json
import sqlite3

import pytest

from tests.support.fault_server import PASSAGES, FaultServer, plain_text

LINES = [
    f"Drug alpha{i} lowers marker beta{i}. Its dose is {i} mg twice a day. The effect lasts for {i} months." for i in range(40)
]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.mark.parametrize(
    ("change", "bought"),
    [
        (lambda lines: lines[1:], 0),
        (lambda lines: lines[::-1], 0),
        (lambda lines: lines + lines[:3], 0),
        (lambda lines: [*lines[:7], "", *lines[9:]], 0),
        (lambda lines: ["Drug omega lowers all of them. Its dose is high. The effect lasts for years.", *lines], 2),
    ],
)
def test_rows_that_move_are_not_bought_again(unify, server, corpus, change, bought):
    write(corpus, LINES)
    assert unify("--max-rejected", "0.1") == 0
    assert len(server.arrivals) == 80
    write(corpus, change(LINES))
    assert unify("--max-rejected", "0.1") == 0
    assert len(server.arrivals) == 80 + bought


def test_another_file_source_id_or_address_buys_nothing_again(unify, server, corpus, rows, tmp_path):
    assert unify() == 0
    renamed = [json.dumps({"id": f"new-{i}", "text": text}) for i, text in enumerate(PASSAGES.values())]
    corpus.write_text("\n".join(renamed))
    with FaultServer() as other:
        assert unify("--source", "library", "--base-url", other.url, "--concurrency", "3", "--timeout", "60") == 0
        assert other.arrivals == []
    assert len(server.arrivals) == 10
    assert [(row["id"], row["source"]) for row in rows("pairs.jsonl")] == [(f"new-{i}", "library") for i in range(5)]


def test_ids_of_rows_without_one_follow_their_content(unify, server, corpus, rows):
    write(corpus, LINES[:5])
    assert unify() == 0
    first = {row["turns"][0]: row["id"] for row in rows("pairs.jsonl")}
    write(corpus, LINES[2:5])
    assert unify() == 0
    second = {row["turns"][0]: row["id"] for row in rows("pairs.jsonl")}
    assert len(set(first.values())) == 5
    assert second == {question: first[question] for question in second}


@pytest.mark.parametrize("concurrency", ["1", "8"])
def test_passages_with_the_same_text_share_their_calls_and_each_has_a_pair(unify, server, corpus, rows, concurrency):
    server.latency = 0.05
    texts = [("a", "books", LINES[1]), ("b", "web", LINES[1]), ("c", "books", LINES[2]), ("d", "books", LINES[1])]
    corpus.write_text("".join(json.dumps({"id": i, "source": s, "text": t}) + "\n" for i, s, t in texts))
    assert unify("--concurrency", concurrency) == 0
    assert len(server.arrivals) == 4
    found = {row["id"]: row["turns"] for row in rows("pairs.jsonl")}
    assert list(found) == ["a", "b", "c", "d"]
    assert found["a"] == found["b"] == found["d"] != found["c"]


def test_a_shared_call_that_fails_fails_for_every_passage_that_waits(unify, server, corpus, rows):
    server.latency = 0.05
    corpus.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate([*LINES[:3], LINES[0]])))
    server.fault = lambda arrival: "500" if "alpha0 " in arrival.passage else None
    assert unify("--retries", "1") == 0
    assert [(row["id"], row["reason"]) for row in rows("pairs.rejected.jsonl")] == [("0", "unfinished"), ("3", "unfinished")]
    assert len(server.arrivals) == 2 + 4


@pytest.mark.parametrize("options", [["--temperature", "0.5"], ["--extra-body", '{"top_p": 0.9}'], ["--domain", "law"]])
def test_sampling_settings_and_prompts_belong_to_a_call(unify, server, options):
    assert unify() == 0
    assert unify(*options) == 0
    assert len(server.arrivals) == 20
    assert unify(*options) == 0
    assert unify() == 0
    assert len(server.arrivals) == 20


def test_a_larger_output_limit_buys_only_what_was_cut(unify, server, rows):
    def shape(arrival, completion):
        cut = "liver" in arrival.passage.lower() and arrival.step == "answer" and arrival.body["max_tokens"] < 500
        completion["choices"][0]["finish_reason"] = "length" if cut else "stop"
        return completion

    server.shape = shape
    assert unify("--max-new-tokens", "100") == 0
    assert [(row["id"], row["reason"]) for row in rows("pairs.rejected.jsonl")] == [("liver", "truncated")]
    calls = len(server.arrivals)
    assert unify("--max-new-tokens", "50") == 0  # what is cut at 100 is cut at 50
    assert len(server.arrivals) == calls
    assert unify("--max-new-tokens", "500") == 0
    assert len(rows("pairs.jsonl")) == 5
    assert [(a.step, a.body["max_tokens"]) for a in server.arrivals[calls:]] == [("answer", 500)]
    assert unify("--max-new-tokens", "100") == 0  # and what is whole is whole under any limit
    assert (len(rows("pairs.jsonl")), len(server.arrivals)) == (5, calls + 1)


def test_a_pair_that_a_second_try_gave_stands_under_a_larger_limit(unify, server, rows):
    def shape(arrival, completion):  # the first try of each question is cut, the second one whole
        first = [a.body for a in server.arrivals].count(arrival.body) == 1
        completion["choices"][0]["finish_reason"] = "length" if arrival.step == "question" and first else "stop"
        return completion

    server.shape = shape
    assert unify("--max-new-tokens", "100") == 0
    assert len(server.arrivals) == 15
    pairs = rows("pairs.jsonl")
    assert unify("--max-new-tokens", "500") == 0
    assert (rows("pairs.jsonl"), len(server.arrivals)) == (pairs, 15)


def test_rejects_are_tried_again_after_a_run_without_any_pair(unify, server, rows, capsys):
    server.text = lambda arrival: "According to the text above, that is so."
    assert unify() == 1
    assert "--retry-rejected" in " ".join(capsys.readouterr().err.split())
    calls = len(server.arrivals)
    assert unify() == 1
    assert len(server.arrivals) == calls
    server.text = plain_text
    assert unify("--retry-rejected") == 0
    assert len(rows("pairs.jsonl")) == 5
    assert len(server.arrivals) == calls + 10


def test_a_ledger_of_an_earlier_version_is_read_and_the_run_says_what_it_needs_to_buy(unify, server, rows, tmp_path, capsys):
    assert unify() == 0
    pairs, path = (tmp_path / "pairs.jsonl").read_bytes(), tmp_path / "pairs.ledger.sqlite"
    with sqlite3.connect(path) as ledger:  # as version 1 wrote it: the passage's id in the key, neither settings nor limit
        ledger.executescript(
            "ALTER TABLE calls RENAME TO new; ALTER TABLE failures RENAME COLUMN item TO passage;"
            "CREATE TABLE calls (passage TEXT, step TEXT, round INTEGER, attempt INTEGER, prompt BLOB, model TEXT,"
            " text TEXT NOT NULL, finish TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,"
            " PRIMARY KEY (passage, step, round, attempt, prompt, model)) WITHOUT ROWID;"
            "INSERT INTO calls SELECT item, step, round, attempt, prompt, model, text, finish, prompt_tokens, output_tokens"
            " FROM new WHERE NOT (item = 'books/heart' AND step = 'answer');"
            "DROP TABLE new; PRAGMA user_version=1;"
        )
    capsys.readouterr()
    assert unify() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "9 replies of an earlier version" in printed
    assert "4 of 5 passages need no call; 1 need one or more" in printed
    assert len(server.arrivals) == 11
    assert (tmp_path / "pairs.jsonl").read_bytes() == pairs
    assert unify() == 0
    assert "earlier version" not in capsys.readouterr().out
    assert len(server.arrivals) == 11


def test_every_row_is_a_record_or_rejected_by_a_reason(unify, server, corpus, rows, tmp_path):
    """Five passages, one of them refused by a filter; a dialogue, a number, a line that is no JSON; a blank and a long text."""
    with open(corpus, "a") as file:
        file.write('{"turns": ["a", "b"]}\n5\n{"text": \n{"text": " "}\n' + json.dumps({"text": "x" * 9000}) + "\n")
    server.text = lambda arrival: "The liver." if arrival.step == "answer" and "liver" in arrival.passage else plain_text(arrival)
    assert unify("--max-rejected", "0.5") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["rows"], report["records"], report["rejected"], report["rows_without_passage"]) == (10, 4, 6, 3)
    assert report["rejected_passages"] == {"coverage": 1, "passage_blank": 1, "passage_too_long": 1}
    assert len(rows("pairs.jsonl")) == 4
    assert len(rows("pairs.rejected.jsonl")) == 6 and all(row["reason"] for row in rows("pairs.rejected.jsonl"))
