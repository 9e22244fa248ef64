"""Versioned template files in, chat messages out: one file per step (question, answer), language and version.

A template has two sections, `[system]` and `[user]`, and placeholders `${domain}`, `${persona}`, `${passage}`, `${question}`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

from data_tools.records.language import LANGUAGES
from huatuo_jax.chat_client.calls import Messages
from huatuo_jax.errors import ConfigError
from huatuo_jax.io.files import sha256_json

FOLDER = Path(__file__).parent / "prompts"
STEPS = {"question": {"domain", "persona", "passage"}, "answer": {"domain", "persona", "passage", "question"}}
"""The steps in order, each with the placeholders that its template may hold."""
_SECTION = re.compile(r"^\[(system|user)\]\n", re.MULTILINE)


@dataclass(frozen=True)
class Cuts:
    """Characters of the passage that each step sees (None = all), and whether line breaks become the two characters `\\n`."""

    question: int | None = None
    answer: int | None = None
    escape_newlines: bool = False

    def apply(self, step: str, text: str) -> str:
        """The passage as a step's prompt shows it."""
        if self.escape_newlines and step == "question":
            text = text.replace("\n", "\\n")
        return text[: self.question if step == "question" else self.answer]


FAITHFUL_CUTS = Cuts(question=400, answer=600, escape_newlines=True)
"""What the original does (FIDELITY §2)."""


class Prompts:
    """The templates of all languages, filled with the domain's name and the persona.

    Attributes:
      version: the templates' version, for reports.
    """

    def __init__(
        self,
        version: str = "v1",
        folder: Path | None = None,
        domain: dict[str, str] | None = None,
        persona: dict[str, str] | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        """Reads the templates.

        Args:
          folder: a folder of own templates, named as ours: `question.zh.v1.txt`, …
          domain: the domain's name by language; what is left out is taken from `prompts/defaults.json`.
          persona: who speaks, by language; without, an expert of the domain.

        Raises:
          ConfigError: a template is missing or has a section or placeholder too many or too few.
        """
        self.version, self.cuts = version, cuts or Cuts()
        defaults = json.loads((FOLDER / "defaults.json").read_text(encoding="utf-8"))
        self.values = {}
        for spoken in LANGUAGES:
            name = (domain or {}).get(spoken, defaults[spoken]["domain"])
            speaker = (persona or {}).get(spoken, Template(defaults[spoken]["persona"]).substitute(domain=name))
            self.values[spoken] = {"domain": name, "persona": speaker}
        self._templates = {
            (step, spoken): _read(folder or FOLDER, step, spoken, version) for step in STEPS for spoken in LANGUAGES
        }

    def to_json(self) -> dict[str, Any]:
        """What the prompts were made from, for the report: version, names, and a hash of each template's text."""
        templates = {
            f"{step}.{spoken}": sha256_json([[role, template.template] for role, template in sections])
            for (step, spoken), sections in self._templates.items()
        }
        return {"version": self.version, "templates": templates, **self.values, "cuts": asdict(self.cuts)}

    def question(self, spoken: str, passage: str) -> Messages:
        """The messages of the first call: a question for which the passage would be the answer."""
        return self._fill("question", spoken, passage=self.cuts.apply("question", passage))

    def answer(self, spoken: str, passage: str, question: str) -> Messages:
        """The messages of the second call: the question's answer, the passage being its hidden reference."""
        return self._fill("answer", spoken, passage=self.cuts.apply("answer", passage), question=question)

    def _fill(self, step: str, spoken: str, **texts: str) -> Messages:
        values = self.values[spoken] | texts
        return [
            {"role": role, "content": template.substitute(values).strip()} for role, template in self._templates[step, spoken]
        ]


def by_language(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Reads `NAME` (every language) or `zh=NAME` (one), as `--domain` and `--persona` take them.

    Raises:
      ConfigError: if a language is given twice or a name is blank.
    """
    found: dict[str, str] = {}
    for text in texts:
        head, equals, tail = text.partition("=")
        spoken, name = ((head,), tail) if equals and head in LANGUAGES else (LANGUAGES, text)
        if not name.strip():
            raise ConfigError(f"{option} {text!r} is blank; give NAME, or zh=NAME and en=NAME")
        for language in spoken:
            if language in found:
                raise ConfigError(f"{option} is given twice for the language {language}; give zh=… and en=… once each")
            found[language] = name.strip()
    return found


def _read(folder: Path, step: str, spoken: str, version: str) -> list[tuple[str, Template]]:
    path = folder / f"{step}.{spoken}.{version}.txt"
    try:
        _, *parts = _SECTION.split(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is not there; --prompts takes a folder with question and answer templates of {LANGUAGES}"
        ) from None
    sections = [(role, Template(text)) for role, text in zip(parts[::2], parts[1::2], strict=True)]
    if "user" not in dict(sections):
        raise ConfigError(f"{path} has no section [user]; a template has the sections [system] and [user]")
    if not all(template.is_valid() for _, template in sections):
        raise ConfigError(f"{path} has a lone $; write $$ for a dollar sign")
    used = {name for _, template in sections for name in template.get_identifiers()}
    if unknown := used - STEPS[step]:
        raise ConfigError(f"{path} has unknown placeholders {sorted(unknown)}; known: {sorted(STEPS[step])}")
    if missing := (STEPS[step] - {"domain", "persona"}) - used:
        raise ConfigError(f"{path} lacks the placeholders {sorted(missing)}; the model would not see them")
    return sections
