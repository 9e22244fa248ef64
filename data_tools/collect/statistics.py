"""Counts of a shard or of a run: documents, passages, characters and bytes after each step, per source; drops with examples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

STEPS = ("raw", "extracted", "cleaned", "deduplicated", "decontaminated")
EXAMPLES = 3
EXAMPLE_CHARS = 160
LENGTH_BIN = 50
"""Width of a bin of the length histograms, in characters; texts of 3,000 and more share the last one."""
LAST_BIN = 60


@dataclass
class Statistics:
    """Counts that can be added up.

    Attributes:
      steps: source → step → [texts, characters, bytes]; texts are documents in raw and extracted, then passages.
      drops: reason → source → [texts, characters, bytes].
      examples: reason → the first few of what was dropped.
      lengths: source → step → texts per bin.
      masks: kind of personal data → how often it was masked.
      unreadable: lines and files in quarantine.
    """

    steps: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    drops: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    lengths: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0

    def count(self, source: str, step: str, text: str) -> None:
        """Counts a text that is there after a step."""
        _add(self.steps.setdefault(source, {}).setdefault(step, [0, 0, 0]), [1, len(text), len(text.encode("utf-8"))])
        bins = self.lengths.setdefault(source, {}).setdefault(step, [0] * (LAST_BIN + 1))
        bins[min(len(text) // LENGTH_BIN, LAST_BIN)] += 1

    def drop(self, source: str, reason: str, text: str, to_shown: Callable[[str], str] = str) -> None:
        """Counts a dropped text and, if there are few examples, keeps what `to_shown` makes of it as one."""
        _add(self.drops.setdefault(reason, {}).setdefault(source, [0, 0, 0]), [1, len(text), len(text.encode("utf-8"))])
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(" ".join(to_shown(text)[: 2 * EXAMPLE_CHARS].split())[:EXAMPLE_CHARS])

    def mask(self, counts: dict[str, int]) -> None:
        """Counts masked personal data."""
        for kind, count in counts.items():
            self.masks[kind] = self.masks.get(kind, 0) + count

    def add(self, other: "Statistics") -> None:
        """Adds the counts of another part of the run."""
        for mine, theirs in ((self.steps, other.steps), (self.drops, other.drops), (self.lengths, other.lengths)):
            for outer, entries in theirs.items():
                for inner, values in entries.items():
                    _add(mine.setdefault(outer, {}).setdefault(inner, [0] * len(values)), values)
        for reason, examples in other.examples.items():
            own = self.examples.setdefault(reason, [])
            own.extend(examples[: EXAMPLES - len(own)])
        self.mask(other.masks)
        self.unreadable += other.unreadable

    def total(self, step: str) -> list[int]:
        """[texts, characters, bytes] of all sources after a step."""
        out = [0, 0, 0]
        for entry in self.steps.values():
            _add(out, entry.get(step, [0, 0, 0]))
        return out

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON; `Statistics(**…)` gives them back."""
        return dict(vars(self))


def _add(into: list[int], values: list[int]) -> None:
    for i, value in enumerate(values):
        into[i] += value
