"""The chat client: retries and pauses, budget, ledger, the key."""

import asyncio
import datetime
import email.utils
import functools
import re
import sqlite3
import time
import traceback
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from huatuo_jax.chat_client.budget import Budget, Caps, Prices, estimated_tokens, most_usage
from huatuo_jax.chat_client.calls import Call, Failed, Reply, Usage, retry_after
from huatuo_jax.chat_client.client import ChatClient, ClientSettings, Pacer
from huatuo_jax.chat_client.ledger import Ledger
from huatuo_jax.errors import ConfigError, DataError, StoppedError
from huatuo_jax.io.api_key import ApiKey, key_from_environment

CALL = Call("books/1", "question", 0, 0, [{"role": "user", "content": "?"}])


@pytest.mark.parametrize(("text", "seconds"), [("2", 2.0), ("0.5", 0.5), ("soon", None), ("", None)])
def test_retry_after_in_seconds(text, seconds):
    assert retry_after({"retry-after": text}) == seconds


def test_retry_after_in_milliseconds_and_as_a_date():
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 25 < retry_after({"retry-after": email.utils.format_datetime(later, usegmt=True)}) <= 30


def test_backoff_doubles_up_to_a_minute_with_jitter():
    pacer = Pacer()
    for retry, most in ((0, 0.5), (1, 1), (4, 8), (20, 60)):
        drawn = [pacer.backoff(retry) for _ in range(200)]
        assert most / 2 <= min(drawn) < max(drawn) <= most
        assert len(set(drawn)) > 100


def test_a_stop_wakes_who_sleeps():
    async def scene() -> float:
        pacer = Pacer()
        sleeper = asyncio.create_task(pacer.sleep(60))
        await asyncio.sleep(0.01)
        start = time.monotonic()
        pacer.stop(StoppedError("enough"))
        with pytest.raises(StoppedError, match="enough"):
            await sleeper
        return time.monotonic() - start

    assert asyncio.run(scene()) < 5


def test_a_request_waits_for_those_in_flight_before_the_budget_says_no():
    async def scene() -> None:
        budget = Budget(Caps(tokens=100))
        await budget.reserve(Usage(40, 40))
        second = asyncio.create_task(budget.reserve(Usage(40, 40)))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(Usage(40, 40), Usage(10, 5))
        await second
        budget.settle(Usage(40, 40), Usage(10, 5))
        with pytest.raises(StoppedError, match="30 tokens are spent and the next call may take 71"):
            await budget.reserve(Usage(40, 31))

    asyncio.run(scene())


def test_money_is_counted_per_million_tokens():
    budget = Budget(Caps(cost=1, prices=Prices(0.5, 2)), Usage(400_000, 300_000))
    assert budget.cost == pytest.approx(0.8)
    with pytest.raises(StoppedError, match="--max-cost 1"):
        asyncio.run(budget.reserve(Usage(0, 100_001)))


def test_answers_are_found_by_passage_step_try_prompt_and_model(tmp_path):
    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(ledger.put(CALL, "m", Reply("why", "stop", Usage(3, 4))))
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.find(CALL, "m") == Reply("why", "stop", Usage(3, 4))
        others = [
            Call("books/2", "question", 0, 0, CALL.messages),
            Call("books/1", "answer", 0, 0, CALL.messages),
            Call("books/1", "question", 1, 0, CALL.messages),
            Call("books/1", "question", 0, 1, CALL.messages),
            Call("books/1", "question", 0, 0, [{"role": "user", "content": "!"}]),
        ]
        assert [ledger.find(other, "m") for other in others] == [None] * 5
        assert ledger.find(CALL, "another") is None
        assert ledger.totals()["prompt_tokens"] == 3


def test_answers_that_arrive_together_share_commits(tmp_path):
    async def scene(ledger: Ledger) -> None:
        calls = [Call(f"books/{i}", "question", 0, 0, CALL.messages) for i in range(500)]
        await asyncio.gather(*(ledger.put(call, "m", Reply("why", "stop", Usage(1, 1))) for call in calls))
        assert all(ledger.find(call, "m") for call in calls)

    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(scene(ledger))
        assert ledger.commits < 250
        assert ledger.totals()["prompt_tokens"] == 500


def test_every_commit_reaches_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Every commit is made with the write-ahead log and `synchronous` FULL (2), as SQLite itself says where it is asked."""
    found = []

    class Watched(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement.startswith("COMMIT"):
                settings = (super(Watched, self).execute(f"PRAGMA {name}") for name in ("journal_mode", "synchronous"))
                found.append([setting.fetchone()[0] for setting in settings])
            return super().execute(statement, *values)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Watched))
    with Ledger(tmp_path / "l.sqlite") as ledger:
        asyncio.run(ledger.put(CALL, "m", Reply("why", "stop", Usage(3, 4))))
    assert found == [["wal", 2]]


def test_a_full_disk_ends_the_run_and_keeps_what_is_durable(tmp_path, monkeypatch):
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count=30")
        return connection

    async def fill(ledger: Ledger) -> int:
        for number in range(1000):
            await ledger.put(Call(f"books/{number}", "answer", 0, 0, CALL.messages), "m", Reply("x" * 2000))
        return number

    monkeypatch.setattr(sqlite3, "connect", small)
    with Ledger(tmp_path / "l.sqlite") as ledger, pytest.raises(DataError, match=r"full.*make room"):
        asyncio.run(fill(ledger))
    monkeypatch.undo()
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.find(Call("books/0", "answer", 0, 0, CALL.messages), "m")


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "a.sqlite").write_text("something else, and long enough to be looked at as a database header" * 20)
    with sqlite3.connect(tmp_path / "b.sqlite") as other:
        other.execute("CREATE TABLE t (x)")
    for name, message in (("a.sqlite", "cannot be used as a ledger"), ("b.sqlite", "another program")):
        with pytest.raises(ConfigError, match=message), Ledger(tmp_path / name):
            pass


def test_openai_itself_needs_a_key_and_other_servers_do_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        key_from_environment("https://api.openai.com/v1", "https://api.openai.com/v1")
    assert key_from_environment("http://localhost/v1", "https://api.openai.com/v1").reveal() == "none"
    assert "secret" not in repr(ApiKey("secret"))


def test_an_endpoint_that_quotes_the_key_in_an_unknown_shape_is_quoted_without_it(tmp_path):
    key = "sk-test-1f6f0c8e"

    async def quote(request: web.Request) -> web.Response:
        return web.json_response({"error": f"bad {request.headers['Authorization'].replace('Bearer', 'key')}"})

    async def ask(url: str) -> None:
        with Ledger(tmp_path / "l.sqlite") as ledger:
            async with ChatClient(ClientSettings(url, "m", retries=0), Caps(), ApiKey(key), ledger) as client:
                await client.ask(CALL)

    async def scene() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", quote)
        async with TestServer(app) as server:
            await ask(str(server.make_url("/v1")))

    with pytest.raises(Failed) as failed:
        asyncio.run(scene())
    assert re.search(r"no chat completion.*bad key \[API key\]", failed.value.message)
    assert key not in "".join(traceback.format_exception(failed.value))


def test_tokens_of_chinese_and_other_characters_differ():
    assert estimated_tokens("心动周期abcd") == pytest.approx(4 + 1)
    assert most_usage([{"role": "user", "content": "心"}], 5).prompt >= 3


def test_a_ledger_of_an_earlier_version_goes_on_working(tmp_path):
    """Tables, key and hash as version 1 wrote them: who has paid for replies finds them."""
    prompt = bytes.fromhex("4c76dfc902f8ac6be54b34394b50d94a")
    with sqlite3.connect(tmp_path / "l.sqlite") as old:
        old.executescript(
            "PRAGMA application_id=1752523124; PRAGMA user_version=1;"
            "CREATE TABLE calls (passage TEXT, step TEXT, round INTEGER, attempt INTEGER, prompt BLOB, model TEXT,"
            " text TEXT NOT NULL, finish TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,"
            " PRIMARY KEY (passage, step, round, attempt, prompt, model)) WITHOUT ROWID;"
            "CREATE TABLE failures (passage TEXT, step TEXT, reason TEXT, prompt_tokens INTEGER NOT NULL,"
            " output_tokens INTEGER NOT NULL);"
            "CREATE TABLE totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
            "INSERT INTO totals VALUES ('question_calls', 1), ('prompt_tokens', 3), ('output_tokens', 4), ('.round', 2)"
        )
        old.execute("INSERT INTO calls VALUES ('books/1', 'question', 0, 0, ?, 'm', 'why', 'stop', 3, 4)", (prompt,))
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.find(CALL, "m") == Reply("why", "stop", Usage(3, 4))
        assert (ledger.spent(), ledger.mark("round"), ledger.has_replies()) == (Usage(3, 4), 2, True)
    assert CALL.identity("m") == "d66d512bf5e0d845f54f19b156bafee5"
