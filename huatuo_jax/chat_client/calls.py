"""A request for a text, the reply to it, and every fault that may come instead.

The first room of the chat client: the ledger keeps replies under what `Call.key` names, the client acts on the faults. What must
hold: whatever an endpoint sends becomes a `Reply` whose text can be used, or exactly one of `Retry`, `Refused` and `Stop`; and no
message here holds an API key, for callers pass texts in which it is hidden.
Next to read: `client.py`.
"""

import email.utils
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

QUOTED = 200
"""Characters of an endpoint's error that messages quote."""
TRANSIENT = {408, 409, 425, 429}
"""Statuses below 500 that may be gone at the next try."""

Messages = list[dict[str, str]]
"""What a chat endpoint takes: [{"role": "system", "content": …}, {"role": "user", "content": …}]."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request or of many."""

    prompt: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """Prompt and output together."""
        return self.prompt + self.output

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.output + other.output)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt - other.prompt, self.output - other.output)


@dataclass(frozen=True)
class Call:
    """One request for a text.

    Attributes:
      item: what the text is about, "source/id" of a passage, say.
      step: which of the item's texts it is ("question", "answer").
      round, attempt: from 0; a text that a rule rejects is asked for again as the next attempt.
    """

    item: str
    step: str
    round: int
    attempt: int
    messages: Messages = field(repr=False)

    @functools.cached_property
    def prompt_hash(self) -> bytes:
        """16 bytes that stand for the messages."""
        # A cryptographic hash: a reply that was paid for must never be taken for the reply to another prompt.
        return hashlib.blake2b(json.dumps(self.messages, ensure_ascii=False).encode(), digest_size=16).digest()

    def key(self, model: str) -> tuple[str, str, int, int, bytes, str]:
        """What the ledger finds the reply by: two calls with the same key are the same call, and the second one is not made."""
        return self.item, self.step, self.round, self.attempt, self.prompt_hash, model

    def identity(self, model: str) -> str:
        """The key as a text of 32 characters: the same for every try of this call in every run."""
        parts = (part.hex() if isinstance(part, bytes) else str(part) for part in self.key(model))
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Reply:
    """The text that an endpoint sent; `finish` is its reason to end it ("stop", "length", "content_filter"), or "refused"."""

    text: str
    finish: str = "stop"
    usage: Usage = Usage()


class Fault(Exception):
    """Why a request gave no usable reply.

    Attributes:
      reason: a short name, to count it by.
      message: what happened, with the endpoint's own words.
      wait: seconds that the endpoint asks to wait.
      billed: whether the endpoint may have charged for it.
    """

    def __init__(self, reason: str, message: str, wait: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.reason, self.message, self.wait, self.billed = reason, message, wait, billed


class Retry(Fault):
    """The next try may work."""


class Refused(Fault):
    """The endpoint takes other requests but not this one (too long, blocked by its rules)."""


class Stop(Fault):
    """No request can work before a person changes something."""


class Failed(Fault):
    """A call for which every try failed."""


def raise_for_status(status: int, headers: Mapping[str, str], body: str) -> NoReturn:
    """Raises the fault that an error status stands for; `body` is the response's text."""
    message = f"the endpoint answers {status}: {_quoted(body)}"
    # The order matters: 429 mostly means "too fast", but OpenAI also sends it for an account without money: no wait helps there.
    if status in (401, 403):
        raise Stop(str(status), f"the endpoint refuses the API key (expired or wrong?), {message}")
    if status == 402 or (status == 429 and "insufficient_quota" in body):
        raise Stop("quota", f"the account has nothing left, {message}")
    if status in TRANSIENT or status >= 500:
        # After 408 the endpoint may have worked on the request; the others were turned away before.
        raise Retry(str(status), message, wait=retry_after(headers), billed=status == 408)
    if status == 404 or 300 <= status < 400:
        raise Stop(str(status), f"{message}; check --base-url (it mostly ends in /v1) and --model")
    # What is left (400, 413, 422, …) is about this request: too long, or blocked by the endpoint's rules.
    raise Refused(str(status), message)


def parse_reply(body: Any, text: str, models: Sequence[str], works: bool) -> Reply:
    """The reply in the body of a 200 response.

    Args:
      body: the parsed JSON, None if it does not parse.
      text: what errors quote of it.
      models: the model that was asked for, and other names under which it may answer.
      works: whether this endpoint has answered before; before that, a web page in place of JSON means a wrong address.

    Raises:
      Retry, Stop: there is no usable text in it.
    """
    if body is None:
        if text.lstrip().startswith("<"):
            message = f"the endpoint answers HTML, not JSON: {_quoted(text)}; check --base-url (it mostly ends in /v1)"
            raise (Retry if works else Stop)("html", message)
        raise Retry("broken JSON", f"the answer is not whole JSON: {_quoted(text)}", billed=True)
    # Servers leave fields out or send null for them, and a proxy may send any JSON: whatever is not a chat completion ends in one
    # of these exceptions.
    try:
        choice = body["choices"][0]
        content, finish = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
        counted = body.get("usage") or {}
        usage = Usage(int(counted.get("prompt_tokens") or 0), int(counted.get("completion_tokens") or 0))
        served = body.get("model") or models[0]
        if not (isinstance(content, str) and isinstance(served, str)):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise Retry("wrong shape", f"the answer is no chat completion: {_quoted(text)}", billed=True) from None
    # A router that silently answers with a cheaper model would spoil the data; a dated name of the same model is usual.
    if not any(_same_model(served, name) for name in models):
        message = (
            f"the endpoint answers as model {served!r}, asked for {models[0]!r}; if that is right, give --accept-model {served}"
        )
        raise Retry("wrong model", message, billed=True)
    # With another reason to end, an empty text is final: the filters reject it by that reason.
    if not content.strip() and finish == "stop":
        raise Retry("empty", "the endpoint answers with an empty text", billed=True)
    return Reply(content, finish, usage)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks to wait: `retry-after-ms`, else `Retry-After` in seconds or as a date; None if nothing."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        text = headers.get("retry-after")
        if not text:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _same_model(served: str, asked: str) -> bool:
    """Whether two names mean one model: a folder before the name or a date after it makes no difference."""
    # openai/gpt-4o-mini-2024-07-18 and gpt-3.5-turbo-0125 are gpt-4o-mini and gpt-3.5-turbo; gpt-4o-mini is not gpt-4o.
    served, asked = served.rsplit("/", 1)[-1], asked.rsplit("/", 1)[-1]
    return served == asked or (served.startswith(asked + "-") and served[len(asked) + 1 :].replace("-", "").isdigit())


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text[:QUOTED] + ("…" if len(text) > QUOTED else ""))
