"""Rows: an index comes in, one packed row of fixed length goes out; a pure function of plan and data."""

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from huatuo_jax.data.dialogue import IGNORED
from huatuo_jax.data.packing import Packing, pack
from huatuo_jax.data.plan import Plan
from huatuo_jax.errors import ConfigError

Row = dict[str, np.ndarray]
PADDING = {"tokens": 0, "targets": IGNORED, "segment_ids": 0, "positions": 0, "source_ids": -1}
"""What a row holds where no example lies."""


class Documents(Protocol):
    """What rows need of a token dataset."""

    @property
    def manifest_hash(self) -> str:
        """Identity of the data."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names, in the order of document ids."""

    def offsets(self, split: str) -> np.ndarray:
        """int64 [sources + 1]: first document id of each source."""

    def lengths(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: tokens of each record."""

    def first_targets(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: first position from 1 on with a target; the length if there is none."""

    def read(self, doc_ids: np.ndarray, split: str = "train") -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and (unshifted) targets of documents."""


class RowSource:
    """The rows of a plan, by index, from any thread.

    `rows[i]` is a dict of int32 [sequence_length]:
      tokens: padded with 0.
      targets: shifted: what the model at this position shall say next; -100 = not counted.
      segment_ids: 1, 2, … per example, 0 = padding; all 1 in faithful packing, where attention crosses examples.
      positions: from 0 in each example; running through the row in faithful packing. 0 in padding.
      source_ids: index into `dataset.sources`; -1 = padding.

    Raises:
      DataError: the plan was made of other data.
    """

    def __init__(self, plan: Plan, dataset: Documents):
        plan.check_data(dataset)
        self.plan, self.dataset = plan, dataset
        self.sequence_length: int = plan.manifest["sequence_length"]
        self.packing: Packing = plan.manifest["packing"]
        self._offsets = np.asarray(dataset.offsets("train"))

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Row:
        return self.read_rows([index])[0]

    def read_rows(self, indices: Sequence[int]) -> list[Row]:
        """The rows at `indices`; many at once are read much faster than one at a time."""
        docs = [np.asarray(self.plan.docs(_checked(index, len(self)))) for index in indices]
        examples = iter(self.dataset.read(np.concatenate(docs)) if docs else ())
        sources = [np.searchsorted(self._offsets, own, side="right") - 1 for own in docs]
        return [assemble(list(itertools.islice(examples, len(own))), own, self.sequence_length, self.packing) for own in sources]


class HoldoutRows:
    """A source's held-out records, packed first-fit in their stored order; `rows[i]` as in `RowSource`.

    Args:
      dataset: the token dataset.
      source: one of its sources.
      sequence_length: longer records are cut; those without a target before the cut are left out.
      max_rows: take the first so many rows at most.
    """

    def __init__(self, dataset: Documents, source: str, sequence_length: int, max_rows: int):
        if source not in dataset.sources:
            raise ConfigError(f"no source {source!r} in the token dataset; it has {', '.join(dataset.sources)}")
        self.dataset, self.sequence_length = dataset, sequence_length
        self._source_id = dataset.sources.index(source)
        lengths = np.minimum(dataset.lengths(source, "holdout"), sequence_length)
        kept = np.flatnonzero(np.asarray(dataset.first_targets(source, "holdout")) < lengths)
        row_starts, members = pack(lengths[kept], sequence_length, "first_fit")
        self._row_starts = row_starts[: max_rows + 1]
        self._docs = kept[members] + int(dataset.offsets("holdout")[self._source_id])

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def __getitem__(self, index: int) -> Row:
        index = _checked(index, len(self))
        docs = self._docs[self._row_starts[index] : self._row_starts[index + 1]]
        sources = np.full(len(docs), self._source_id)
        return assemble(self.dataset.read(docs, "holdout"), sources, self.sequence_length, "first_fit")


def _checked(index: int, rows: int) -> int:
    if not 0 <= index < rows:
        raise IndexError(f"row {index} of {rows}")
    return index


def assemble(
    examples: Sequence[tuple[np.ndarray, np.ndarray]], sources: Sequence[int] | np.ndarray, sequence_length: int, packing: Packing
) -> Row:
    """Joins examples (tokens, unshifted targets), each cut to the row's length, into one row.

    The shift happens here, once. In first-fit packing the last token of an example predicts nothing; in faithful packing it
    predicts the first token of the next example where that is a target, and only the row's position 0 is never a target.
    """
    lengths = np.array([min(len(tokens), sequence_length) for tokens, _ in examples], np.int64)
    starts = np.cumsum(lengths) - lengths
    filled = int(lengths.sum())
    row = {name: np.full(sequence_length, padding, np.int32) for name, padding in PADDING.items()}
    if not filled:
        return row
    row["tokens"][:filled] = np.concatenate([tokens[:sequence_length] for tokens, _ in examples])
    targets = np.concatenate([unshifted[:sequence_length] for _, unshifted in examples])
    row["source_ids"][:filled] = np.repeat(sources, lengths)
    if packing == "faithful":
        row["segment_ids"][:filled] = 1
        row["positions"][:filled] = np.arange(filled)
    else:
        targets[starts[lengths > 0]] = IGNORED
        row["segment_ids"][:filled] = np.repeat(np.arange(1, len(examples) + 1), lengths)
        row["positions"][:filled] = np.arange(filled) - np.repeat(starts, lengths)
    row["targets"][: filled - 1] = targets[1:]
    return row
