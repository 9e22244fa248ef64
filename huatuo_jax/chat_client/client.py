"""Sends requests to any OpenAI-compatible endpoint: when they may go out, how often they are tried again, what stops the run.

The openai client on aiohttp carries the requests; its own retries are off, so that each request is counted, paced and charged to
the budget here. A reply is usable if it is JSON of the expected shape, from the model that was asked for, with a text in it. What
is not is tried again with backoff and jitter, except where trying again cannot help: then the whole run stops.
What must hold: `ask` returns a reply only once it is on the disk, so a run that is killed pays for no reply twice.
Next to read: `ledger.py`; who makes the calls: `data_tools/unify/pipeline.py`.
"""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import aiohttp
import httpx2
import openai

from huatuo_jax.chat_client.budget import Budget, Caps, estimated_usage, most_usage
from huatuo_jax.chat_client.calls import Call, Failed, Refused, Reply, Retry, Stop, Usage, parse_reply, raise_for_status
from huatuo_jax.chat_client.ledger import Ledger
from huatuo_jax.config import require
from huatuo_jax.errors import HuatuoError
from huatuo_jax.io.api_key import ApiKey

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
"""Seconds before the first retry, and the most between two."""
LONGEST_PAUSE = 3600.0
"""Seconds; an endpoint that asks for a longer pause (a daily limit, say) ends the run, which can be continued then."""
FAILED_IN_A_ROW = 20
"""Calls that fail after all their tries, without one success between, before the run stops."""


@dataclass(frozen=True)
class ClientSettings:
    """Where and how requests go.

    Attributes:
      timeout: seconds for a whole request, its body included.
      retries: how often one call is tried again.
      accept_models: other names under which the endpoint may answer for `model`.
      temperature: None leaves the endpoint's default.
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

    def body(self) -> dict[str, Any]:
        """What every request holds besides its messages."""
        # OpenAI's own newer models refuse the name of the limit that every other server takes.
        limit = "max_completion_tokens" if httpx2.URL(self.base_url).host == "api.openai.com" else "max_tokens"
        sampling = {} if self.temperature is None else {"temperature": self.temperature}
        return {"model": self.model, limit: self.max_new_tokens, **sampling}


class Pacer:
    """Says when the next request may go out, and wakes all who wait when the run is to stop.

    Attributes:
      stopping: the error to end with once no request is in flight; None while the run goes on.
    """

    def __init__(self, requests_per_minute: float | None = None, backoff_scale: float = 1.0) -> None:
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._scale = backoff_scale
        self._next = self._paused_until = 0.0
        self._stop = asyncio.Event()  # what everybody who sleeps waits for
        self.stopping: HuatuoError | None = None

    def stop(self, error: HuatuoError) -> None:
        """Lets no request go out any more; of several errors the first one counts."""
        if self.stopping is None:
            self.stopping = error
            self._stop.set()

    def check(self) -> None:
        """Raises the error that the run ends with, if it is to end."""
        if self.stopping is not None:
            raise self.stopping

    def pause(self, seconds: float) -> None:
        """Holds every request back for so long (Retry-After)."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    @property
    def paused_for(self) -> float:
        """Seconds of pause that are left."""
        return max(0.0, self._paused_until - time.monotonic())

    async def turn(self) -> None:
        """Waits until this request may go out.

        Raises:
          HuatuoError: the run stops.
        """
        self.check()
        while pause := self.paused_for:
            await self.sleep(pause)
        if self._interval:
            # Each request takes the next free moment: at 600 a minute they go out 0.1 s apart, however many wait.
            now = time.monotonic()
            at = max(self._next, now)
            self._next = at + self._interval
            if at > now:
                await self.sleep(at - now)
                if self.paused_for:  # a pause that began meanwhile holds for this request too
                    await self.turn()

    async def sleep(self, seconds: float) -> None:
        """Sleeps; raises at once when the run stops."""
        self.check()
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
        self.check()

    def backoff(self, retry: int) -> float:
        """Seconds before retry 0, 1, …: doubled each time up to a minute, the later half of it drawn at random."""
        # Without jitter, requests that an overloaded endpoint turned away together would come back together.
        return self._scale * min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(retry, 30)) * random.uniform(0.5, 1.0)


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

    def __init__(self, settings: ClientSettings, caps: Caps, key: ApiKey, ledger: Ledger) -> None:
        """Prepares a client; the ledger says what its earlier runs spent, and takes the replies."""
        self.settings, self.counts = settings, ClientCounts()
        self._body, self._key, self._ledger = settings.body(), key, ledger
        self.pacer = Pacer(settings.requests_per_minute, settings.backoff_scale)
        self.budget = Budget(caps, ledger.spent())
        # An endpoint that has answered before is no wrong address: what looks like one then is a passing fault.
        self._works = ledger.has_replies()
        self._failed_in_a_row = 0  # one bad passage is no reason to stop; a dead endpoint is

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
        try:
            reply = await self._tried(call)
        except Failed as failed:
            self._failed_in_a_row += 1
            if self._failed_in_a_row < FAILED_IN_A_ROW:
                raise
            raise HuatuoError(
                f"{self._failed_in_a_row} calls in a row failed after all their tries, the last because {failed.message}; "
                "every answer so far is kept: correct the cause and give the same command again"
            ) from None
        # Not before the reply is on the disk does the call count as made; until then a kill repeats it.
        await self._ledger.put(call, self.settings.model, reply)
        self._failed_in_a_row = 0
        return reply

    async def _tried(self, call: Call) -> Reply:
        """Sends the request until a try succeeds or no try is left."""
        fault = Retry("not tried", "")
        for retry in range(self.settings.retries + 1):
            if retry:
                await self.pacer.sleep(self._delay(fault, retry - 1))
            await self.pacer.turn()
            try:
                return await self._charged(call)
            except Retry as error:
                fault = error
            except Refused as error:
                # Before the first reply a refusal may mean wrong settings, and must not be kept as the reply to this call.
                if not self._works:
                    raise Failed("refused", error.message) from None
                return Reply("", "refused")
            except Stop as error:
                # Every other request would meet the same: none may go out any more.
                stop = HuatuoError(f"{error.message}; every answer so far is kept: the same command continues")
                self.pacer.stop(stop)
                raise stop from None
        raise Failed(fault.reason, fault.message)

    def _delay(self, fault: Retry, retry: int) -> float:
        """Seconds before the next try; a pause that the endpoint asks for holds for every request."""
        if fault.wait is not None:
            if fault.wait > LONGEST_PAUSE:
                self.pacer.stop(
                    HuatuoError(f"the endpoint asks to wait {fault.wait:,.0f} s; try again then: every answer is kept")
                )
            self.pacer.pause(fault.wait)
        return max(fault.wait or 0.0, self.pacer.backoff(retry))

    async def _charged(self, call: Call) -> Reply:
        """Sends one request, counts it and charges it to the budget."""
        limit = self.settings.max_new_tokens
        most, used = most_usage(call.messages, limit), Usage()
        await self.budget.reserve(most)
        try:
            self.pacer.check()  # the run may have stopped while this request waited for the budget
            self.counts.requests += 1
            reply = await self._send(call)
            used = reply.usage
            self.counts.replies += 1
            self._works = True
            return reply
        except (Retry, Refused) as fault:
            self.counts.failures[fault.reason] += 1
            if fault.billed:
                used = estimated_usage(call.messages, limit)
                self._ledger.add_failure(call, fault.reason, used)
            raise
        finally:
            # Whatever happened: what stays reserved would hold back other requests for ever.
            self.budget.settle(most, used)

    async def _send(self, call: Call) -> Reply:
        # Errors are raised `from None`: the library's own exceptions hold the request, and with it the key.
        settings, hide = self.settings, self._key.hide
        try:
            async with asyncio.timeout(settings.timeout):
                response = await self._client.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    body=self._body | {"messages": call.messages},
                    # An endpoint that knows this header does not answer (and charge) the same call twice.
                    options={"headers": {"Idempotency-Key": call.identity(settings.model)}},
                )
        except TimeoutError:
            raise Retry("timeout", f"no answer within {settings.timeout:g} s", billed=True) from None
        except openai.APIStatusError as error:
            raise_for_status(error.response.status_code, error.response.headers, hide(error.response.text))
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
            causes = _causes(error)
            message = hide(f"no connection to {settings.base_url} ({type(causes[-1]).__name__}: {causes[-1]})")
            # A connection that was never made costs nothing; one that broke may have carried the request.
            sent = not any(isinstance(cause, aiohttp.ClientConnectorError) for cause in causes)
            raise Retry("connection", message, billed=sent) from None
        try:
            body = json.loads(response.content)
        except ValueError:
            body = None
        text = hide(response.text if body is None else json.dumps(body, ensure_ascii=False))
        reply = parse_reply(body, text, (settings.model, *settings.accept_models), self._works)
        # Some servers count no tokens; the budget needs a number all the same.
        usage = reply.usage if reply.usage.prompt else estimated_usage(call.messages, settings.max_new_tokens, reply.text)
        return replace(reply, text=self._key.hide_in_answer(reply.text), usage=usage)


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, the first cause last."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain
