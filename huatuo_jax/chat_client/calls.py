"""A status or a body in, a usable answer or the kind of fault out: tried again, refused for good, or the end of the run."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huatuo_jax.chat_client.pacing import retry_after

SHOWN = 200
"""Characters of an endpoint's error that messages quote."""
TRANSIENT = {408, 409, 425, 429}


Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Call:
    """One request for a text, named by what the ledger keys it with.

    Attributes:
      passage: source and id; step: "question" or "answer"; round, attempt: from 0.
    """

    passage: str
    step: str
    round: int
    attempt: int
    messages: Messages = field(repr=False)

    @functools.cached_property
    def prompt_hash(self) -> bytes:
        """16 bytes that stand for the messages."""
        return hashlib.blake2b(json.dumps(self.messages, ensure_ascii=False).encode(), digest_size=16).digest()

    def identity(self, model: str) -> str:
        """A text of 32 characters, the same for every try of this call in every run."""
        parts = (self.passage, self.step, str(self.round), str(self.attempt), self.prompt_hash.hex(), model)
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered; `finish` is its reason to end ("stop", "length", "content_filter") or "refused"."""

    text: str
    finish: str = "stop"
    prompt_tokens: int = 0
    output_tokens: int = 0


class Fault(Exception):
    """Why a request gave no usable answer.

    Attributes:
      reason: a short name, for counts; message: with the endpoint's own words; billed: the endpoint may have charged for it.
    """

    def __init__(self, reason: str, message: str, wait: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.reason, self.message, self.wait, self.billed = reason, message, wait, billed


class Retry(Fault):
    """It may work next time; `wait` is what the endpoint asks for, in seconds."""


class Refused(Fault):
    """The endpoint takes other requests but not this one (too long, blocked by its rules)."""


class Stop(Fault):
    """No request can work before somebody mends something."""


class Failed(Exception):
    """A call that all tries did not get answered."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def check_status(status: int, headers: Mapping[str, str], body: str, works: bool) -> None:
    """Raises the fault that an error status stands for.

    Args:
      body: the response's text, the API key hidden.
      works: whether this endpoint has answered before; until then what looks like a wrong address ends the run.
    """
    said = f"the endpoint answers {status}: {_quoted(body)}"
    if status == 401 or status == 403:
        raise Stop(str(status), f"the endpoint refuses the API key (expired or wrong?), {said}")
    if status == 402 or (status == 429 and "insufficient_quota" in body):
        raise Stop("quota", f"the account has nothing left, {said}")
    if status in TRANSIENT or status >= 500:
        raise Retry(str(status), said, wait=retry_after(headers), billed=status == 408)
    if status == 404 or 300 <= status < 400:
        raise Stop(str(status), f"{said}; check --base-url (it mostly ends in /v1) and --model")
    raise Refused(str(status), said)


def check_body(body: Any, text: str, models: Sequence[str], works: bool) -> Answer:
    """The answer in the body of a 200 response.

    Args:
      body: the parsed JSON, None if it does not parse; text: what errors quote of it, the API key hidden.
      models: the model that was asked for, and other names that it may answer under.

    Raises:
      Retry or Stop: see the module.
    """
    if body is None:
        if text.lstrip()[:1] == "<":
            message = f"the endpoint answers HTML, not JSON: {_quoted(text)}; check --base-url (it mostly ends in /v1)"
            raise (Retry if works else Stop)("html", message)
        raise Retry("broken JSON", f"the answer is not whole JSON: {_quoted(text)}", billed=True)
    try:
        choice = body["choices"][0]
        content, finish = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
        usage = body.get("usage") or {}
        prompt, output = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        served = body.get("model") or models[0]
        if not (isinstance(content, str) and isinstance(served, str)):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise Retry("wrong shape", f"the answer is no chat completion: {_quoted(text)}", billed=True) from None
    if not any(_same_model(served, name) for name in models):
        message = (
            f"the endpoint answers as model {served!r}, asked for {models[0]!r}; if that is right, give --accept-model {served}"
        )
        raise Retry("wrong model", message, billed=True)
    if not content.strip() and finish == "stop":
        raise Retry("empty", "the endpoint answers with an empty text", billed=True)
    return Answer(content, finish, prompt, output)


def _same_model(served: str, asked: str) -> bool:
    """Whether a name is the one asked for, with or without a folder before it and a date (`-2024-07-18`, `-0125`) after it."""
    served, asked = served.rsplit("/", 1)[-1], asked.rsplit("/", 1)[-1]
    return served == asked or (served.startswith(asked + "-") and served[len(asked) + 1 :].replace("-", "").isdigit())


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text[:SHOWN] + ("…" if len(text) > SHOWN else ""))
