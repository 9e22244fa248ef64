"""Messages in, one usable answer out: requests to any OpenAI-compatible endpoint, with our own retries, each of them counted.

The openai client on aiohttp carries the requests; its own retries are off. An answer is usable if it is JSON of the expected
shape, from the model that was asked for, with a text in it. What is not is tried again with backoff and jitter, except where
trying again cannot help: then the whole run stops, and what was answered is kept.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
import httpx2
import openai

from huatuo_jax.chat_client.budget import Budget, TokenRates, Usage
from huatuo_jax.chat_client.calls import Answer, Call, Failed, Refused, Retry, Stop, check_body, check_status
from huatuo_jax.chat_client.pacing import LONGEST_PAUSE, Pacer
from huatuo_jax.config import require
from huatuo_jax.errors import HuatuoError
from huatuo_jax.io.api_key import ApiKey


@dataclass(frozen=True)
class ClientSettings:
    """Where and how requests go.

    Attributes:
      timeout: seconds for a whole request, its body included.
      retries: how often one call is tried again.
      accept_models: other names under which the endpoint may answer for `model`.
      temperature: None leaves the endpoint's default.
    """

    base_url: str
    model: str
    concurrency: int = 64
    timeout: float = 120.0
    retries: int = 8
    max_output_tokens: int = 2048
    temperature: float | None = None
    accept_models: tuple[str, ...] = ()

    @property
    def limit_field(self) -> str:
        """What the limit of output tokens is called: OpenAI's own newer models refuse the name that every other server takes."""
        return "max_completion_tokens" if httpx2.URL(self.base_url).host == "api.openai.com" else "max_tokens"

    def __post_init__(self) -> None:
        url = httpx2.URL(self.base_url)
        require(
            url.scheme in ("http", "https") and bool(url.host) and not url.userinfo,
            "--base-url must look like https://host/v1, without user name or password in it",
        )
        require(bool(self.model.strip()), "--model is blank; name the model as the endpoint does")
        require(self.concurrency >= 1, f"--concurrency is {self.concurrency}; at least 1 request must be in flight")
        require(self.timeout > 0, f"--timeout is {self.timeout}; it is a number of seconds above 0")
        require(self.retries >= 0, f"--retries is {self.retries}; it must not be negative")
        require(self.max_output_tokens >= 1, f"--max-new-tokens is {self.max_output_tokens}; it must be at least 1")


@dataclass
class ClientCounts:
    """What happened at the endpoint: requests sent, answers, and failed requests by reason ("429", "timeout", …)."""

    requests: int = 0
    answers: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return {"requests": self.requests, "answers": self.answers, "failed_requests": dict(self.failures.most_common())}


OnFailure = Callable[[Call, str, Usage], None]


class ChatClient:
    """Answers calls; use as an async context manager."""

    def __init__(
        self,
        settings: ClientSettings,
        key: ApiKey,
        pacer: Pacer,
        budget: Budget,
        rates: TokenRates | None = None,
        on_failure: OnFailure = lambda call, reason, usage: None,
        answered_before: bool = False,
    ) -> None:
        """Prepares a client.

        Args:
          rates: tokens per character, to charge requests whose usage no answer tells.
          on_failure: told of every failed request that may have been billed, with its estimated usage.
          answered_before: whether this endpoint is known to work (an earlier run has answers of this model).
        """
        self.settings, self.pacer, self.budget, self.counts = settings, pacer, budget, ClientCounts()
        self._key, self._rates, self._on_failure = key, rates or TokenRates(), on_failure
        self._works = answered_before
        self._body: dict[str, Any] = {"model": settings.model, settings.limit_field: settings.max_output_tokens}
        if settings.temperature is not None:
            self._body["temperature"] = settings.temperature

    async def __aenter__(self) -> "ChatClient":
        limits = httpx2.Limits(max_connections=self.settings.concurrency, max_keepalive_connections=self.settings.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=self.settings.base_url,
            api_key=self._key.reveal(),
            max_retries=0,
            timeout=None,
            http_client=openai.DefaultAioHttpClient(limits=limits, timeout=None),
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.close()

    async def answer(self, call: Call, identity: str) -> Answer:
        """The endpoint's answer to a call.

        Args:
          identity: sent as Idempotency-Key, the same for every try of the same call.

        Raises:
          Failed: every try failed; the passage may be tried in another run.
          HuatuoError: the run has to stop (the key is refused, the budget is reached, …).
        """
        last = Retry("not tried", "")
        for retry in range(self.settings.retries + 1):
            if retry:
                await self.pacer.sleep(self._delay(last, retry - 1))
            await self.pacer.turn()
            try:
                return await self._once(call, identity)
            except Retry as fault:
                last = fault
            except Refused as fault:
                if not self._works:
                    raise Failed("refused", fault.message) from None
                return Answer("", "refused")
            except Stop as stop:
                error = HuatuoError(f"{stop.message}; every answer so far is kept: the same command continues")
                self.pacer.stop(error)
                raise error from None
        raise Failed(last.reason, last.message)

    def _delay(self, fault: Retry, retry: int) -> float:
        """Seconds before the next try; a pause that the endpoint asks for holds for every request."""
        if fault.wait is not None:
            if fault.wait > LONGEST_PAUSE:
                self.pacer.stop(
                    HuatuoError(f"the endpoint asks to wait {fault.wait:,.0f} s; try again then: every answer is kept")
                )
            self.pacer.pause(fault.wait)
        return max(fault.wait or 0.0, self.pacer.backoff(retry))

    async def _once(self, call: Call, identity: str) -> Answer:
        """Sends one request, counts it and charges it to the budget."""
        worst = Usage(self._rates.most(call.messages), self.settings.max_output_tokens)
        await self.budget.reserve(worst)
        used = Usage()
        try:
            self.pacer.check()
            self.counts.requests += 1
            answer = await self._send(call, identity)
            used = Usage(answer.prompt_tokens, answer.output_tokens)
            self.counts.answers += 1
            self._works = True
            return answer
        except (Retry, Refused) as fault:
            self.counts.failures[fault.reason] += 1
            if fault.billed:
                used = self._rates.usage(call.messages, self.settings.max_output_tokens)
                self._on_failure(call, fault.reason, used)
            raise
        finally:
            self.budget.settle(worst, used)

    async def _send(self, call: Call, identity: str) -> Answer:
        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await self._client.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    body=self._body | {"messages": call.messages},
                    options={"headers": {"Idempotency-Key": identity}},
                )
        except TimeoutError:
            raise Retry("timeout", f"no answer within {self.settings.timeout:g} s", billed=True) from None
        except openai.APIStatusError as error:
            check_status(error.response.status_code, error.response.headers, self._key.hide(error.response.text), self._works)
            raise AssertionError("check_status raises for every error status") from None
        except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
            causes = _causes(error)
            message = self._key.hide(f"no connection to {self.settings.base_url} ({type(causes[-1]).__name__}: {causes[-1]})")
            sent = not any(isinstance(cause, aiohttp.ClientConnectorError) for cause in causes)
            raise Retry("connection", message, billed=sent) from None
        try:
            body = json.loads(response.content)
        except ValueError:
            body = None
        text = self._key.hide(response.text if body is None else json.dumps(body, ensure_ascii=False))
        answer = check_body(body, text, (self.settings.model, *self.settings.accept_models), self._works)
        if not answer.prompt_tokens:
            guess = self._rates.usage(call.messages, self.settings.max_output_tokens, answer.text)
            answer = Answer(answer.text, answer.finish, guess.prompt, guess.output)
        return Answer(self._key.hide_in_answer(answer.text), answer.finish, answer.prompt_tokens, answer.output_tokens)


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, the first cause last."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain
