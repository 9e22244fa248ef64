"""The names of things in files of records: what each layout calls its parts, as tables; and `--map` for any other layout.

`layouts.py` reads a value by these tables, so that a new layout is a row here and no code. Names are looked for as they are
written first, then in lower case (`Question`, `Response`).
"""

import re
from dataclasses import dataclass, fields, replace

from huatuo_jax.errors import ConfigError

ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "patient", "用户", "患者", "病人"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "doctor", "助手", "医生"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython"), "tool"),
}
"""What the speakers of messages are called, in lower case."""

Names = tuple[str, ...]
"""The first name that an object has with a value that is not null counts."""


@dataclass(frozen=True)
class Layout:
    """What a layout calls its parts. It has messages, or a prompt and an answer, or a passage.

    Attributes:
      messages: a list of messages, of turns (strings in alternation), or of objects with a prompt and an answer each.
      role, text: the speaker of a message, and what is said.
      user, assistant: further names of the two speakers.
      prompt, context, answer: of one question and answer; the context follows the question on a line of its own.
      history: a list of [question, answer], before the prompt.
      passage: a text without a question.
      system: a system prompt. id, source: of the record.
    """

    messages: Names = ()
    role: Names = ("role", "from", "speaker")
    text: Names = ("content", "value", "text")
    user: Names = ()
    assistant: Names = ()
    prompt: Names = ()
    context: Names = ()
    answer: Names = ()
    history: Names = ("history",)
    passage: Names = ()
    system: Names = ("system", "system_prompt", "system_message", "systemprompt", "meta_instruction")
    id: Names = ("id", "idx")
    source: Names = ("source",)

    def fits(self, keys: set[str]) -> bool:
        """Whether an object with these keys (of values that are not null) has this layout."""
        if self.messages or self.passage:
            return not keys.isdisjoint(self.messages or self.passage)
        return self.fits_pair(keys)

    def fits_pair(self, keys: set[str]) -> bool:
        """Whether an object with these keys has a prompt and an answer of this layout."""
        return not (keys.isdisjoint(self.prompt) or keys.isdisjoint(self.answer))

    @property
    def keys(self) -> frozenset[str]:
        """Every key of a record that it names."""
        return frozenset((*self.messages, *self.prompt, *self.context, *self.answer, *self.passage, *self.history, *self.system))


_HUB = Layout(messages=("conversations",), role=("from", "role"), text=("value", "content", "text"))
LAYOUTS = {
    "hub": _HUB,
    "sharegpt": _HUB,
    "openai": Layout(messages=("messages",)),
    "turns": Layout(messages=("turns",), passage=("text",)),
    "alpaca": Layout(prompt=("instruction",), context=("input",), answer=("output",)),
    "dolly": Layout(prompt=("instruction",), context=("context", "input"), answer=("response", "answer", "target", "completion")),
    "text": Layout(passage=("text",)),
    "conversation": Layout(messages=("conversation", "dialogue", "dialog")),
    "prompt": Layout(
        prompt=("prompt",), context=("query", "input"), answer=("completion", "response", "output", "answer", "target")
    ),
    "query": Layout(prompt=("query",), context=("input",), answer=("response", "answer", "output")),
    "question": Layout(
        prompt=("question", "questions"), context=("input", "context"), answer=("answer", "answers", "response", "output")
    ),
    "doctor": Layout(prompt=("patient",), answer=("doctor",)),
    "ask": Layout(prompt=("ask",), answer=("answer",)),
    "input": Layout(prompt=("input", "inputs"), answer=("output", "target", "targets", "response", "answer")),
    "context": Layout(prompt=("context",), answer=("response",)),
    "human": Layout(prompt=("human", "user", "q"), answer=("assistant", "bot", "gpt", "a")),
    "data": Layout(messages=("data", "items")),
    "huatuo": Layout(),
}
"""By name, in the order in which they are tried: the first one that fits an object is its layout. A bare list is `huatuo`."""

PAIRS_IN_MESSAGES = tuple(LAYOUTS[name] for name in ("human", "question", "prompt", "query", "doctor", "alpaca", "input"))
"""Layouts of the elements of a list of messages that have no role: {"human": …, "assistant": …}."""


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


_PARTS = tuple(field.name for field in fields(Layout))


def parse_map(text: str) -> Layout:
    """The layout that `--map` describes: parts with the keys that hold them, e.g. "messages=dialog,role=who,text=said".

    Raises:
      ConfigError: an unknown part, one given twice or without a key, or parts that make no layout.
    """
    example = "e.g. --map prompt=问题,answer=答案 or --map messages=conversation,role=who,text=value"
    given: dict[str, Names] = {}
    for entry in text.split(","):
        part, equals, key = (piece.strip() for piece in entry.partition("="))
        if part not in _PARTS or not equals or not key:
            raise ConfigError(f"--map has {entry.strip()!r}; it takes PART=KEY with the parts {', '.join(_PARTS)}, {example}")
        if part in given:
            raise ConfigError(f"--map names the key of {part} twice, {given[part][0]!r} and {key!r}; give one, {example}")
        given[part] = (key,)
    layout = replace(Layout(), **given)
    if bool(layout.prompt) != bool(layout.answer):
        raise ConfigError(f"--map names the key of only one of prompt and answer; give both, {example}")
    if not layout.messages and not given.keys().isdisjoint(("role", "text", "user", "assistant")):
        remedy = "give messages, or passage=KEY for a text by itself"
        raise ConfigError(f"--map names role, text, user or assistant, which are parts of messages; {remedy}, {example}")
    if bool(layout.messages or layout.prompt) == bool(layout.passage):
        raise ConfigError(f"--map names no dialogue, or a dialogue and a passage; give messages, or prompt and answer, {example}")
    return layout
