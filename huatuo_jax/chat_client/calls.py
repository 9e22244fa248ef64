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
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

QUOTED = 200
"""Characters of an endpoint's error that messages quote."""
TRANSIENT = {408, 409, 425, 429}
"""Statuses below 500 that may be gone at the next try."""
MOST_COUNTED = 10**12
"""Tokens; a server that counts more for one request has not counted."""

WHOLE = ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed", "normal")
"""What endpoints call the end of a text that its model ended: OpenAI's word, Together, text-generation-inference, Anthropic and
Bedrock, Cohere, Qianfan. All become "stop"; a reason that is in no list stays as it is, and rejects the text by its name."""
CUT = ("length", "max_tokens", "max_output_tokens", "max_completion_tokens")
"""What they call the end of a text at the output limit. All become "length"."""
NO_REASON = "null"
"""The name of a reason that is not there: nothing says whether the text is whole."""
BLOCKED = "content_filter"
_BLOCKED = re.compile(
    r"content_filter|content_policy_violation|ResponsibleAIPolicyViolation|data_?inspection_?failed", re.IGNORECASE
)
"""In the error of a request it says that the endpoint's rules block this prompt, and no other."""

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
"""The two names of the output limit: the older one, which most servers take, and OpenAI's newer one."""
_UNKNOWN_FIELD = re.compile(
    r"un-?support|(?:not|n't)\s+(?:be\s+)?(?:support|permit|allow|accept|recogni|valid)|unrecogni[sz]ed|unknown|unexpected|extra_forbidden"
    r"|invalid (?:parameter|argument|field|request argument)|deprecat|instead|no longer|不支持|未知|无效",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(
    r"too (?:large|big|long|high|small)|at most|exceed|maximum|less than|greater than|between|超过|最大|范围", re.IGNORECASE
)

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

    def key(self, generation: "Generation") -> tuple[bytes, str, int, int, str]:
        """What the ledger finds the reply by: two calls with the same key are the same call, and the second one is not made.

        It is what the model sees, so two passages with the same text share a call, and neither their ids nor their files count.
        """
        return self.prompt_hash, generation.model, self.round, self.attempt, generation.settings

    def identity(self, generation: "Generation") -> str:
        """The key and the output limit as 32 characters: the same for every try of this call in every run."""
        parts = (self.prompt_hash.hex(), *map(str, self.key(generation)[1:]), str(generation.max_new_tokens))
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Generation:
    """How texts are asked for, besides the prompt.

    Attributes:
      max_new_tokens: the output limit. It is no part of a call's key: a whole text is one under any limit (`Reply.serves`).
      settings: sampling and whatever else a request holds, as canonical JSON.
    """

    model: str
    max_new_tokens: int
    settings: str = "{}"


@dataclass(frozen=True)
class Reply:
    """The text that an endpoint sent.

    Attributes:
      text: as it came, reasoning included.
      finish: why it ended: "stop", "length", "content_filter", "refused" (the request was refused), or the endpoint's own word.
    """

    text: str
    finish: str = "stop"
    usage: Usage = Usage()

    def serves(self, made_under: int, limit: int) -> bool:
        """Whether a reply that was got under one output limit is the reply under another."""
        # 300 tokens under a limit of 2,048 are whole under any. A text that was cut at 100 is cut at 50 too, but not at 200; a
        # request that is too long with 4,096 tokens of output may fit with 1,024.
        if self.finish == "length":
            return limit <= made_under
        return limit >= made_under if self.finish == "refused" else True


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
    """The endpoint takes other requests but not this one: too long, or blocked by its rules (`reason` is BLOCKED then)."""


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
    raise Refused(BLOCKED if _BLOCKED.search(body) else str(status), message)


def refuses_field(name: str, error: str) -> bool:
    """Whether the text of an error says that the endpoint does not know a field, rather than not its value."""
    # "Unsupported parameter: 'max_tokens' is not supported …" does; "max_tokens is too large: … supports at most 4096" does not.
    # One Go client writes "MaxTokens".
    named = re.search(rf"(?<![a-z_]){name.replace('_', '_?')}(?![a-z_])", error, re.IGNORECASE)
    return named is not None and _UNKNOWN_FIELD.search(error) is not None and _TOO_LARGE.search(error) is None


def parse_reply(body: Any, quote: Callable[[], str], models: Sequence[str], works: bool) -> Reply:
    """The reply in the body of a 200 response.

    Args:
      body: the parsed JSON, None if it does not parse.
      quote: makes what errors quote of it.
      models: the model that was asked for, and other names under which it may answer.
      works: whether this endpoint has answered before; before that, a web page in place of JSON means a wrong address.

    Raises:
      Retry, Stop: there is no usable text in it.
    """
    if body is None:
        if quote().lstrip().startswith("<"):
            message = f"the endpoint answers HTML, not JSON: {_quoted(quote())}; check --base-url (it mostly ends in /v1)"
            raise (Retry if works else Stop)("html", message)
        raise Retry("broken JSON", f"the answer is not whole JSON: {_quoted(quote())}", billed=True)
    # Servers leave fields out or send null for them, and a proxy may send any JSON: whatever is not a chat completion ends in one
    # of these exceptions.
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = _content(message.get("content"))
        finish, served = _finish(choice.get("finish_reason")), body.get("model") or models[0]
        if not isinstance(served, str):
            raise TypeError
        if refusal := refusal or message.get("refusal"):
            content, finish = str(refusal), "refusal"
        # JSON may hold half of a character, which neither a file in UTF-8 nor the ledger can.
        f"{content}{finish}{served}".encode()
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise Retry("wrong shape", f"the answer is no chat completion: {_quoted(quote())}", billed=True) from None
    # A router that silently answers with a cheaper model would spoil the data; a dated name of the same model is usual.
    if not any(_same_model(served, name) for name in models):
        text = (
            f"the endpoint answers as model {served[:QUOTED]!r}, asked for {models[0]!r}; if that is right, give --accept-model"
        )
        raise Retry("wrong model", f"{text} {served[:QUOTED]}", billed=True)
    # With another reason to end, an empty text is final: the filters reject it by that reason.
    if not content.strip() and finish == "stop":
        where = next((name for name in ("reasoning_content", "reasoning") if message.get(name)), None)
        hint = f"; all of it is in `{where}`: raise --max-new-tokens, or switch thinking off with --extra-body" if where else ""
        raise Retry("empty", f"the endpoint answers with an empty text{hint}", billed=True)
    return Reply(content, finish, _usage(body.get("usage")))


def _content(content: Any) -> tuple[str, str]:
    """A message's text and refusal; content is a string, null, or a list of parts, of which those of reasoning are left out."""
    # [{"type": "thinking", "thinking": […]}, {"type": "text", "text": "Why?"}] → "Why?"
    if not isinstance(content, list):
        content = [content] if content else []
    texts: dict[str, list[str]] = {"text": [], "refusal": []}
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in ("thinking", "redacted_thinking", "reasoning"):
            continue
        kind = "text" if kind == "output_text" else kind
        text = part[kind] if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise TypeError
        texts[kind].append(text)
    return "".join(texts["text"]), "".join(texts["refusal"])


def _finish(reason: Any) -> str:
    """An endpoint's reason to end a text, by the one name that each has here."""
    reason = reason.get("type") if isinstance(reason, dict) else reason  # SGLang's own form: {"type": "stop", "matched": 2}
    name = str(reason).strip().lower()[:QUOTED] if reason else NO_REASON
    return "stop" if name in WHOLE else "length" if name in CUT else name


def _usage(counted: Any) -> Usage:
    """The tokens that an endpoint counted; 0 for what it did not count, or not as a number that can be."""
    numbers = [counted.get(name) if isinstance(counted, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, output = (int(n) if isinstance(n, int | float) and 0 <= n <= MOST_COUNTED else 0 for n in numbers)
    return Usage(prompt, output)


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
    except (ValueError, TypeError, OverflowError, OSError):  # dates that no calendar has
        return None


def _same_model(served: str, asked: str) -> bool:
    """Whether two names mean one model: a folder before the name or a date after it makes no difference."""
    # openai/gpt-4o-mini-2024-07-18 and gpt-3.5-turbo-0125 are gpt-4o-mini and gpt-3.5-turbo; gpt-4o-mini is not gpt-4o.
    served, asked = served.rsplit("/", 1)[-1].lower(), asked.rsplit("/", 1)[-1].lower()
    return served == asked or (served.startswith(asked + "-") and served[len(asked) + 1 :].replace("-", "").isdigit())


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text[:QUOTED] + ("…" if len(text) > QUOTED else ""))
