"""From a file of prompts to a file of answers that a rerun continues: what `huatuo generate` does.

Prompts come from `.txt` (a prompt a line), `.jsonl` (objects), or stdin in either form. A JSONL line is {"prompt": "…"} or
{"turns": ["user", "assistant", "user"]}, with an optional "id" and "system"; other fields are kept for the output:

    {"id": "q7", "prompt": "感冒了可以喝酒吗？", "subject": "medicine"}
    {"id": "q7", "prompt": "…", "subject": "medicine", "answer": "不可以。", "finish_reason": "end", "prompt_tokens": …, …}

What must hold: every answer is on the disk before the next one, a half-written last line is dropped, and `FILE.settings.json`
beside the answers holds the settings that they were made with: other settings are refused. A prompt's draws follow from the seed
and its id alone, so neither order nor reruns change an answer. Next to read: `engine.py`, which answers.
"""

import contextlib
import dataclasses
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huatuo_jax.config import require
from huatuo_jax.config_files import differences, listed
from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.errors import ConfigError, DataError, RecordError
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.model import Model
from huatuo_jax.inference.requests import Completion, Request, check_prompt
from huatuo_jax.inference.sampling import Sampling
from huatuo_jax.io.files import JsonLog, locked, read_json, read_log, write_json
from huatuo_jax.io.jsonl import Fault, parse_json

OUTPUT_FIELDS = ("answer", "finish_reason", "prompt_tokens", "answer_tokens")
"""Fields of the output that a prompt's own fields may not be called."""


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
    if source == "-":
        # As bytes: the terminal's locale must not decide how a file that is piped in is decoded.
        name, content = "stdin", sys.stdin.buffer.read()
    else:
        name, path = source, Path(source)
        wanted = "prompts come in a .txt (one a line) or a .jsonl file, or - for stdin"
        require(path.suffix in (".txt", ".jsonl"), f"{path}: {wanted}")
        require(path.is_file(), f"no prompt file {path}")
        content = path.read_bytes()
    objects = source.endswith(".jsonl") or (source == "-" and content.lstrip()[:1] == b"{")
    prompts: dict[str, Prompt] = {}
    # Cut at line feeds alone: `splitlines` would also cut at a lone carriage return, which may stand within a prompt.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        place = f"{name}, line {number}"
        text = _decode(line.rstrip(b"\r"), place)
        if not text.strip():
            continue
        prompt = _from_object(line, number, place) if objects else Prompt(str(number), (text,), "", {"prompt": text}, place)
        if prompt.id in prompts:
            raise DataError(f"{place}: id {prompt.id!r} is also that of {prompts[prompt.id].place}; ids must differ")
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(f"{name} holds no prompt")
    return list(prompts.values())


def _decode(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        shown = " ".join(f"{byte:02x}" for byte in line[error.start : error.start + 4])
        raise DataError(f"{place}: not valid UTF-8 at byte {error.start + 1} ({shown}); save the file as UTF-8") from None


def _from_object(line: bytes, number: int, place: str) -> Prompt:
    values = parse_json(line)
    if isinstance(values, Fault):
        raise DataError(f"{place}: {values.reason}")
    try:
        json.dumps(values, allow_nan=False)  # its fields are written to the output, which must be JSON
    except ValueError:
        raise DataError(f"{place}: not valid JSON (NaN and infinity are no JSON)") from None
    if not isinstance(values, dict) or ("prompt" in values) == ("turns" in values):
        raise DataError(f'{place}: a prompt is an object with either "prompt" or "turns"')
    turns = [values["prompt"]] if "prompt" in values else values["turns"]
    system = values.get("system", "")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in [*turns, system]):
        raise DataError(f'{place}: "prompt" and "system" are strings, "turns" is a list of strings')
    if len(turns) % 2 == 0:
        raise DataError(f'{place}: {len(turns)} turns do not end with a question; "turns" are user, assistant, …, user')
    if not turns[-1].strip():
        raise DataError(f"{place}: the question is empty; write one or remove the line")
    if taken := [name for name in OUTPUT_FIELDS if name in values]:
        raise DataError(f"{place}: the field {taken[0]!r} is one of the output's own; rename it")
    id = values.get("id", number)
    # bool is an int to Python, and true is no name.
    if not isinstance(id, str | int) or isinstance(id, bool):
        raise DataError(f'{place}: "id" is a {type(id).__name__}; it must be a string or a whole number')
    return Prompt(str(id), tuple(turns), system, values, place)


class AnswerFile:
    """A file of answers to which more may be added.

    Attributes:
      done: id → line of every answer that is there.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Opens a new file, or one of an earlier run with the same settings; nothing is written before `appending`.

        Raises:
          ConfigError: an earlier run had other settings (named with old and new value), or left no settings.
          DataError: a line is no answer.
        """
        self.path, self._settings = path, dict(settings)
        self._settings_file = path.with_name(path.name + ".settings.json")
        self._check_settings()
        self._size = path.stat().st_size if path.exists() else 0
        try:
            self.done: dict[str, dict[str, Any]] = {answer["id"]: answer for answer in read_log(path)}
        except (KeyError, TypeError):
            raise DataError(f"{path} has a line that is not an answer of `huatuo generate`; correct or remove it") from None

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Yields `append(answer)`, which returns when the answer is on the disk.

        Raises:
          ConfigError: another process writes to the file, or has written since this one read it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that append to one file would answer the same prompts twice, and tear each other's lines.
        busy = ConfigError(f"another process writes to {self.path}; wait for it, or choose another file")
        with locked(self.path, busy):
            if self.path.stat().st_size != self._size:  # it wrote after this one had read
                raise busy
            write_json(self._settings_file, self._settings)
            with contextlib.closing(JsonLog(self.path, durable=True)) as log:
                yield log.append

    def _check_settings(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        remedy = "choose another file or remove it"
        require(
            self._settings_file.exists(),
            f"{self.path} exists, but not {self._settings_file.name} with its settings; {remedy}",
        )
        changed = differences(read_json(self._settings_file), self._settings)
        require(not changed, f"{self.path} was made with other settings ({listed(changed)}); use those, {remedy}")


@dataclass
class Batch:
    """Prompts, the file of their answers, and how they are answered; everything that can be refused without weights is.

    Attributes:
      settings: what `out` records beside model, dialogue format and sampling, such as the dtype.
      requests: of the prompts that have no answer yet, by id.
    """

    model: Model
    prompts: Sequence[Prompt]
    out: Path
    sampling: Sampling
    max_new_tokens: int
    stop: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compares with earlier answers and encodes the prompts.

        Raises:
          ConfigError: other settings than those of the answers that are there, another prompt of an id, or one that is too long.
          DataError: the dialogue format cannot express a prompt; names file and line.
        """
        self.settings = {
            "model": self.model.source,
            "format": self.model.dialogue_format.name,
            "max_new_tokens": self.max_new_tokens,
            **dataclasses.asdict(self.sampling),
            "stop": list(self.stop),
            **self.settings,
        }
        self._file = AnswerFile(self.out, self.settings)
        self.requests = {p.id: self._request(p) for p in self.prompts if not self._has_answer(p)}
        for request in self.requests.values():
            check_prompt(self.model.config, request.prompt, request.max_new_tokens, request.name)

    def run(self, load_engine: Callable[[], Engine]) -> Iterator[Completion]:
        """Answers what has no answer yet; each completion is in the file when it is yielded.

        Args:
          load_engine: reads the model's weights; called once the file is this process's alone.

        Raises:
          ConfigError: another process writes to the file, or the weights that were read are not those that the settings name.
          DataError: logits that are not finite.
        """
        if not self.requests:
            return  # a finished file needs no weights
        by_id = {prompt.id: prompt for prompt in self.prompts}
        ids, requests = list(self.requests), list(self.requests.values())
        with self._file.appending() as append:
            engine = load_engine()
            path = self.model.stored.path
            require(
                self.model.source == self.settings["model"],
                f"{path}: its newest checkpoint is damaged, and answers must say which weights gave them; name the one to use: "
                f"{path}/checkpoints/{self.model.step}",
            )
            for index, completion in engine.generate(requests):
                append(
                    {
                        **by_id[ids[index]].fields,
                        "id": ids[index],
                        "answer": completion.text,
                        "finish_reason": completion.finish_reason,
                        "prompt_tokens": len(requests[index].prompt),
                        "answer_tokens": len(completion.tokens),
                    }
                )
                yield completion

    def _request(self, prompt: Prompt) -> Request:
        model = self.model
        try:
            ids = prompt_tokens(prompt.turns, model.tokenizer, model.dialogue_format, prompt.system)
        except RecordError as error:
            raise DataError(f"{prompt.place}: {error}") from error
        # By the id and not by the place in the file, so that prompts may be added or sorted. CRC-32 is the same for ever, which
        # Python's own `hash` is not: it is salted anew in every process.
        seed = zlib.crc32(f"{self.sampling.seed} {prompt.id}".encode())
        sampling = dataclasses.replace(self.sampling, seed=seed)
        return Request(ids, self.max_new_tokens, sampling, tuple(self.stop), prompt.place)

    def _has_answer(self, prompt: Prompt) -> bool:
        """Raises ConfigError if the file has an answer of this id, but to a prompt that reads otherwise."""
        answer = self._file.done.get(prompt.id)
        if answer is None:
            return False
        for name in ("prompt", "turns", "system"):
            require(
                answer.get(name) == prompt.fields.get(name),
                f"{prompt.place}: {self.out} has an answer for id {prompt.id!r}, but to another {name}; give the prompts other "
                "ids, choose another file or remove it",
            )
        return True
