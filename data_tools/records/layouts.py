"""Layouts: one parsed JSON value becomes one `Record`, in every form in which people keep dialogues and passages.

`importing` reads the values and hands each to a `RecordReader` (`to_record` is one call of it). Unless a layout is named, a
value's keys tell which one it has (`names.LAYOUTS`):

    huatuo        {source: [[q, a, q, a, …], …]} (HuatuoGPT-II's training files), or a bare list of turns
    hub, openai   {conversations: [{from, value}, …]}, {messages: [{role, content}, …]}
    turns, text   {turns: [q, a, …], weights, source, system}, {text, source}, or a bare string: a passage
    alpaca, …     {instruction, input, output}, {question, answer}, …: one question and answer, perhaps after a `history`

What must hold: one value becomes one record or one `RecordError`; a mark that an answer shall not be learned is obeyed, and what
would be misread is refused (`marks.py`); any other key that is not read is counted by name. What a record must be is said in
`huatuo_jax/data/dialogue.py`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data_tools.records.marks import (
    is_empty,
    message_weight,
    refuse,
    refuse_placeholders,
    refuse_record_weight,
)
from data_tools.records.names import LAYOUTS, PAIRS_IN_MESSAGES, ROLES, Layout, Names, canonical_source
from huatuo_jax.data.dialogue import Record, check_record, check_weights
from huatuo_jax.errors import RecordError
from huatuo_jax.io.jsonl import KeyedValue


@dataclass
class RecordReader:
    """Turns parsed values into records.

    Attributes:
      layout: "auto" or a name of `LAYOUTS`; mapped: the layout that `--map` describes, in place of it.
      source: overrides the record's own source.
      join_turns: consecutive messages of one speaker become one turn, a line each.
      cut_last_question: a question at the end, without an answer, is cut off.
      last_answer_only: all answers but the last have weight 0.
      ignored: keys whose presence is no reason to refuse a record.
      unread: how many records had a key that was not read, by its name. joined, cut: how many records an option has changed.
    """

    layout: str = "auto"
    mapped: Layout | None = None
    source: str | None = None
    join_turns: bool = False
    cut_last_question: bool = False
    last_answer_only: bool = False
    ignored: frozenset[str] = frozenset()
    unread: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    cut: int = 0

    def read(self, value: Any, default_source: str, default_id: Callable[[], str]) -> Record:
        """Turns one value into a record.

        Args:
          value: a JSON value, or a `KeyedValue` of a document that is an object.
          default_source: where neither the record nor `source` names one.
          default_id: makes the id of a record without one.

        Raises:
          RecordError: with the reason why the value is not a record of that layout.
        """
        named: Any = None
        if isinstance(value, KeyedValue):
            named, value = value.key, value.value
        layout = self.mapped or LAYOUTS[self._detect(value) if self.layout == "auto" else self.layout]
        parts = _Parts(self, layout)
        fields = _Fields(value if isinstance(value, dict) else {})
        parts.read(value, fields)
        named = fields.one(layout.source) or named
        if named is not None and not isinstance(named, str):
            raise RecordError(f"`source` is {_kind(named)}, not a string")
        id, name = fields.one(layout.id), canonical_source(self.source or named or default_source)
        turns, cut = parts.turns, self.cut_last_question and len(parts.turns) % 2 == 1
        if cut:
            turns = turns[:-1]
            if not turns:
                raise RecordError("dialogue is a question without an answer")
        elif len(turns) % 2:
            remedy = "--cut-last-question cuts a question off that has none"
            raise RecordError(f"dialogue has an odd number of turns ({len(turns)}): it must end with an answer; {remedy}")
        id = default_id() if id is None or id == "" else str(id)
        weights = self._weights(parts.weights, len(turns) // 2)
        record = check_record(Record(id, name, tuple(map(_clean, turns)), _clean(parts.system), _clean(parts.text), weights))
        self.unread.update({*fields.unread(), *parts.unread})
        self.joined += parts.joined
        self.cut += cut
        return record

    def _detect(self, value: Any) -> str:
        """The name of the layout that a value has by its keys."""
        if isinstance(value, str):
            return "text"
        if isinstance(value, list):
            return "huatuo"
        if not isinstance(value, dict):
            raise RecordError(f"value is {_kind(value)}, not an object, a list of turns or a passage")
        keys = {key for key, held in value.items() if held is not None}
        for known in ({key.lower() for key in keys} if fold else keys for fold in (False, True)):
            for name, layout in LAYOUTS.items():
                if layout.fits(known):
                    return name
            if "instruction" in known:
                return "alpaca"
        refuse(value, self.ignored)  # a preference, say, has no known layout and a better reason than that
        shown = ", ".join(sorted(value)[:8]) or "none"
        shown = shown if len(shown) <= 120 else shown[:120] + " …"
        known_ones = "conversations, messages, turns, instruction, text, prompt and completion, question and answer, …"
        raise RecordError(f"no known layout: keys {shown}; expected one of {known_ones}; --map names other keys")

    def _weights(self, weights: list[Any], answers: int) -> tuple[int, ...]:
        """The weights of the answers as a record holds them: empty if all are 1."""
        check_weights(weights, answers)
        if self.last_answer_only and answers:
            weights = [0] * (answers - 1) + (weights or [1])[-1:]
            check_weights(weights, answers)
        return () if all(weights) else tuple(map(int, weights))


def to_record(value: Any, layout: str, source: str | None, default_source: str, default_id: Callable[[], str]) -> Record:
    """Turns one value into a record without options; see `RecordReader.read`."""
    return RecordReader(layout, source=source).read(value, default_source, default_id)


def _clean(text: Any) -> Any:
    """A text without the traces of other systems: line ends with a carriage return, and a byte order mark."""
    if isinstance(text, str) and ("\r" in text or text.startswith("\ufeff")):
        return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return text


class _Fields:
    """An object, and which of its keys were read."""

    def __init__(self, held: dict[str, Any]) -> None:
        self.held = held
        self.used: set[str] = set()
        self._mixed_case = [key for key in held if not key.islower()]

    def key(self, names: Names) -> str | None:
        """The key that stands for the first of the names, as it is written or in lower case; it counts as read."""
        for name in names:
            if self.held.get(name) is not None:
                self.used.add(name)
                return name
        for key in self._mixed_case:
            if key.lower() in names and self.held[key] is not None:
                self.used.add(key)
                return key
        return None

    def one(self, names: Names) -> Any:
        """The value of that key, or None."""
        key = self.key(names)
        return None if key is None else self.held[key]

    def string(self, names: Names) -> str:
        """The text that it holds, "" if there is none."""
        key = self.key(names)
        if key is None:
            return ""
        if not isinstance(self.held[key], str):
            raise RecordError(f"`{key}` is {_kind(self.held[key])}, not a string")
        return self.held[key]

    def unread(self) -> list[str]:
        """The keys that hold something and were not read."""
        return [key for key, held in self.held.items() if key not in self.used and not is_empty(held)]


class _Parts:
    """What a value holds: `turns` and the `weights` of its answers, `system`, or `text`; and the names of what was not read."""

    def __init__(self, reader: RecordReader, layout: Layout) -> None:
        self.reader, self.layout = reader, layout
        self.turns: list[Any] = []
        self.weights: list[Any] = []
        self.system, self.text = "", ""
        self.joined = False
        self.unread: set[str] = set()

    def read(self, value: Any, fields: _Fields) -> None:
        """Fills the parts."""
        layout = self.layout
        if layout is LAYOUTS["huatuo"]:
            if not isinstance(value, list):
                raise RecordError(f"dialogue is {_kind(value)}, not a list of turns")
            if not value:
                raise RecordError("dialogue is empty")
            self._add_turns(value, "")
            return
        if isinstance(value, str) and layout.passage:
            self.text = _passage(value, layout)
            return
        if not isinstance(value, dict):
            raise RecordError(f"value is {_kind(value)}, not an object")
        is_dialogue = layout.messages != () or layout.prompt != ()
        named = layout.keys if self.reader.mapped else frozenset()
        refuse(value, self.reader.ignored | named, is_dialogue=is_dialogue)
        messages = fields.key(layout.messages)
        if messages is None and layout.passage and not is_empty(fields.one(layout.passage)):
            if isinstance(value.get("role"), str) and value["role"].lower() in ROLES:
                raise RecordError(
                    f"one message of a conversation (`role` is {value['role']!r}), not a passage; join its messages"
                )
            self.text = _passage(fields.one(layout.passage), layout)
            return
        if messages is not None:
            self._system(fields)
            self._add_list(fields, messages)
        elif layout.prompt and not layout.messages:
            self._system(fields)
            self._add_history(fields)
            self._add_pair(fields)
        else:
            name = (layout.messages or layout.passage)[0]
            kind = "a list of messages" if layout.messages and not layout.passage else "a list" if layout.messages else "a string"
            found = fields.held.get(name)
            raise RecordError(
                f"`{name}` is blank" if found is not None and name == "text" else f"`{name}` is missing, not {kind}"
            )
        self._own_weights(fields)
        refuse_record_weight(value, fields.used, self.reader.ignored)
        refuse_placeholders(self.turns, self.reader.ignored)

    def _system(self, fields: _Fields) -> None:
        """The system prompt of the record; it may have two names if they hold the same."""
        found = {text for name in self.layout.system if (text := fields.string((name,))).strip()}
        if len(found) > 1:
            raise RecordError("two system prompts that differ: " + " and ".join(f"`{key}`" for key in sorted(fields.used)))
        self.system = found.pop() if found else ""

    # ---- one question and its answer

    def _add_history(self, fields: _Fields) -> None:
        history = _parsed(fields.one(self.layout.history))
        if not isinstance(history, list) and not is_empty(history):
            raise RecordError(f"`history` is {_kind(history)}, not a list of [question, answer]")
        for number, pair in enumerate(history or []):
            if isinstance(pair, dict):
                self._add_message(pair, number, "history")
            elif isinstance(pair, list) and len(pair) == 2:
                self._add_answered(*pair)
            else:
                raise RecordError("`history` is not a list of [question, answer]")

    def _add_answered(self, question: Any, answer: Any, weight: int = 1) -> None:
        if len(self.turns) % 2:
            raise RecordError(f"turn {len(self.turns)} is a question where the assistant should speak")
        self.turns += [question, answer]
        self.weights.append(weight)

    def _add_pair(self, fields: _Fields, layout: Layout | None = None, weight: int = 1) -> None:
        """A prompt and its answer: strings, lists of one in other words, or lists of messages."""
        layout = layout or self.layout
        keys = fields.key(layout.prompt), fields.key(layout.answer)
        asked, answered = (_parsed(fields.held[key]) if key is not None else None for key in keys)
        if _are_messages(asked) or _are_messages(answered):
            self._add_prompt_messages(asked, answered, keys)
            return
        if isinstance(asked, list) and isinstance(answered, list) and min(len(asked), len(answered)) > 1:
            raise RecordError(f"{len(asked)} questions and {len(answered)} answers in one record, no one knows whose; split it")
        for name, text in zip(keys, (self._first(asked, keys[0]), self._first(answered, keys[1])), strict=True):
            if text is not None and not isinstance(text, str):
                raise RecordError(f"`{name}` is {_kind(text)}, not a string")
        if self.reader.mapped and None in keys:
            missing = (layout.prompt if keys[0] is None else layout.answer)[0]
            raise RecordError(f"`{missing}` is missing; the record's keys: {', '.join(list(fields.held)[:8])}")
        context = fields.string(layout.context)
        for key in fields.unread():
            if key.lower() in ("options", "choices", "option") and key not in self.reader.ignored:
                raise RecordError(f"an exam question without its `{key}`: write them into the question (or --ignore {key})")
        question, answer = self._first(asked, keys[0]) or "", self._first(answered, keys[1]) or ""
        self._add_answered("\n".join(part for part in (question, context) if part.strip()), answer, weight)

    def _add_prompt_messages(self, asked: Any, answered: Any, keys: tuple[str | None, str | None]) -> None:
        """TRL's prompts and completions as lists of messages: only the completion is learned."""
        prompt = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
        for number, message in enumerate(prompt):
            self._add_message(message, number, str(keys[0]))
        self.weights = [0] * len(self.weights)
        completion = answered if isinstance(answered, list) else [{"role": "assistant", "content": answered}]
        for number, message in enumerate(completion, len(prompt)):
            self._add_message(message, number, str(keys[1]))

    def _first(self, value: Any, key: str | None) -> Any:
        """The first of several: Huatuo-26M has {"questions": [["q", "q in other words"]], "answers": ["a"]}."""
        while isinstance(value, list):
            if len(value) > 1:
                self.unread.add(f"{key}, all but the first")
            value = value[0] if value else None
        return value

    # ---- messages

    def _add_list(self, fields: _Fields, key: str) -> None:
        values = _parsed(fields.held[key])
        if not isinstance(values, list):
            raise RecordError(f"`{key}` is {_kind(values)}, not a list{'' if self.layout.passage else ' of messages'}")
        if not values and not self.layout.passage:
            raise RecordError(f"`{key}` is empty, not a list of messages")
        self._add_turns(values, key)
        if self.layout.passage:  # our own layout may hold either
            self.text = fields.string(self.layout.passage)

    def _add_turns(self, values: list[Any], key: str) -> None:
        """A list of messages, or of turns in alternation."""
        if all(isinstance(value, str) for value in values) or (key in ("", "turns") and not _are_messages(values)):
            # Whether they are strings is asked of the record.
            self.turns += _without_marks(values) if key == "data" else values
            self.weights += [1] * (len(values) // 2)
            return
        for number, value in enumerate(values):
            if isinstance(value, list) and len(value) == 2:
                self._add_answered(*value)
            else:
                self._add_message(value, number, key)
        if not self.turns:
            raise RecordError("dialogue has no turns besides its system prompt")

    def _add_message(self, message: Any, number: int, key: str) -> None:
        """Adds one message, or one object of a question and its answer."""
        if not isinstance(message, dict):
            raise RecordError(f"message {number} is {_kind(message)}, not an object")
        fields = _Fields(message)
        role_key, text_key = fields.key(self.layout.role), fields.key(self.layout.text)
        refuse(message, self.reader.ignored, f"message {number}: ")
        weight = message_weight(message, fields.used, number)
        pair = None if role_key else self._pair_of(message)
        if pair is not None:
            fields.used.discard(text_key or "")
            self._add_pair(fields, pair, weight)
        else:
            said = None if role_key is None else message[role_key]
            role = self._role(said)
            self._add_turn(role, said, None if text_key is None else message[text_key], weight, number)
            if role != "assistant" and weight:
                # Only answers are learned: a mark that a question shall be is not obeyed, so it does not count as read.
                fields.used = {role_key or "", text_key or ""}
        self.unread.update(f"{key}[].{name}" for name in fields.unread())

    def _pair_of(self, message: dict[str, Any]) -> Layout | None:
        """The layout of an element such as {"human": …, "assistant": …}, if it is one."""
        keys = {name for key, held in message.items() if held is not None for name in (key, key.lower())}
        known = (self.layout,) if self.layout.prompt else PAIRS_IN_MESSAGES
        return next((layout for layout in known if layout.fits_pair(keys)), None)

    def _role(self, said: Any) -> str | None:
        if said in self.layout.user or said in self.layout.assistant:
            return "user" if said in self.layout.user else "assistant"
        return ROLES.get(str(said).lower())

    def _add_turn(self, role: str | None, said: Any, content: Any, weight: int, number: int) -> None:
        speakers = ("user", "assistant")
        expected, last = speakers[len(self.turns) % 2], speakers[(len(self.turns) - 1) % 2] if self.turns else None
        if role == "tool":
            raise RecordError(f"message {number} is from {said!r}: no dialogue format renders tools")
        content = _content(content, number)
        if role == "system":
            if number or self.turns or self.system not in ("", content):
                differs = ", and the record has another one" if not number else ""
                raise RecordError(f"message {number} is a system prompt; only the first message may be one{differs}")
            self.system = content
        elif role == expected:
            self.turns.append(content)
            self.weights += [weight] if role == "assistant" else []
        elif role == last is not None and self.reader.join_turns:
            if role == "assistant" and self.weights[-1] != weight:
                raise RecordError(f"message {number} has another weight than the one before it, so they cannot be joined")
            self.turns[-1] += "\n" + content
            self.joined = True
        else:
            remedy = "; --join-turns joins consecutive messages of one speaker" if role == last is not None else ""
            raise RecordError(f"message {number} is from {said!r} where the {expected} should speak{remedy}")

    def _own_weights(self, fields: _Fields) -> None:
        """The record's own `weights`; where messages have weights too, both must say the same."""
        own = _parsed(fields.one(("weights",)))
        if own is None or own == "":
            return
        if not isinstance(own, list) or not own:
            raise RecordError(f"`weights` is {'empty' if own == [] else _kind(own)}; give a list with 0 or 1 per answer")
        check_weights(own, len(self.turns) // 2)
        if not all(self.weights) and own != self.weights:
            raise RecordError(f"`weights` is {own}, but the messages have the weights {self.weights}")
        self.weights = own


def _passage(text: Any, layout: Layout) -> str:
    if not isinstance(text, str):
        raise RecordError(f"`{layout.passage[0]}` is {_kind(text)}, not a string")
    if not text.strip():
        raise RecordError(f"`{layout.passage[0]}` is blank")
    return text


_TURN_MARKS = (re.compile(r"\s*问[:：]\s*"), re.compile(r"\s*答[:：]\s*"))


def _without_marks(turns: list[str]) -> list[str]:
    """Turns as in HuatuoGPT-sft-data, {"data": ["问：…", "答：…"]}, without these marks if each of them has one."""
    found = [_TURN_MARKS[i % 2].match(turn) for i, turn in enumerate(turns)]
    if not all(found):
        return turns
    return [turn[mark.end() :].strip() for turn, mark in zip(turns, found, strict=True) if mark]


def _content(content: Any, number: int) -> str:
    """A message's text; a list of text parts is joined, any other kind of part is refused."""
    if isinstance(content, list):
        texts = []
        for part in content:
            kind = part.get("type") or "text" if isinstance(part, dict) else "text"
            text = part.get("text") if isinstance(part, dict) else part
            if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
                shown = "" if kind == "text" else f" but {kind!r}"
                raise RecordError(f"message {number} has a part that is not text{shown}: multimodal records are not read")
            texts.append(text)
        content = "".join(texts)
    if not isinstance(content, str):
        raise RecordError(f"message {number} has {_kind(content)} as content, not a string")
    return content


def _parsed(value: Any) -> Any:
    """The list that a cell of a table spells as JSON; any other value as it is."""
    if isinstance(value, str) and value.startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, list) else value
    return value


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
