"""Sends requests to any OpenAI-compatible endpoint: when they may go out, how often they are tried again, what stops the run.

The openai client on aiohttp carries the requests; its own retries are off, so that each request is counted, paced and charged to
the budget here. A reply is usable if it is JSON of the expected shape, from the model that was asked for, with a text in it. What
is not is tried again with backoff and jitter, except where trying again cannot help: then the whole run stops.
What must hold: `ask` returns a reply only once it is on the disk, so a run that is killed pays for no reply twice; two calls with
the same key that are in flight together are one request.
Next to read: `pacing.py`, `ledger.py`; who makes the calls: `data_tools/unify/pipeline.py`.
"""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import aiohttp
import httpx2
import openai

from huatuo_jax.chat_client.budget import Budget, Caps, estimated_usage, most_usage
from huatuo_jax.chat_client.calls import (
    BLOCKED,
    LIMIT_FIELDS,
    QUOTED,
    Call,
    Failed,
    Fault,
    Generation,
    Refused,
    Reply,
    Retry,
    Stop,
    Usage,
    parse_reply,
    raise_for_status,
    refuses_field,
)
from huatuo_jax.chat_client.ledger import Ledger
from huatuo_jax.chat_client.pacing import Pacer, Trial
from huatuo_jax.config import require
from huatuo_jax.errors import HuatuoError
from huatuo_jax.io.api_key import ApiKey

LONGEST_PAUSE = 3600.0
"""Seconds; an endpoint that asks for a longer pause (a daily limit, say) ends the run, which can be continued then."""
FAILED_IN_A_ROW = 20
"""Calls that fail after all their tries, without one success between, before the run stops."""

AUTO = "auto"
"""The output limit goes by its older name, and by the other one if the endpoint refuses that."""
_SHOWN_BY_EVERY_REPLY = {
    "wrong model": "{0}",
    "empty": "{0}",
    "wrong shape": "{0}; check --base-url and --extra-body",
    "broken JSON": "{0}; check --base-url and --extra-body",
}
"""Faults that a setting may be the cause of, and what to do: they end a run that has had no usable reply (`Trial`)."""

Judge = Callable[[Call, Reply], tuple[str, str] | None]
"""The fault for which a reply cannot be used, "" if it can, and what to do if every reply has it; None: it says nothing."""


@dataclass(frozen=True)
class ClientSettings:
    """Where and how requests go.

    Attributes:
      timeout: seconds for a whole request, its body included.
      retries: how often one call is tried again.
      accept_models: other names under which the endpoint may answer for `model`.
      temperature: None leaves the endpoint's default.
      extra_body: further fields of every request, as the endpoint documents them ({"enable_thinking": false}, say).
      max_tokens_field: the name of the output limit in a request; AUTO learns it from the endpoint.
      requests_per_minute: the account's limit; None = none.
      backoff_scale: multiplies the waits between retries (tests make them short).
    """

    base_url: str
    model: str
    concurrency: int = 64
    timeout: float = 120.0
    retries: int = 8
    max_new_tokens: int = 2048
    temperature: float | None = None
    accept_models: tuple[str, ...] = ()
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    max_tokens_field: str = AUTO
    requests_per_minute: float | None = None
    backoff_scale: float = 1.0

    def __post_init__(self) -> None:
        url, rate = httpx2.URL(self.base_url), self.requests_per_minute
        require(
            url.scheme in ("http", "https") and bool(url.host) and not url.userinfo,
            "--base-url must look like https://host/v1, without user name or password in it",
        )
        require(bool(self.model.strip()), "--model is blank; name the model as the endpoint does")
        require(self.concurrency >= 1, f"--concurrency is {self.concurrency}; at least 1 request must be in flight")
        require(self.timeout > 0, f"--timeout is {self.timeout}; it is a number of seconds above 0")
        require(self.retries >= 0, f"--retries is {self.retries}; it must not be negative")
        require(self.max_new_tokens >= 1, f"--max-new-tokens is {self.max_new_tokens}; it must be at least 1")
        require(rate is None or rate > 0, f"--requests-per-minute is {rate}; it must be above 0")
        require(self.backoff_scale >= 0, f"--backoff-scale is {self.backoff_scale}; it must not be negative")

        require(
            bool(self.max_tokens_field.strip()), "--max-tokens-field is blank; it is a field's name, max_completion_tokens, say"
        )
        flags = {"model": "--model", "temperature": "--temperature", "messages": "--prompts", "stream": "", "n": ""}
        flags |= dict.fromkeys((*LIMIT_FIELDS, self.max_tokens_field), "--max-new-tokens")
        for name in self.extra_body:
            remedy = f"give {flags[name]}" if flags.get(name) else "leave it out: one whole reply is read"
            require(name not in flags, f"--extra-body must not hold {name!r}; {remedy}")

    @functools.cached_property
    def generation(self) -> Generation:
        """What a reply depends on besides its prompt; the address and the name of the limit are not among it."""
        return Generation(self.model, self.max_new_tokens, json.dumps(self._sampling(), sort_keys=True, ensure_ascii=False))

    def body(self, limit_field: str) -> dict[str, Any]:
        """What every request holds besides its messages."""
        return {"model": self.model, limit_field: self.max_new_tokens, **self._sampling()}

    def _sampling(self) -> dict[str, Any]:
        return ({} if self.temperature is None else {"temperature": self.temperature}) | dict(self.extra_body)


class _Renamed(Fault):
    """The endpoint knows the output limit by its other name, which requests have from now on."""


@dataclass
class ClientCounts:
    """What happened at the endpoint: requests sent, replies, and failed requests by reason ("429", "timeout", …)."""

    requests: int = 0
    replies: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return {"requests": self.requests, "answers": self.replies, "failed_requests": dict(self.failures.most_common())}


class ChatClient:
    """Asks for texts, many at a time, within the caps; use as an async context manager."""

    def __init__(self, settings: ClientSettings, caps: Caps, key: ApiKey, ledger: Ledger, judge: Judge | None = None) -> None:
        """Prepares a client; the ledger says what its earlier runs spent, and takes the replies.

        Args:
          judge: with it, a step's first requests go out a handful at a time, until one of them has a reply that can be used.
        """
        self.settings, self.counts = settings, ClientCounts()
        self._key, self._ledger, self._judge, self._generation = key, ledger, judge, settings.generation
        learned, given = settings.max_tokens_field == AUTO, settings.max_tokens_field
        # OpenAI's own newer models refuse the name of the limit that most other servers take.
        official = httpx2.URL(settings.base_url).host == "api.openai.com"
        self._other_field = LIMIT_FIELDS[not official] if learned else ""
        self._body = settings.body(LIMIT_FIELDS[official] if learned else given)
        self.pacer = Pacer(settings.requests_per_minute, settings.backoff_scale)
        self._trial = Trial(self.pacer)
        self.budget = Budget(caps, ledger.spent())
        # An endpoint that has answered before is no wrong address: what looks like one then is a passing fault.
        self._works = ledger.has_replies()
        self._failed_in_a_row = 0  # one bad passage is no reason to stop; a dead endpoint is
        self._asked: dict[str, asyncio.Future[Reply]] = {}

    async def __aenter__(self) -> "ChatClient":
        connections = self.settings.concurrency
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = openai.AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self._key.reveal(),
            max_retries=0,
            # `_send` limits the whole request; the library's time-outs begin anew with every chunk of a body that trickles in.
            timeout=None,
            http_client=openai.DefaultAioHttpClient(limits=limits, timeout=None),
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.close()

    async def ask(self, call: Call) -> Reply:
        """The endpoint's reply to a call; it is in the ledger when this returns.

        Raises:
          Failed: every try failed; another run may try the call again.
          HuatuoError: the run has to stop (the key is refused, the budget is reached, too many calls fail, …).
        """
        identity = call.identity(self._generation)
        if (asked := self._asked.get(identity)) is not None:  # two passages with the same text, in flight together
            return await asked
        asked = self._asked[identity] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._ask(call, identity)
            asked.set_result(reply)
            return reply
        except Exception as error:
            asked.set_exception(error)
            asked.exception()  # read here, or asyncio complains where nobody else waits
            raise
        finally:
            asked.cancel()  # does nothing to one that is done; else nobody may wait for ever
            del self._asked[identity]

    async def _ask(self, call: Call, identity: str) -> Reply:
        held = self._judge is not None and await self._trial.enter(call.step)
        try:
            reply = await self._tried(call, identity)
            # Not before the reply is on the disk does the call count as made; until then a kill repeats it.
            await self._ledger.put(call, self._generation, reply)
            if not self._trial.passed(call.step) and (verdict := self._judge(call, reply) if self._judge else ("", "")):
                self._trial.judge(call.step, *verdict)
        except Failed as failed:
            self._failed_in_a_row += 1
            if self._failed_in_a_row < FAILED_IN_A_ROW:
                raise
            raise HuatuoError(
                f"{self._failed_in_a_row} calls in a row failed after all their tries, the last because {failed.message}; "
                "every answer so far is kept: correct the cause and give the same command again"
            ) from None
        finally:
            if held:
                self._trial.leave(call.step)
        self._failed_in_a_row = 0
        return reply

    async def _tried(self, call: Call, identity: str) -> Reply:
        """Sends the request until a try succeeds or no try is left."""
        retry = 0
        while True:
            await self.pacer.turn()
            try:
                return await self._charged(call, identity)
            except _Renamed:
                continue  # not this call's fault, and no reason to wait
            except Retry as error:
                if remedy := _SHOWN_BY_EVERY_REPLY.get(error.reason):
                    self._trial.judge(call.step, error.reason, remedy.format(error.message))
                if retry == self.settings.retries:
                    raise Failed(error.reason, error.message) from None
                await self.pacer.sleep(self._delay(error, retry))
                retry += 1
            except Refused as error:
                if error.reason == BLOCKED:
                    return Reply("", BLOCKED)
                # Before a usable reply a refusal may mean wrong settings, and must not be kept as the reply to this call.
                if not self._trial.passed(call.step):
                    remedy = "correct --extra-body, --temperature, --max-new-tokens, --max-tokens-field or the server's settings"
                    self._trial.judge(call.step, error.reason, f"{error.message}; {remedy}")
                    raise Failed("refused", error.message) from None
                return Reply("", "refused")
            except Stop as error:
                # Every other request would meet the same: none may go out any more.
                stop = HuatuoError(f"{error.message}; every answer so far is kept: the same command continues")
                self.pacer.stop(stop)
                raise stop from None

    def _delay(self, fault: Retry, retry: int) -> float:
        """Seconds before the next try; a pause that the endpoint asks for holds for every request."""
        if fault.wait is not None:
            if fault.wait > LONGEST_PAUSE:
                self.pacer.stop(
                    HuatuoError(f"the endpoint asks to wait {fault.wait:,.0f} s; try again then: every answer is kept")
                )
            self.pacer.pause(fault.wait)
        return max(fault.wait or 0.0, self.pacer.backoff(retry))

    async def _charged(self, call: Call, identity: str) -> Reply:
        """Sends one request, counts it and charges it to the budget."""
        limit = self.settings.max_new_tokens
        most, used = most_usage(call.messages, limit), Usage()
        await self.budget.reserve(most)
        try:
            self.pacer.check()  # the run may have stopped while this request waited for the budget
            self.counts.requests += 1
            reply = await self._send(call, identity)
            used = reply.usage
            self.counts.replies += 1
            self._works = True
            return reply
        except (Retry, Refused, _Renamed) as fault:
            self.counts.failures[fault.reason] += 1
            if fault.billed:
                used = estimated_usage(call.messages, limit)
                self._ledger.add_failure(call, fault.reason, used)
            raise
        finally:
            # Whatever happened: what stays reserved would hold back other requests for ever.
            self.budget.settle(most, used)

    async def _send(self, call: Call, identity: str) -> Reply:
        # Errors are raised `from None`: the library's own exceptions hold the request, and with it the key.
        settings, hide, sent_body = self.settings, self._key.hide, self._body
        try:
            async with asyncio.timeout(settings.timeout):
                response = await self._client.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    body=sent_body | {"messages": call.messages},
                    # An endpoint that knows this header does not answer (and charge) the same call twice.
                    options={"headers": {"Idempotency-Key": identity}},
                )
        except TimeoutError:
            raise Retry("timeout", f"no answer within {settings.timeout:g} s", billed=True) from None
        except openai.APIStatusError as error:
            text = hide(_text(error.response))
            self._learn_field(sent_body, text)
            raise_for_status(error.response.status_code, error.response.headers, text)
        # Three libraries read what a server sends, and each has errors of its own for what is no HTTP: all of them are its fault.
        except Exception as error:
            causes = _causes(error)
            reason = f"{type(causes[-1]).__name__}: {str(causes[-1])[:QUOTED]}"
            # A connection that was never made costs nothing; one that broke may have carried the request.
            sent = not any(isinstance(cause, aiohttp.ClientConnectorError) for cause in causes)
            raise Retry("connection", hide(f"no connection to {settings.base_url} ({reason})"), billed=sent) from None
        try:
            body = json.loads(response.content)
        except (ValueError, RecursionError):
            body = None
        quote = lambda: hide(_text(response) if body is None else json.dumps(body, ensure_ascii=False))
        try:
            reply = parse_reply(body, quote, (settings.model, *settings.accept_models), self._works)
        except Fault as fault:
            fault.message = hide(fault.message)  # the model's name comes from the endpoint too
            raise
        # Some servers count no tokens; the budget needs a number all the same.
        usage = reply.usage if reply.usage.prompt else estimated_usage(call.messages, settings.max_new_tokens, reply.text)
        return replace(reply, text=self._key.hide_in_answer(reply.text), usage=usage)

    def _learn_field(self, sent_body: dict[str, Any], error: str) -> None:
        """Raises `_Renamed` if an endpoint's error is about the name of the output limit, and it has another one."""
        name = next(name for name in sent_body if name != "model")
        if not refuses_field(name, error):
            return
        if sent_body is self._body and self._other_field:
            self._body, self._other_field = self.settings.body(self._other_field), ""
        if sent_body is not self._body:
            raise _Renamed(f"{name} refused", error)


def _text(response: httpx2.Response) -> str:
    """A response's body as text, whatever encoding it claims to be in."""
    return response.content.decode("utf-8", "replace")


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, the first cause last."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain
