"""The output of `unify`: one JSONL file of pairs, the list of what was rejected beside it, and figures about both.

Both ways to unify end here: `unify_by_template` below, and `pipeline.py` for pairs by a language model. What must hold: the two
files appear whole, after all rows are read, in input order; where too much is rejected, the list appears alone.
A pair is a row of JSONL that `huatuo-data import` reads: {"id": …, "source": …, "turns": [question, answer]}.
Next to read: `data_tools/records/importing.py`, which reads the pairs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.records.importing import Progress, RejectedLog, check_inputs, check_share
from data_tools.unify.filters import RecallStatistics
from data_tools.unify.passages import Passage, read_passages, to_pair
from huatuo_jax.config import require
from huatuo_jax.errors import RecordError
from huatuo_jax.io.jsonl import LineWriter, write_lines


def rejected_path(out: Path) -> Path:
    """The file beside `out` that lists what was rejected."""
    return out.with_suffix(".rejected.jsonl")


def check_paths(paths: Sequence[Path], out: Path) -> None:
    """Raises ConfigError if a file is missing or given twice, or `out` is one of them."""
    check_inputs(paths)
    require(out.resolve() not in [path.resolve() for path in paths], f"--out {out} is one of the input files")


class PairWriter:
    """Writes pairs and rejected rows, and counts them.

    Attributes:
      sources: pairs written per source; recalls: what of their passages survives; rejected: the rows that are no passages.
    """

    def __init__(self, pairs: LineWriter, rejected: LineWriter) -> None:
        self._pairs, self._rejected = pairs, rejected
        self.sources: Counter[str] = Counter()
        self.recalls = RecallStatistics()
        self.rejected = RejectedLog(rejected)

    def pair(self, passage: Passage, question: str, answer: str) -> None:
        """Writes one pair."""
        self._pairs.write({"id": passage.id, "source": passage.source, "turns": [question, answer]})
        self.sources[passage.source] += 1
        self.recalls.add(passage.source, passage.text, answer)

    def reject(self, passage: Passage, reason: str | None, tries: list[dict[str, Any]]) -> None:
        """Lists a passage of which the model's texts make no pair, with all these texts."""
        place = {"file": str(passage.path), "line": passage.line, "reason": reason}
        texts = {"id": passage.id, "source": passage.source, "title": passage.title, "text": passage.text}
        self._rejected.write({**place, **texts, "tries": tries})


@contextmanager
def pair_writer(out: Path, check: Callable[[PairWriter], None]) -> Iterator[PairWriter]:
    """Opens `out` and the list of rejected rows; both appear when the context ends without an error.

    Args:
      check: called once the list is there; if it raises an error, `out` does not appear.
    """
    # `check` runs after the inner file has appeared and before the outer one has: whoever has to look into a failed run finds the
    # list of what was rejected, and no file of pairs that looks finished.
    with write_lines(out) as pairs:
        with write_lines(rejected_path(out)) as rejected:
            writer = PairWriter(pairs, rejected)
            yield writer
        check(writer)


def unify_by_template(
    paths: Sequence[Path], out: Path, source: str | None = None, max_rejected: float = 0.01, on_read: Progress | None = None
) -> tuple[dict[str, Any], RecallStatistics]:
    """Writes a pair per passage to `out`, and what was rejected to `out` with the suffix .rejected.jsonl.

    Args:
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
        for passage in read_passages(paths, source, writer.rejected, on_read):
            try:
                writer.pair(passage, *to_pair(passage))
            except RecordError as error:
                writer.rejected.add(passage.path, passage.line, str(error))
    report = {"records": writer.sources.total(), "sources": dict(writer.sources), "rejected": writer.rejected.count}
    return {**report, "coverage": writer.recalls.report(), "out": str(out)}, writer.recalls
