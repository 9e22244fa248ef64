"""A file of prompts in, conversations out: `.txt` (a prompt a line), `.jsonl` (objects), or lines from stdin in either form.

A JSONL line is {"prompt": "…"} or {"turns": ["user", "assistant", "user"]}, with an optional "id" and "system"; other fields are
kept for the output.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huatuo_jax.config import require
from huatuo_jax.errors import DataError

OURS = ("id", "prompt", "turns", "system", "answer", "finish_reason", "prompt_tokens", "answer_tokens")
"""Fields of the output that a prompt's other fields may not be called."""


@dataclass(frozen=True)
class Prompt:
    """A conversation that awaits an answer.

    Attributes:
      id: unique in its file; the line's number where the file gives none.
      turns: user, assistant, …, user.
      fields: as read, for the output.
      place: file and line, for errors.
    """

    id: str
    turns: tuple[str, ...]
    system: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    place: str = ""


def read_prompts(source: str) -> list[Prompt]:
    """All prompts of a file, or of stdin for "-"; empty lines are left out.

    Raises:
      ConfigError: no such file, a name that ends in neither .txt nor .jsonl.
      DataError: malformed UTF-8 or JSON, a line that is no prompt, an id twice; names file and line.
    """
    name = "stdin" if source == "-" else source
    if source == "-":
        content = sys.stdin.buffer.read()
    else:
        path = Path(source)
        require(
            path.suffix in (".txt", ".jsonl"), f"{path}: prompts come in a .txt (one a line) or a .jsonl file, or - for stdin"
        )
        require(path.is_file(), f"no prompt file {path}")
        content = path.read_bytes()
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    objects = source.endswith(".jsonl") or (source == "-" and content.lstrip()[:1] == b"{")
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        place = f"{name}, line {number}"
        text = _decoded(line.rstrip(b"\r"), place)
        if not text.strip():
            continue
        prompt = _from_object(text, number, place) if objects else Prompt(str(number), (text,), "", {"prompt": text}, place)
        if prompt.id in seen:
            raise DataError(f"{place}: id {prompt.id!r} is also that of {seen[prompt.id]}; ids must differ")
        seen[prompt.id] = place
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{name} holds no prompt")
    return prompts


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = " ".join(f"{byte:02x}" for byte in line[error.start : error.start + 4])
        raise DataError(f"{place}: not valid UTF-8 at byte {error.start + 1} ({found}); save the file as UTF-8") from None


def _from_object(text: str, number: int, place: str) -> Prompt:
    try:
        values = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error})") from None
    if not isinstance(values, dict) or ("prompt" in values) == ("turns" in values):
        raise DataError(f'{place}: a prompt is an object with either "prompt" or "turns"')
    turns = [values["prompt"]] if "prompt" in values else values["turns"]
    system = values.get("system", "")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in [*turns, system]):
        raise DataError(f'{place}: "prompt" and "system" are strings, "turns" is a list of strings')
    if len(turns) % 2 == 0:
        raise DataError(f'{place}: {len(turns)} turns do not end with a question; "turns" are user, assistant, …, user')
    if not turns[-1].strip():
        raise DataError(f"{place}: the question is empty; write one or take the line out")
    taken = [name for name in OURS[4:] if name in values]
    if taken:
        raise DataError(f"{place}: the field {taken[0]!r} is one of the output's own; rename it")
    id = values.get("id", number)
    if not isinstance(id, str | int) or isinstance(id, bool):
        raise DataError(f'{place}: "id" is a {type(id).__name__}; it must be a string or a whole number')
    return Prompt(str(id), tuple(turns), system, values, place)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
