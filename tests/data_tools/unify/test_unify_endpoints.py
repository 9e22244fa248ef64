"""How endpoints of today answer: other names, shapes and ends of a text, and faults that every reply shows."""

import json

import pytest

from huatuo_jax.chat_client.calls import refuses_field
from huatuo_jax.chat_client.pacing import HANDFUL
from tests.support.fault_server import KEY, PASSAGES, plain_text

TODAY = "Unsupported parameter: '{}' is not supported with this model. Use '{}' instead."


@pytest.fixture
def large(corpus):
    """A corpus of 60 passages."""
    text = (
        "Drug alpha{0} lowers marker beta{0} within {0} weeks. Its dose is {0} mg twice a day. The effect lasts for {0} months."
    )
    rows = [{"id": str(i), "source": "books", "text": text.format(i)} for i in range(60)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))


def message_of(completion: dict) -> dict:
    return completion["choices"][0]["message"]


def knows_only(name: str, other: str, status: int = 400):
    """An endpoint that takes the output limit by one name; the error is OpenAI's, and says so for any host."""
    error = {"error": {"message": TODAY.format(other, name), "type": "invalid_request_error", "param": other}}
    return lambda arrival: (status, error) if other in arrival.body else None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", True),
        ('{"detail":[{"type":"extra_forbidden","loc":["body","max_tokens"],"msg":"Extra inputs are not permitted"}]}', True),
        ("Unrecognized request argument supplied: max_tokens", True),
        ("this model is not supported MaxTokens, please use MaxCompletionTokens", True),
        ("litellm.UnsupportedParamsError: mistral does not support parameters: {'max_tokens': 4096}", True),
        ("Unknown parameter: 'max_tokens'.", True),
        ("参数 max_tokens 不支持", True),
        ("max_tokens is too large: 100000. This model supports at most 16384 completion tokens", False),
        ("'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context length is 8192 tokens", False),
        ("Unsupported parameter: 'max_completion_tokens' is not supported with this model", False),
        ("Unsupported value: 'temperature' does not support 0.5 with this model", False),
        ("max_tokens must be between 1 and 8192", False),
    ],
)
def test_an_error_about_the_name_of_the_limit_is_told_from_one_about_its_value(error, expected):
    assert refuses_field("max_tokens", error) == expected


@pytest.mark.parametrize("status", [400, 422])
def test_the_name_of_the_output_limit_is_learnt_from_the_endpoint_once(unify, server, rows, tmp_path, status):
    server.refuse = knows_only("max_completion_tokens", "max_tokens", status)
    assert unify("--concurrency", "1") == 0
    assert len(rows("pairs.jsonl")) == 5
    assert [("max_tokens" in a.body, "max_completion_tokens" in a.body) for a in server.arrivals[:2]] == [
        (True, False),
        (False, True),
    ]
    assert len(server.arrivals) == 11
    assert json.loads((tmp_path / "report.json").read_text())["client"]["failed_requests"] == {"max_tokens refused": 1}


def test_many_requests_in_flight_learn_the_name_together(unify, server, large, rows):
    server.latency = 0.05
    server.refuse = knows_only("max_completion_tokens", "max_tokens")
    assert unify() == 0
    assert len(rows("pairs.jsonl")) == 60
    assert sum("max_tokens" in a.body for a in server.arrivals) <= HANDFUL


def test_the_name_of_the_output_limit_can_be_given(unify, server):
    assert unify("--max-tokens-field", "max_output_tokens", "--max-output-tokens", "77") == 0
    assert {a.body["max_output_tokens"] for a in server.arrivals} == {77}
    assert not any("max_tokens" in a.body or "max_completion_tokens" in a.body for a in server.arrivals)


def test_an_endpoint_that_refuses_both_names_stops_the_run_with_its_own_words(unify, server, large, capsys):
    server.refuse = lambda arrival: (400, {"error": f"unknown field {next(n for n in arrival.body if n.startswith('max_'))}"})
    assert unify() == 1
    message = capsys.readouterr().err
    assert "unknown field max_" in message and "--max-tokens-field" in message
    assert len(server.arrivals) <= 3 * HANDFUL


def test_further_fields_of_a_request_reach_the_endpoint_and_belong_to_a_calls_identity(unify, server):
    assert unify("--extra-body", '{"enable_thinking": false, "chat_template_kwargs": {"enable_thinking": false}}') == 0
    assert all(a.body["enable_thinking"] is False and a.body["chat_template_kwargs"] for a in server.arrivals)
    assert unify("--extra-body", '{"chat_template_kwargs": {"enable_thinking": false}, "enable_thinking": false}') == 0
    assert len(server.arrivals) == 10
    assert unify() == 0
    assert len(server.arrivals) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{enable_thinking: false}", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"model": "x"}', "must not hold 'model'; give --model"),
        ('{"max_completion_tokens": 5}', "give --max-new-tokens"),
        ('{"stream": true}', "leave it out"),
        ('{"temperature": 1}', "give --temperature"),
    ],
)
def test_an_extra_body_that_cannot_be_is_refused_before_any_call(unify, server, capsys, text, message):
    assert unify("--extra-body", text) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert server.arrivals == []


@pytest.mark.parametrize(
    "parts",
    [
        lambda text: [{"type": "text", "text": text}],
        lambda text: [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}],
        lambda text: [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": text}],
        lambda text: [{"type": "output_text", "text": text, "annotations": []}],
        lambda text: [text],
        lambda text: [{"text": text}],
    ],
)
def test_a_content_in_parts_is_read_without_its_reasoning(unify, server, rows, parts):
    def shape(arrival, completion):
        message_of(completion)["content"] = parts(plain_text(arrival))
        return completion

    assert unify() == 0
    expected = (rows("pairs.jsonl"), len(server.arrivals))
    server.shape = shape
    server.model = "second"
    assert unify("--model", "second") == 0
    assert (rows("pairs.jsonl"), len(server.arrivals)) == (expected[0], 2 * expected[1])


def test_reasoning_in_a_field_of_its_own_is_not_read(unify, server, rows):
    def shape(arrival, completion):
        message_of(completion).update(reasoning_content="Hm.", reasoning="Hm.", reasoning_details=[{"text": "Hm."}])
        return completion

    server.shape = shape
    assert unify() == 0
    assert "Hm." not in json.dumps(rows("pairs.jsonl")) and len(rows("pairs.jsonl")) == 5


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_refusal_makes_no_pair_and_is_counted_by_name(unify, server, rows, in_parts):
    def shape(arrival, completion):
        if "liver" in arrival.passage:
            words = "I cannot write about the liver."
            parts = {"content": [{"type": "refusal", "refusal": words}]}
            message_of(completion).update(parts if in_parts else {"content": None, "refusal": words})
        return completion

    server.shape = shape
    assert unify() == 0
    assert [(row["id"], row["reason"]) for row in rows("pairs.rejected.jsonl")] == [("liver", "finish_reason=refusal")]


@pytest.mark.parametrize("finish", ["stop", "eos", "eos_token", "stop_sequence", "end_turn", "STOP", "COMPLETE", "normal"])
def test_every_name_of_a_whole_text_is_accepted(unify, server, rows, finish):
    server.finish = finish
    assert unify() == 0
    assert len(rows("pairs.jsonl")) == 5


HALF = [
    "insufficient_system_resource",
    "error",
    "abort",
    "tool_calls",
    "network_error",
    "model_length",
    "timeout",
    None,
    "",
    "cancelled",
]


@pytest.mark.parametrize("finish", HALF)
def test_every_other_end_rejects_its_text_by_name(unify, server, rows, finish):
    def shape(arrival, completion):
        if "liver" in arrival.passage:
            completion["choices"][0]["finish_reason"] = finish
        return completion

    server.shape = shape
    assert unify() == 0
    assert [(r["id"], r["reason"]) for r in rows("pairs.rejected.jsonl")] == [("liver", f"finish_reason={finish or 'null'}")]
    calls = len(server.arrivals)
    assert unify("--accept-finish", finish or "null") == 0  # and needs no call but the one for the answer
    assert len(rows("pairs.jsonl")) == 5
    assert len(server.arrivals) == calls + 1


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens"])
def test_every_name_of_a_cut_text_is_truncated(unify, server, rows, finish):
    def shape(arrival, completion):
        completion["choices"][0]["finish_reason"] = finish if "liver" in arrival.passage else "stop"
        return completion

    server.shape = shape
    assert unify() == 0
    assert [(r["id"], r["reason"]) for r in rows("pairs.rejected.jsonl")] == [("liver", "truncated")]


def thinking_never_ends(arrival):
    return f"<think>Let me see. {plain_text(arrival)}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finish": "length"}, ["truncated 8", "--max-new-tokens 2,048: raise it"]),
        ({"finish": "done"}, ["finish_reason=done 8", "--accept-finish done"]),
        ({"text": thinking_never_ends}, ["reasoning 8", "--extra-body"]),
        ({"text": lambda arrival: "<think>All of it.</think>"}, ["empty 8", "raise --max-new-tokens"]),
        ({"text": lambda arrival: ""}, ["empty 8", "empty text"]),
        ({"model": "gpt-4o-2024-08-06"}, ["wrong model 8", "--accept-model gpt-4o-2024-08-06"]),
        ({"shape": lambda arrival, completion: {"error": {"message": "no such model"}}}, ["wrong shape 8", "no such model"]),
        ({"refuse": lambda arrival: (400, {"error": "enable_thinking must be set to false"})}, ["400 8", "enable_thinking"]),
        ({"refuse": lambda arrival: (400, {"error": "'temperature' does not support 0.5"})}, ["400 8", "--temperature"]),
    ],
)  # fmt: skip
def test_a_fault_that_every_reply_shows_stops_the_run_after_a_handful(unify, server, large, rows, capsys, change, words):
    server.latency = 0.02
    fresh = {name: getattr(server, name) for name in change}
    for name, value in change.items():
        setattr(server, name, value)
    assert unify() == 1
    message = " ".join(capsys.readouterr().err.split())
    assert all(word in message for word in (*words, "not one of the first 8 replies to the question step"))
    assert len(server.arrivals) <= 2 * HANDFUL
    for name, value in fresh.items():
        setattr(server, name, value)
    # What was got stays: a larger limit, another name or a mended endpoint continues.
    assert unify("--max-new-tokens", "4096", "--accept-finish", "done", "--retry-rejected") == 0
    assert len(rows("pairs.jsonl")) >= 60 - HANDFUL


def test_answers_that_are_all_cut_stop_the_run_though_every_question_is_whole(unify, server, large, capsys):
    server.latency = 0.02

    def shape(arrival, completion):
        completion["choices"][0]["finish_reason"] = "length" if arrival.step == "answer" else "stop"
        return completion

    server.shape = shape
    assert unify() == 1
    assert "not one of the first 8 replies to the answer step" in " ".join(capsys.readouterr().err.split())
    assert [a.step for a in server.arrivals].count("answer") <= 2 * HANDFUL


def test_one_usable_reply_is_enough(unify, server, large, rows):
    server.text = lambda arrival: (
        plain_text(arrival) if arrival.passage.startswith("Drug alpha2 ") else thinking_never_ends(arrival)
    )
    assert unify("--concurrency", "1") == 0
    assert len(rows("pairs.rejected.jsonl")) == 59


def test_a_prompt_that_the_endpoints_rules_block_is_no_fault_of_the_run(unify, server, large, rows):
    error = {"error": {"message": "The response was filtered …", "code": "content_filter", "status": 400}}
    server.refuse = lambda arrival: (400, error) if "alpha59 " not in arrival.passage else None
    assert unify() == 0
    assert {row["reason"] for row in rows("pairs.rejected.jsonl")} == {"blocked"}
    assert len(rows("pairs.rejected.jsonl")) == 59


LIES = {
    "half a character": lambda c: c["choices"][0]["message"].update(content="Why \ud83d?"),
    "uncountable tokens": lambda c: c.update(usage={"prompt_tokens": 10**40, "completion_tokens": -5}),
    "tokens that are no numbers": lambda c: c.update(usage={"prompt_tokens": "many", "completion_tokens": [1]}),
    "infinite tokens": lambda c: c.update(usage={"prompt_tokens": float("inf"), "completion_tokens": float("nan")}),
    "usage of another kind": lambda c: c.update(usage=[1]),
    "no message": lambda c: c["choices"][0].update(message=None),
    "choices of another kind": lambda c: c.update(choices={"0": 1}),
    "content of another kind": lambda c: c["choices"][0]["message"].update(content={"text": 1}),
    "a picture": lambda c: c["choices"][0]["message"].update(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
    "parts of no kind": lambda c: c["choices"][0]["message"].update(content=[None, 5]),
    "a model of another kind": lambda c: c.update(model=[1]),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_endpoint_that_lies_costs_a_try_and_no_traceback(unify, server, rows, lie):
    def shape(arrival, completion):
        if arrival.nth == 0 and "liver" in arrival.passage:
            LIES[lie](completion)
        return completion

    server.shape = shape
    assert unify() == 0
    assert {row["id"] for name in ("pairs.jsonl", "pairs.rejected.jsonl") for row in rows(name)} == set(PASSAGES)
    assert len(rows("pairs.jsonl")) == 5


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=%s\r\nContent-Encoding: %s\r\nContent-Length: %s\r\n\r\n{}"
RAW = {
    "no HTTP": b"hello\r\n\r\n",
    "a status of no kind": b"HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n",
    "a length below zero": OK % (b"utf-8", b"identity", b"-5"),
    "a length too small": OK % (b"utf-8", b"identity", b"1"),
    "a length too large": OK % (b"utf-8", b"identity", b"99"),
    "no encoding of this name": OK % (b"utf-99", b"identity", b"2"),
    "not the encoding it says": OK % (b"utf-16", b"identity", b"2"),
    "not compressed as it says": OK % (b"utf-8", b"gzip", b"2"),
    "chunks of no length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}",
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "nesting without end": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
}


@pytest.mark.parametrize("kind", RAW)
def test_what_is_no_reply_at_all_costs_a_try_and_shows_no_key(unify, server, rows, capsys, kind):
    server.raw = RAW[kind]
    server.fault = lambda arrival: "raw" if arrival.nth == 0 else None
    assert unify("--timeout", "5") == 0
    assert (len(rows("pairs.jsonl")), len(server.arrivals)) == (5, 20)
    server.fault = lambda arrival: "raw"
    assert unify("--domain", "law", "--retries", "0", "--timeout", "5") == 1
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err
