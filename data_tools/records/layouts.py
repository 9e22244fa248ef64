"""Layouts: one parsed JSON value becomes one `Record`, in every form in which people keep dialogues and passages.

`importing` reads the values and hands each to `to_record`; so do `collect` and `decontaminate` for files of records. Unless
a layout is named, a value's keys tell which one it has:

    huatuo     {source: [[q, a, q, a, …], …]} (HuatuoGPT-II's training files), or a bare list of turns
    hub        {id | idx, conversations: [{from, value}, …]} (HuatuoGPT-II's files on the Hugging Face hub; also called ShareGPT)
    openai     {messages: [{role, content}, …]}
    turns      {turns: [q, a, …], source, system}
    alpaca     {instruction, input, output}, also with `system` and `history`
    text       {text, source}, or a bare string: a passage

To add a layout, write a function from the value to (turns, system, text) and enter it in `LAYOUTS`. What a record must be is said
in `huatuo_jax/data/dialogue.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from huatuo_jax.data.dialogue import Record, check_record
from huatuo_jax.errors import RecordError
from huatuo_jax.io.jsonl import KeyedValue

ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip

Parsed = tuple[list[Any], str, str]
"""turns, system, text; not yet checked as a record."""


def to_record(value: Any, layout: str, source: str | None, default_source: str, default_id: Callable[[], str]) -> Record:
    """Turns one parsed value into a record.

    Args:
      value: a JSON value, or a `KeyedValue` of a document that is an object.
      layout: "auto" or a name of `LAYOUTS`.
      source: overrides the record's own source.
      default_source: where neither the record nor `source` names one.
      default_id: makes the id of a record without one.

    Raises:
      RecordError: with the reason why the value is not a record of that layout.
    """
    named: Any = None
    if isinstance(value, KeyedValue):
        named, value = value.key, value.value
    turns, system, text = LAYOUTS[_detect(value) if layout == "auto" else layout].parse(value)
    id = ""
    if isinstance(value, dict):
        named = value.get("source") or named
        id = str(next((value[key] for key in ("id", "idx") if value.get(key) is not None), ""))
    if named is not None and not isinstance(named, str):
        raise RecordError(f"`source` is {_kind(named)}, not a string")
    name = canonical_source(source or named or default_source)
    return check_record(Record(id or default_id(), name, tuple(turns), system, text))


def canonical_source(name: str) -> str:
    """The name under which a source is known everywhere: `Meidcal_Web_en` (sic) → medical_web_corpus_en, `SFT_data` → sft.

    Names of other sources are kept, with characters that cannot be part of a folder name replaced by "_".
    """
    lower = name.strip().lower().replace("meidcal", "medical").replace("-", "_").replace(" ", "_")
    if lower in ("sft", "sft_data"):
        return "sft"
    known = re.fullmatch(r"medical_(web|web_corpus|literature|encyclopedia|books)_(cn|en)", lower)
    if known:
        kind = "web_corpus" if known[1] == "web" else known[1]
        return f"medical_{kind}_{known[2]}"
    return re.sub(r"[^\w.-]", "_", name.strip()).lstrip(".-")


def _detect(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "huatuo"
    if not isinstance(value, dict):
        raise RecordError(f"value is {_kind(value)}, not an object, a list of turns or a passage")
    for name, layout in LAYOUTS.items():
        if layout.key is not None and value.get(layout.key) is not None:
            return name
    keys = ", ".join(sorted(value)[:8]) or "none"
    keys = keys if len(keys) <= 120 else keys[:120] + " …"
    raise RecordError(f"no known layout: keys {keys}; expected one of conversations, messages, turns, instruction, text")


def _list(value: Any) -> Parsed:
    if not isinstance(value, list):
        raise RecordError(f"dialogue is {_kind(value)}, not a list of turns")
    if not value:
        raise RecordError("dialogue is empty")
    return value, "", ""


def _turns(value: Any) -> Parsed:
    fields = _object(value)
    turns = fields.get("turns")
    if turns is None and fields.get("text") is not None:
        return _text(value)
    if not isinstance(turns, list):
        raise RecordError(f"`turns` is {_kind(turns)}, not a list")
    return turns, _string(fields, "system"), _string(fields, "text")


def _text(value: Any) -> Parsed:
    text = value if isinstance(value, str) else _object(value).get("text")
    if not isinstance(text, str):
        raise RecordError(f"`text` is {_kind(text)}, not a string")
    if not text.strip():
        raise RecordError("`text` is blank")
    return [], "", text


def _messages(value: Any, key: str, role_key: str, text_key: str) -> Parsed:
    fields = _object(value)
    messages = fields.get(key)
    if not isinstance(messages, list) or not messages:
        raise RecordError(f"`{key}` is {'empty' if messages == [] else _kind(messages)}, not a list of messages")
    system, turns = _string(fields, "system"), list[str]()
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise RecordError(f"message {i} is {_kind(message)}, not an object")
        role, content = ROLES.get(str(message.get(role_key)).lower()), _content(message.get(text_key), i)
        expected = ("user", "assistant")[len(turns) % 2]
        if role == "system":
            if i or system:
                raise RecordError(f"message {i} is a system prompt; only the first message may be one")
            system = content
        elif role == expected:
            turns.append(content)
        else:
            raise RecordError(f"message {i} is from {message.get(role_key)!r} where the {expected} should speak")
    if not turns:
        raise RecordError("dialogue has no turns besides its system prompt")
    return turns, system, ""


def _content(content: Any, i: int) -> str:
    """A message's text; a list of text parts is joined, any other kind of part is refused."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RecordError(f"message {i} has a part that is not text")
        content = "".join(map(str, parts))
    if not isinstance(content, str):
        raise RecordError(f"message {i} has {_kind(content)} as content, not a string")
    return content


def _alpaca(value: Any) -> Parsed:
    fields = _object(value)
    question, extra, answer = (_string(fields, key) for key in ("instruction", "input", "output"))
    turns: list[Any] = []
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError("`history` is not a list of [question, answer]")
        turns += pair
    turns += ["\n".join(part for part in (question, extra) if part.strip()), answer]
    return turns, _string(fields, "system"), ""


@dataclass(frozen=True)
class Layout:
    """One layout: an object that holds `key` has it (None: no object does); `parse` raises RecordError for any other value."""

    key: str | None
    parse: Callable[[Any], Parsed]


_hub = partial(_messages, key="conversations", role_key="from", text_key="value")
LAYOUTS = {
    "hub": Layout("conversations", _hub),
    "sharegpt": Layout("conversations", _hub),
    "openai": Layout("messages", partial(_messages, key="messages", role_key="role", text_key="content")),
    "turns": Layout("turns", _turns),
    "alpaca": Layout("instruction", _alpaca),
    "text": Layout("text", _text),
    "huatuo": Layout(None, _list),
}
"""By name, in the order in which keys are looked for: the first key that an object holds tells its layout."""


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"value is {_kind(value)}, not an object")
    return value


def _string(fields: dict[str, Any], key: str) -> str:
    found = fields.get(key)
    if not isinstance(found, str | None):
        raise RecordError(f"`{key}` is {_kind(found)}, not a string")
    return found or ""


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
