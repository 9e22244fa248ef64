"""Corpus files in, one JSONL file of pairs `{id, source, turns}` out, with the rejected rows beside it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.records.importing import Progress, RejectedLog, check_inputs, check_share
from data_tools.unify.coverage import CoverageStatistics
from data_tools.unify.passages import Passage, read_passages
from huatuo_jax.errors import ConfigError, RecordError
from huatuo_jax.io.files import written_aside

Unifier = Callable[[Passage], tuple[str, str]]


def rejected_path(out: Path) -> Path:
    """The file beside `out` that lists what was rejected."""
    return out.with_suffix(".rejected.jsonl")


def check_paths(paths: Sequence[Path], out: Path) -> None:
    """Raises ConfigError if a file is missing or given twice, or `out` is one of them."""
    check_inputs(paths)
    if any(path.resolve() == out.resolve() for path in paths):
        raise ConfigError(f"--out {out} is one of the input files")


class PairWriter:
    """Writes pairs and rejected rows, and counts them.

    Attributes:
      sources: pairs written per source; coverage: what of their passages survives; rejected: the rows that are no passages.
    """

    def __init__(self, pairs: Any, rejected: Any) -> None:
        self._pairs, self._rejected = pairs, rejected
        self.sources: Counter[str] = Counter()
        self.coverage = CoverageStatistics()
        self.rejected = RejectedLog(rejected)

    def pair(self, passage: Passage, question: str, answer: str) -> None:
        """Writes one pair."""
        row = {"id": passage.id, "source": passage.source, "turns": [question, answer]}
        self._pairs.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.sources[passage.source] += 1
        self.coverage.add(passage.source, passage.text, answer)

    def reject(self, row: dict[str, Any]) -> None:
        """Writes one rejected passage, with whatever belongs to it."""
        self._rejected.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def pair_writer(out: Path, check: Callable[[PairWriter], None]) -> Iterator[PairWriter]:
    """Opens `out` and the list of rejected rows aside.

    The list appears when the context ends without an error; then `check` may still raise, so that `out` does not appear.
    """
    listed = rejected_path(out)
    with written_aside(out) as aside:
        with (
            written_aside(listed) as listed_aside,
            open(listed_aside, "w", encoding="utf-8") as rejected,
            open(aside, "w", encoding="utf-8") as pairs,
        ):
            writer = PairWriter(pairs, rejected)
            yield writer
        check(writer)


def unify_files(
    paths: Sequence[Path],
    out: Path,
    to_pair: Unifier,
    source: str | None = None,
    max_rejected: float = 0.01,
    on_read: Progress | None = None,
) -> tuple[dict[str, Any], CoverageStatistics]:
    """Writes a pair per passage to `out`, and what was rejected to `out` with the suffix .rejected.jsonl.

    Args:
      to_pair: the unifier; raises RecordError for a passage of which it makes no pair.
      source: overrides the source that rows name; without both, a row's source is its file's name.

    Returns:
      records, sources, rejected, coverage, out; and how much of the passages survives.

    Raises:
      ConfigError: if a file is missing or given twice, or `out` is one of them.
      DataError: nothing to read, torn files, or too much is rejected; `out` is not written then, the list is.
    """
    check_paths(paths, out)
    check = lambda writer: check_share(writer.rejected, writer.sources.total(), max_rejected, rejected_path(out))
    with pair_writer(out, check) as writer:
        for row in read_passages(paths, source, on_read):
            if row.passage is None:
                row.reject(writer.rejected)
                continue
            try:
                question, answer = to_pair(row.passage)
            except RecordError as error:
                row.reject(writer.rejected, str(error))
                continue
            writer.pair(row.passage, question, answer)
    report = {"records": writer.sources.total(), "sources": dict(writer.sources), "rejected": writer.rejected.count}
    return {**report, "coverage": writer.coverage.report(), "out": str(out)}, writer.coverage
