"""The parts of unify on their own: prompts, forecast, the live line, passages that need no call."""

from collections import Counter

import pytest

from data_tools.unify.filters import Filters
from data_tools.unify.forecast import Forecast
from data_tools.unify.passages import Passage
from data_tools.unify.pipeline import RunCounts, state_line
from data_tools.unify.prompting import FAITHFUL_CUTS, Cuts, Prompts, by_language
from data_tools.unify.rewriting import Rewriting, rewrite
from huatuo_jax.chat_client.budget import Caps, Prices
from huatuo_jax.chat_client.calls import Usage
from huatuo_jax.chat_client.client import ChatClient, ClientSettings
from huatuo_jax.chat_client.ledger import Ledger
from huatuo_jax.errors import ConfigError
from huatuo_jax.io.api_key import ApiKey


def test_the_original_cuts_the_passage_at_400_and_600_characters_and_escapes_line_breaks():
    text = "甲\n" * 400
    assert FAITHFUL_CUTS.apply("question", text) == ("甲\\n" * 400)[:400]
    assert FAITHFUL_CUTS.apply("answer", text) == text[:600]
    assert Cuts().apply("question", text) == text


def test_a_dollar_sign_or_placeholder_in_a_passage_stays_as_it_is():
    user = Prompts().answer("en", "costs $5 ${question}", "Why $x?")[-1]["content"]
    assert "costs $5 ${question}" in user
    assert "Why $x?" in user


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[system]\nx ${passage}\n", "no section"),
        ("[user]\nno placeholder\n", "lacks the placeholders"),
        ("[user]\n${passage} ${author}\n", "unknown placeholders"),
        ("[user]\n${passage} costs $ 5\n", "lone"),
    ],
)
def test_a_template_of_ones_own_is_checked(tmp_path, text, message):
    (tmp_path / "question.zh.v1.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Prompts(folder=tmp_path)


def test_names_are_given_for_all_languages_or_one():
    assert by_language("--domain", ["law"]) == {"zh": "law", "en": "law"}
    assert by_language("--domain", ["zh=法律"]) == {"zh": "法律"}
    with pytest.raises(ConfigError, match="given twice"):
        by_language("--domain", ["law", "zh=法律"])
    with pytest.raises(ConfigError, match="blank"):
        by_language("--domain", ["zh= "])


def test_the_forecast_counts_both_calls_and_their_templates():
    how = Rewriting(Prompts(), Filters())
    forecast = Forecast(how, 2048)
    for number in range(10):
        forecast.add(Passage(str(number), "books", "abcd " * 200))
    report = forecast.report({}, Caps(tokens=1000, prices=Prices(1, 2)), 60)
    prompts = how.prompts
    exact = sum(len(m["content"]) for m in prompts.question("en", "") + prompts.answer("en", "", "")) / 4 + 2 * 250
    assert report["calls"] == 20
    assert report["prompt_tokens"] / 10 == pytest.approx(exact, rel=0.15)
    assert report["output_tokens"] == 10 * (45 + 200)
    assert not report["within_caps"]
    assert report["least_hours"] == pytest.approx(20 / 3600, abs=0.01)


def test_the_forecast_uses_what_answers_in_the_ledger_took():
    forecast = Forecast(Rewriting(Prompts(), Filters(), question_only=True), 2048)
    for number in range(10):
        forecast.add(Passage(str(number), "books", "abcd " * 200))
    totals = {"question_calls": 200, "question_prompt_tokens": 200 * 300, "question_output_tokens": 200 * 20}
    report = forecast.report(totals, Caps(), None)
    assert (report["prompt_tokens"], report["output_tokens"]) == (3000, 200)
    assert report["based_on"] == "answers in the ledger"


def test_the_live_line_says_done_rate_cost_time_left_and_rejects(tmp_path):
    with Ledger(tmp_path / "l.sqlite") as ledger:
        client = ChatClient(ClientSettings("http://host/v1", "m"), Caps(prices=Prices(1, 2)), ApiKey(""), ledger)
    client.budget.spent = Usage(2_000_000, 500_000)
    client.counts.replies, client.counts.failures = 120, Counter({"429": 3})
    counts = RunCounts(total=400, done=100, replayed=40, rejects=Counter(leak=2), started=1_000)
    assert state_line(counts, client, now=1_060) == (
        "100/400 passages (25.0%) · 2.0 calls/s · 2,500,000 tokens · cost 3.00 · ETA 0:05:00 · rejects: leak 2 · "
        "failed requests: 429 3"
    )


@pytest.mark.parametrize(("text", "reason"), [(" \n ", "passage_blank"), ("x" * 8001, "passage_too_long")])
def test_passages_that_need_no_call(text, reason):
    with pytest.raises(StopIteration) as end:
        next(rewrite(Passage("1", "s", text), Rewriting(Prompts(), Filters())))
    assert end.value.value.reason == reason
