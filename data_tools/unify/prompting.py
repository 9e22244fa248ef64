"""Prompts: versioned text files filled with a passage, one file per step (question, answer), language and version.

A file has the sections `[system]` and `[user]`, each one message, with the placeholders `${domain}`, `${persona}`, `${passage}`
and `${question}`. Ours are in `prompts/`; `--prompts DIR` takes a folder of others, named alike: `question.zh.v1.txt`, …
What must hold: nothing about a domain is in the code, and a passage is put into a prompt as it is, whatever `$` it holds. The
messages are part of a call's key in the ledger, so another prompt asks anew. Next to read: `rewriting.py`.
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
from huatuo_jax.config import require
from huatuo_jax.io.files import sha256_json

FOLDER = Path(__file__).parent / "prompts"
STEPS = {"question": {"domain", "persona", "passage"}, "answer": {"domain", "persona", "passage", "question"}}
"""The steps in order, each with the placeholders that its prompt may hold."""
_SECTION = re.compile(r"^\[(system|user)\]\n", re.MULTILINE)


@dataclass(frozen=True)
class Cuts:
    """Characters of the passage that each step sees (None = all), and whether line breaks become the two characters `\\n`."""

    question: int | None = None
    answer: int | None = None
    escape_newlines: bool = False

    def apply(self, step: str, text: str) -> str:
        """The passage as a step's prompt shows it."""
        if step == "question":
            # Escaped first, cut then: a line break counts as two characters, as in the original.
            text = text.replace("\n", "\\n") if self.escape_newlines else text
            return text[: self.question]
        return text[: self.answer]


FAITHFUL_CUTS = Cuts(question=400, answer=600, escape_newlines=True)
"""What the original does (FIDELITY §2)."""


class Prompts:
    """The prompts of all languages, with the domain's name and the persona.

    Attributes:
      version: the files' version; values: domain and persona by language.
    """

    def __init__(
        self,
        version: str = "v1",
        folder: Path | None = None,
        domain: dict[str, str] | None = None,
        persona: dict[str, str] | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        """Reads the files.

        Args:
          folder: a folder with other files than ours.
          domain: the domain's name by language; what is left out is taken from `prompts/defaults.json`.
          persona: who asks and answers, by language; without, an expert of the domain.

        Raises:
          ConfigError: a file is missing or has a section or placeholder too many or too few.
        """
        self.version, self.cuts = version, cuts or Cuts()
        defaults = json.loads((FOLDER / "defaults.json").read_text(encoding="utf-8"))
        self.values = {}
        for language in LANGUAGES:
            name = (domain or {}).get(language, defaults[language]["domain"])
            # A domain without a persona still needs someone who speaks: "an experienced expert in law".
            expert = Template(defaults[language]["persona"]).substitute(domain=name)
            self.values[language] = {"domain": name, "persona": (persona or {}).get(language, expert)}
        self._prompts = {
            (step, language): _read(folder or FOLDER, step, language, version) for step in STEPS for language in LANGUAGES
        }

    def to_json(self) -> dict[str, Any]:
        """What the prompts were made from, for the report: version, names, and a hash of each file's text."""
        hashes = {
            f"{step}.{language}": sha256_json([[role, text.template] for role, text in sections])
            for (step, language), sections in self._prompts.items()
        }
        return {"version": self.version, "templates": hashes, **self.values, "cuts": asdict(self.cuts)}

    def question(self, language: str, passage: str) -> Messages:
        """The messages of the first call: a question for which the passage would be the answer."""
        return self._fill("question", language, passage=self.cuts.apply("question", passage))

    def answer(self, language: str, passage: str, question: str) -> Messages:
        """The messages of the second call: the question's answer, the passage being its hidden reference."""
        return self._fill("answer", language, passage=self.cuts.apply("answer", passage), question=question)

    def _fill(self, step: str, language: str, **texts: str) -> Messages:
        # One pass over the template: a "$" or "${question}" within a passage is text and stays as it is.
        values = self.values[language] | texts
        return [{"role": role, "content": text.substitute(values).strip()} for role, text in self._prompts[step, language]]


def by_language(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Reads `NAME` (every language) or `zh=NAME` (one), as `--domain` and `--persona` take them.

    Raises:
      ConfigError: if a language is given twice or a name is blank.
    """
    names: dict[str, str] = {}
    for text in texts:
        # "zh=法律" is for one language; "law", or a name with another "=" in it, for all.
        head, equals, tail = text.partition("=")
        languages, name = ((head,), tail) if equals and head in LANGUAGES else (LANGUAGES, text)
        require(bool(name.strip()), f"{option} {text!r} is blank; give NAME, or zh=NAME and en=NAME")
        for language in languages:
            twice = f"{option} is given twice for the language {language}; give zh=… and en=… once each"
            require(language not in names, twice)
            names[language] = name.strip()
    return names


def _read(folder: Path, step: str, language: str, version: str) -> list[tuple[str, Template]]:
    """The sections of one file: (role, text with placeholders)."""
    path = folder / f"{step}.{language}.{version}.txt"
    missing_file = f"{path} is not there; --prompts takes a folder with question and answer templates of {LANGUAGES}"
    require(path.is_file(), missing_file)
    _, *parts = _SECTION.split(path.read_text(encoding="utf-8"))
    # ["system", text, "user", text]
    sections = [(role, Template(text)) for role, text in zip(parts[::2], parts[1::2], strict=True)]
    require("user" in dict(sections), f"{path} has no section [user]; a template has the sections [system] and [user]")
    require(all(text.is_valid() for _, text in sections), f"{path} has a lone $; write $$ for a dollar sign")
    used = {name for _, text in sections for name in text.get_identifiers()}
    unknown = sorted(used - STEPS[step])
    require(not unknown, f"{path} has unknown placeholders {unknown}; known: {sorted(STEPS[step])}")
    # Domain and persona may be left out; without the passage (and the question) the model would invent a text.
    missing = sorted(STEPS[step] - {"domain", "persona"} - used)
    require(not missing, f"{path} lacks the placeholders {missing}; the model would not see them")
    return sections
