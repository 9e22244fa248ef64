"""The whole command over real HTTP: what it writes, what it never does twice, when it stops."""

import errno
import json
import os
import re
import sqlite3
import traceback

import pytest

from data_tools.cli import main
from tests.support.fault_server import FAULTS, KEY, PASSAGES, plain_text


def pairs_by_id(rows):
    return {row["id"]: row["turns"] for row in rows("pairs.jsonl")}


def test_every_passage_becomes_a_pair_in_its_own_language_and_in_input_order(unify, server, rows):
    assert unify() == 0
    assert [row["id"] for row in rows("pairs.jsonl")] == list(PASSAGES)
    assert pairs_by_id(rows)["heart"] == [
        "What do we know of The human heart has four chambers. …?",
        "The human heart has four chambers. Blood returns to the right atrium.",
    ]
    assert pairs_by_id(rows)["心"][1] == "心动周期由收缩期和舒张期组成。成人安静时心率为每分钟六十至一百次。"
    assert [a.step for a in server.arrivals].count("question") == [a.step for a in server.arrivals].count("answer") == 5


def test_import_reads_the_pairs(unify, tmp_path):
    assert unify() == 0
    assert main(["import", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "unified"), "--quiet"]) == 0


def test_question_only_answers_with_the_passage_itself(unify, server, rows):
    assert unify(provider="question-only") == 0
    assert {name: turns[1] for name, turns in pairs_by_id(rows).items()} == PASSAGES
    assert {a.step for a in server.arrivals} == {"question"}


def test_a_second_run_repeats_no_call_and_writes_the_same(unify, server, tmp_path):
    assert unify() == 0
    first, calls = (tmp_path / "pairs.jsonl").read_bytes(), len(server.arrivals)
    (tmp_path / "pairs.jsonl").unlink()
    assert unify() == 0
    assert (tmp_path / "pairs.jsonl").read_bytes() == first
    assert len(server.arrivals) == calls


def test_another_model_is_asked_anew(unify, server):
    assert unify() == 0
    server.model = "other"
    assert unify("--model", "other") == 0
    assert len(server.arrivals) == 20


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_tried_again_and_counted(unify, server, rows, tmp_path, fault):
    server.fault = lambda arrival: fault if arrival.nth == 0 else None
    assert unify("--timeout", "1") == 0
    assert len(rows("pairs.jsonl")) == 5
    client = json.loads((tmp_path / "report.json").read_text())["client"]
    assert client["answers"] == 10
    assert client["requests"] == 20
    assert sum(client["failed_requests"].values()) == 10


def test_a_pause_that_the_endpoint_asks_for_holds_for_every_request(unify, server):
    server.headers = {"Retry-After": "1"}
    server.fault = lambda arrival: "429" if arrival is not None and len(server.arrivals) == 0 else None
    assert unify("--concurrency", "1") == 0
    first, second = server.arrivals[:2]
    assert 1 <= second.at - first.at < 3


def test_requests_per_minute_space_all_requests(unify, server):
    assert unify("--requests-per-minute", "600") == 0
    at = sorted(arrival.at for arrival in server.arrivals)
    assert at[-1] - at[0] >= 0.1 * 9 * 0.9


def test_concurrency_bounds_the_requests_in_flight(unify, server):
    server.latency = 0.05
    assert unify("--concurrency", "2") == 0
    assert server.most_in_flight == 2


def test_a_call_that_keeps_failing_leaves_its_passage_to_the_next_run(unify, server, rows):
    server.fault = lambda arrival: "500" if "liver" in arrival.passage else None
    assert unify("--retries", "1") == 0
    assert [(row["id"], row["reason"]) for row in rows("pairs.rejected.jsonl")] == [("liver", "unfinished")]
    server.fault = lambda arrival: None
    assert unify() == 0
    assert len(rows("pairs.jsonl")) == 5
    assert rows("pairs.rejected.jsonl") == []


def test_two_tries_then_the_reject_file_with_all_texts(unify, server, rows, tmp_path):
    server.text = lambda arrival: (
        "根据上述资料，是的。" if arrival.step == "answer" and arrival.language == "zh" else plain_text(arrival)
    )
    assert unify() == 0
    rejected = rows("pairs.rejected.jsonl")
    assert [row["id"] for row in rejected] == ["心", "肝"]
    assert rejected[0]["text"] == PASSAGES["心"]
    assert [(one["step"], one["reason"]) for one in rejected[0]["tries"]] == [
        ("question", None),
        ("answer", "leak"),
        ("answer", "leak"),
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rejected_passages"] == {"leak": 2}
    assert report["rejected_tries"] == {"answer:leak": 4}


def test_rejects_are_tried_again_on_request_only(unify, server, rows):
    server.text = lambda arrival: "Iron." if "ferritin" in arrival.passage.lower() else plain_text(arrival)
    assert unify() == 0
    calls = len(server.arrivals)
    server.text = plain_text
    assert unify() == 0
    assert len(server.arrivals) == calls
    assert unify("--retry-rejected") == 0
    assert len(server.arrivals) == calls + 2
    assert len(rows("pairs.jsonl")) == 5


def test_a_filter_switched_off_accepts_what_is_in_the_ledger_without_a_call(unify, server, rows):
    server.text = lambda arrival: "The liver." if arrival.step == "answer" and "liver" in arrival.passage else plain_text(arrival)
    assert unify() == 0
    calls = len(server.arrivals)
    assert [row["reason"] for row in rows("pairs.rejected.jsonl")] == ["coverage"]
    assert unify("--no-filter", "coverage") == 0
    assert pairs_by_id(rows)["liver"][1] == "The liver."
    assert len(server.arrivals) == calls


def test_domain_and_persona_reach_the_prompts_and_change_them(unify, server):
    assert unify("--domain", "zh=法律", "--domain", "en=law", "--persona", "zh=一位律师", "--persona", "en=a lawyer") == 0
    assert all("a lawyer" in a.prompt and "field of law" in a.prompt for a in server.arrivals if a.language == "en")
    assert all("一位律师" in a.prompt and "法律领域" in a.prompt for a in server.arrivals if a.language == "zh")
    assert len(server.arrivals) == 10
    assert unify() == 0
    assert len(server.arrivals) == 20


def test_a_domain_without_a_persona_is_asked_by_an_expert_of_it(unify, server):
    assert unify("--domain", "zh=法律", "--domain", "en=law") == 0
    assert all("an experienced expert in law" in a.prompt for a in server.arrivals if a.language == "en")
    assert all("一位经验丰富的法律专家" in a.prompt for a in server.arrivals if a.language == "zh")


def test_the_report_beside_the_pairs_says_how_they_were_made(unify, tmp_path):
    assert unify("--domain", "en=law", "--no-filter", "leak") == 0
    report = json.loads((tmp_path / "pairs.report.json").read_text(encoding="utf-8"))
    assert (report["provider"], report["model"], report["records"]) == ("openai", "tiny", 5)
    assert report["prompts"]["version"] == "v1" and report["prompts"]["en"]["domain"] == "law"
    assert set(report["prompts"]["templates"]) == {"question.zh", "question.en", "answer.zh", "answer.en"}
    assert "leak" not in report["filters"] and report["limits"]["question_characters"] == 180


def test_a_full_disk_under_the_output_loses_no_answer(unify, server, rows, monkeypatch, capsys):
    from data_tools.unify.pairs import PairWriter

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(PairWriter, "pair", full)
        assert unify() == 1
    assert "No space left on device; nothing is half-written: make room" in capsys.readouterr().err
    assert unify() == 0
    assert len(rows("pairs.jsonl")) == 5
    assert len(server.arrivals) == 10


def test_an_estimate_makes_no_call(unify, server, tmp_path):
    assert unify("--estimate", "--price-in", "1", "--price-out", "2") == 0
    forecast = json.loads((tmp_path / "report.json").read_text())
    assert server.arrivals == []
    assert not list(tmp_path.glob("*.sqlite*"))
    assert forecast["passages"] == 5
    assert forecast["calls"] == 10
    assert forecast["cost"] == pytest.approx((forecast["prompt_tokens"] + 2 * forecast["output_tokens"]) / 1e6, abs=1e-4)


def test_the_budget_is_never_passed_and_a_larger_one_continues(unify, server, rows, tmp_path, capsys):
    assert unify("--max-tokens", "1800", "--max-new-tokens", "100") == 4
    assert "--max-tokens 1,800" in capsys.readouterr().err
    assert not (tmp_path / "pairs.jsonl").exists()
    with sqlite3.connect(tmp_path / "pairs.ledger.sqlite") as ledger:
        totals = dict(ledger.execute("SELECT name, value FROM totals"))
    calls = len(server.arrivals)
    assert 0 < totals["prompt_tokens"] + totals["output_tokens"] <= 1800
    assert 0 < calls < 10
    assert unify("--max-tokens", "100000", "--max-new-tokens", "100") == 0
    assert len(rows("pairs.jsonl")) == 5
    assert len(server.arrivals) == 10


def test_a_cap_in_money_stops_and_a_larger_one_continues(unify, server, rows, capsys):
    words = ["--price-in", "1", "--price-out", "2", "--max-new-tokens", "100", "--concurrency", "1"]
    assert unify("--max-cost", "0.0015", *words) == 4
    assert "--max-cost 0.0015" in capsys.readouterr().err
    calls = len(server.arrivals)
    assert unify("--max-cost", "1", *words) == 0
    assert len(rows("pairs.jsonl")) == 5
    assert 0 < calls < len(server.arrivals) == 10


def test_a_cap_in_money_needs_prices(unify, capsys):
    assert unify("--max-cost", "1") == 2
    assert "--price-in" in capsys.readouterr().err


def test_an_expired_key_stops_at_once_and_loses_nothing(unify, server, rows, capsys):
    server.fault = lambda arrival: "401" if len(server.arrivals) >= 4 else None
    assert unify("--concurrency", "1") == 1
    assert "refuses the API key" in capsys.readouterr().err
    assert len(server.arrivals) == 5
    server.fault = lambda arrival: None
    assert unify() == 0
    assert len(rows("pairs.jsonl")) == 5
    assert len(server.arrivals) == 5 + 6


def test_an_endpoint_that_answers_html_is_named(unify, server, capsys):
    server.fault = lambda arrival: "html"
    assert unify() == 1
    message = capsys.readouterr().err
    assert "HTML, not JSON" in message
    assert "--base-url" in message


def test_a_wrong_address_stops_at_once(unify, server, capsys):
    assert unify("--base-url", server.url.removesuffix("/v1")) == 1
    assert "404" in capsys.readouterr().err


def test_a_model_that_is_not_the_one_asked_for_is_refused_unless_accepted(unify, server, capsys, rows):
    server.fault = lambda arrival: "wrong model"
    assert unify("--retries", "0") == 1
    assert unify("--accept-model", "another-model") == 0
    assert len(rows("pairs.jsonl")) == 5


def test_a_passage_that_the_endpoint_refuses_is_rejected_and_not_asked_again(unify, server, rows):
    assert unify("--no-filter", "coverage") == 0
    server.model = "second"
    server.fault = lambda arrival: "400" if "liver" in arrival.passage else None
    assert unify("--model", "second", "--concurrency", "1") == 0
    assert [(row["id"], row["reason"]) for row in rows("pairs.rejected.jsonl")] == [("liver", "refused")]


def test_the_key_is_in_nothing_that_is_written(unify, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_LOG", "debug")
    server.text = lambda arrival: f"{plain_text(arrival)} {arrival.authorization}"
    server.fault = lambda arrival: "500" if arrival.nth == 0 else None
    assert unify("--no-filter", "question_length", "--plot", str(tmp_path / "plot.png")) == 0
    server.fault = lambda arrival: "401"
    assert unify("--model", "other") == 1
    printed = capsys.readouterr()
    assert "Bearer [API key]" in printed.err
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (tmp_path / "pairs.ledger.sqlite") in written
    assert not [path for path, content in written.items() if KEY.encode() in content]
    assert KEY not in printed.out + printed.err


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(unify, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\nX: y")
    assert unify() == 2
    assert "sk-" not in capsys.readouterr().err


def test_a_key_that_is_a_common_word_changes_no_answer(unify, server, rows, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server.text = lambda arrival: f"{plain_text(arrival)} There are four chambers and none of them is empty."
    assert unify("--no-filter", "coverage", "--no-filter", "question_length") == 0
    found = rows("pairs.jsonl")
    assert found and all("and none of them is empty" in row["turns"][1] for row in found)


def test_no_traceback_shows_the_key(unify, monkeypatch):
    import huatuo_jax.chat_client.client as client

    monkeypatch.setattr(client, "parse_reply", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as crash:
        unify()
    assert KEY not in "".join(traceback.TracebackException.from_exception(crash.value, capture_locals=True).format())


def test_two_runs_on_one_ledger_are_refused(unify, tmp_path, capsys):
    from huatuo_jax.chat_client.ledger import Ledger

    with Ledger(tmp_path / "pairs.ledger.sqlite"):
        assert unify() == 2
    assert "in use by another run" in capsys.readouterr().err


def test_rows_that_are_no_passages_stop_the_run_before_any_call(unify, server, corpus, rows):
    with open(corpus, "a") as file:
        file.write('{"turns": ["a", "b"]}\n')
    assert unify() == 1
    assert server.arrivals == []
    assert "huatuo-data import" in rows("pairs.rejected.jsonl")[0]["reason"]


def test_what_survives_of_the_passages_is_reported_and_drawn(unify, tmp_path, capsys):
    picture = tmp_path / "coverage.png"
    assert unify("--plot", str(picture)) == 0
    coverage = json.loads((tmp_path / "report.json").read_text())["coverage"]["books"]
    assert 0.5 < coverage["median"] < 1
    assert coverage["measured"] == 5
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"n-gram recall", capsys.readouterr().out)


def test_finished_only_writes_what_the_ledger_has(unify, server, rows):
    server.fault = lambda arrival: "401" if len(server.arrivals) >= 4 else None
    assert unify("--concurrency", "1") == 1
    assert unify("--finished-only") == 0
    assert len(rows("pairs.jsonl")) == 2
    assert [row["reason"] for row in rows("pairs.rejected.jsonl")] == ["unfinished"] * 3


def test_the_same_row_twice_costs_one_set_of_calls(unify, server, corpus, rows):
    corpus.write_text(corpus.read_text() * 2)
    server.latency = 0.1
    assert unify() == 0
    assert len(server.arrivals) == 10
    assert [row["id"] for row in rows("pairs.jsonl")] == [*PASSAGES, *PASSAGES]
