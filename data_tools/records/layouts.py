"""One parsed JSON value in, one `Record` out, for every layout of dialogues and passages that people have.

Layouts ("formats"), told apart by their keys unless one is given:
  huatuo   `{source: [[q, a, q, a, …], …]}` (HuatuoGPT-II's training files), or a bare list of turns
  hub      `{id | idx, conversations: [{from, value}, …]}` (HuatuoGPT-II's files on the Hugging Face hub; ShareGPT)
  openai   `{messages: [{role, content}, …]}`
  alpaca   `{instruction, input, output}`, also with `system` and `history`
  turns    `{turns: [q, a, …], source, system}`
  text     `{text, source}`, or a bare string: a passage
"""

import re
from collections.abc import Callable
from typing import Any

from huatuo_jax.data.record import Record, check_record
from huatuo_jax.errors import RecordError
from huatuo_jax.io.json_document import Pair

ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip


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


def to_record(value: Any, layout: str, source: str | None, default_source: str, default_id: Callable[[], str]) -> Record:
    """Turns one parsed value into a record.

    Args:
      value: a JSON value, or a `Pair` of a document that is an object.
      layout: "auto" or a name of `FORMATS`.
      source: overrides the record's own source.
      default_source: where neither the record nor `source` names one.
      default_id: makes the id of a record without one.

    Raises:
      RecordError: with the reason why the value is not a record of that layout.
    """
    own_source: Any = None
    if isinstance(value, Pair):
        own_source, value = value.key, value.value
    layout = _detect(value) if layout == "auto" else layout
    if isinstance(value, dict):
        own_source = value.get("source") or own_source
    turns, system, text = FORMATS[layout](value)
    if own_source is not None and not isinstance(own_source, str):
        raise RecordError(f"`source` is {_kind(own_source)}, not a string")
    name = canonical_source(source or own_source or default_source)
    record = Record(_id(value) or default_id(), name, tuple(turns), system, text)
    return check_record(record)


def _detect(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "huatuo"
    if isinstance(value, dict):
        for key, layout in (("conversations", "hub"), ("messages", "openai"), ("turns", "turns"), ("instruction", "alpaca")):
            if value.get(key) is not None:
                return layout
        if value.get("text") is not None:
            return "text"
        expected = "expected one of conversations, messages, turns, instruction, text"
        raise RecordError(f"no known layout: keys {_shown(sorted(value))}; {expected}")
    raise RecordError(f"value is {_kind(value)}, not an object, a list of turns or a passage")


Parsed = tuple[list[Any], str, str]
"""turns, system, text"""


def _from_list(value: Any) -> Parsed:
    if not isinstance(value, list):
        raise RecordError(f"dialogue is {_kind(value)}, not a list of turns")
    if not value:
        raise RecordError("dialogue is empty")
    return value, "", ""


def _from_turns(value: Any) -> Parsed:
    fields = _object(value)
    turns = fields.get("turns")
    if turns is None and fields.get("text") is not None:
        return _from_text(value)
    if not isinstance(turns, list):
        raise RecordError(f"`turns` is {_kind(turns)}, not a list")
    return turns, _text_field(fields, "system"), _text_field(fields, "text")


def _from_text(value: Any) -> Parsed:
    text = value if isinstance(value, str) else _object(value).get("text")
    if not isinstance(text, str):
        raise RecordError(f"`text` is {_kind(text)}, not a string")
    if not text.strip():
        raise RecordError("`text` is blank")
    return [], "", text


def _from_hub(value: Any) -> Parsed:
    return _from_messages(_object(value), "conversations", "from", "value")


def _from_openai(value: Any) -> Parsed:
    return _from_messages(_object(value), "messages", "role", "content")


def _from_messages(fields: dict[str, Any], key: str, role_key: str, text_key: str) -> Parsed:
    messages = fields.get(key)
    if not isinstance(messages, list) or not messages:
        raise RecordError(f"`{key}` is {'empty' if messages == [] else _kind(messages)}, not a list of messages")
    system = _text_field(fields, "system")
    turns: list[str] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise RecordError(f"message {i} is {_kind(message)}, not an object")
        role = ROLES.get(str(message.get(role_key)).lower())
        content = _content(message.get(text_key), i)
        if role == "system":
            if i or system:
                raise RecordError(f"message {i} is a system prompt; only the first message may be one")
            system = content
            continue
        expected = ("user", "assistant")[len(turns) % 2]
        if role != expected:
            raise RecordError(f"message {i} is from {message.get(role_key)!r} where the {expected} should speak")
        turns.append(content)
    if not turns:
        raise RecordError("dialogue has no turns besides its system prompt")
    return turns, system, ""


def _content(content: Any, i: int) -> str:
    """A message's text; a list of text parts is joined, any other kind of part is refused."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RecordError(f"message {i} has a part that is not text")
        content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise RecordError(f"message {i} has {_kind(content)} as content, not a string")
    return content


def _from_alpaca(value: Any) -> Parsed:
    fields = _object(value)
    question, extra, answer = (_text_field(fields, key) for key in ("instruction", "input", "output"))
    turns: list[Any] = []
    for pair in fields.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError("`history` is not a list of [question, answer]")
        turns += pair
    turns += ["\n".join(part for part in (question, extra) if part.strip()), answer]
    return turns, _text_field(fields, "system"), ""


FORMATS: dict[str, Callable[[Any], Parsed]] = {
    "huatuo": _from_list,
    "hub": _from_hub,
    "sharegpt": _from_hub,
    "openai": _from_openai,
    "alpaca": _from_alpaca,
    "turns": _from_turns,
    "text": _from_text,
}


def _id(value: Any) -> str:
    found = next((value[key] for key in ("id", "idx") if value.get(key) is not None), "") if isinstance(value, dict) else ""
    return str(found)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"value is {_kind(value)}, not an object")
    return value


def _text_field(fields: dict[str, Any], key: str) -> str:
    found = fields.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise RecordError(f"`{key}` is {_kind(found)}, not a string")
    return found


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _shown(names: list[str]) -> str:
    text = ", ".join(names[:8]) or "none"
    return text if len(text) <= 120 else text[:120] + " …"
