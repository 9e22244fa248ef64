"""Rows: an index comes in, one packed row of fixed length goes out; a pure function of plan and data."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from huatuo_jax.data.dialogue import IGNORED
from huatuo_jax.data.packing import Packing, pack
from huatuo_jax.data.plan import Plan
from huatuo_jax.errors import ConfigError

Row = dict[str, np.ndarray]
PAD_ID = 0
NO_SOURCE = -1


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
        docs = np.asarray(self.plan.docs(_checked(index, len(self))))
        sources = np.searchsorted(self._offsets, docs, side="right") - 1
        return assemble(self.dataset.read(docs), sources, self.sequence_length, self.packing)


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
    tokens = np.full(sequence_length, PAD_ID, np.int32)
    targets = np.full(sequence_length, IGNORED, np.int32)
    segment_ids = np.zeros(sequence_length, np.int32)
    positions = np.zeros(sequence_length, np.int32)
    source_ids = np.full(sequence_length, NO_SOURCE, np.int32)
    faithful = packing == "faithful"
    start = 0
    for segment, ((example, unshifted), source) in enumerate(zip(examples, sources, strict=True), start=1):
        stop = start + min(len(example), sequence_length)
        tokens[start:stop] = example[: stop - start]
        first = 0 if faithful and start else 1
        targets[start - 1 + first : stop - 1] = unshifted[first : stop - start]
        segment_ids[start:stop] = 1 if faithful else segment
        positions[start:stop] = np.arange(start, stop) if faithful else np.arange(stop - start)
        source_ids[start:stop] = source
        start = stop
    return {"tokens": tokens, "targets": targets, "segment_ids": segment_ids, "positions": positions, "source_ids": source_ids}
