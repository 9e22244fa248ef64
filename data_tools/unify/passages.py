"""Corpus files in, their passages one by one out, and the rows that are none with the reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.records.importing import Progress, RejectedLog, plain_stem, stable_id
from data_tools.records.layouts import canonical_source
from data_tools.unify.template import Passage, to_passage
from huatuo_jax.errors import RecordError
from huatuo_jax.io.jsonl import Fault, TornFileError, iterate_json


@dataclass(frozen=True)
class Row:
    """One row of a corpus file: a passage, or the reason why it is none; `line` is None for a file that ends too early."""

    path: Path
    line: int | None
    passage: Passage | None
    reason: str = ""

    def reject(self, rejected: RejectedLog, reason: str | None = None) -> None:
        """Writes it to the list of rejected rows."""
        if self.line is None:
            rejected.add_file(self.path, self.reason)
        else:
            rejected.add(self.path, self.line, reason or self.reason)


def read_passages(paths: Sequence[Path], source: str | None, on_read: Progress | None = None) -> Iterator[Row]:
    """Yields the rows of the files in order.

    Args:
      source: overrides the source that rows name; without both, a row's source is its file's name.
    """
    for path in paths:
        try:
            for number, value in iterate_json(path, on_read):
                try:
                    yield Row(path, number, _passage(value, path, number, source))
                except RecordError as error:
                    yield Row(path, number, None, str(error))
                except UnicodeEncodeError as error:
                    yield Row(path, number, None, f"text is not valid Unicode (lone surrogate at character {error.start})")
        except TornFileError as error:
            yield Row(path, None, None, str(error))


def _passage(value: Any, path: Path, number: int, source: str | None) -> Passage:
    if isinstance(value, Fault):
        raise RecordError(value.reason)
    own = value.get("source") if isinstance(value, dict) and isinstance(value.get("source"), str) else None
    passage = to_passage(value, canonical_source(source or own or plain_stem(path)), stable_id(value, path, number))
    f"{passage.source}\n{passage.id}\n{passage.title}\n{passage.text}".encode()
    return passage
