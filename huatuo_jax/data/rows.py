"""Packed rows: what a training step reads, as a pure function of plan, token dataset and row number.

A plan (`plan.py`) says which documents share a row, the token dataset (`token_store.py`) holds their tokens; here they become
arrays of fixed length. Next to read: `loader.py`, which reads rows ahead and moves them to the devices. What must hold: row i is
the same on every host and whatever was read before it; targets are shifted here and nowhere else.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from huatuo_jax.data.dialogue import IGNORED, Examples
from huatuo_jax.data.packing import Packing, pack
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError

RowArrays = dict[str, np.ndarray]
"""Name → int32 [rows, sequence_length], or [sequence_length] of one row:

tokens: padded with 0.
targets: shifted: the token that should follow this position; -100 = not counted.
segment_ids: 1, 2, … per example, 0 = padding; all 1 in faithful packing, where attention crosses examples.
positions: from 0 in each example; running through the row in faithful packing. 0 in padding.
source_ids: index into the token dataset's sources; -1 = padding.
"""

PADDING = {"tokens": 0, "targets": IGNORED, "segment_ids": 0, "positions": 0, "source_ids": -1}


class PackedRows:
    """Rows by number. Row i holds the documents `row_docs[row_starts[i] : row_starts[i + 1]]`; without any it is all padding."""

    def __init__(
        self,
        dataset: TokenDataset,
        split: str,
        row_starts: np.ndarray,
        row_docs: np.ndarray,
        sequence_length: int,
        packing: Packing,
    ) -> None:
        self.dataset = dataset
        self.sequence_length = sequence_length
        self.packing: Packing = packing
        self._split, self._row_starts, self._row_docs = split, row_starts, row_docs
        self._source_starts = np.asarray(dataset.offsets(split))

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def __getitem__(self, index: int) -> RowArrays:
        """One row, [sequence_length] each."""
        return {name: array[0] for name, array in self.read_rows([index]).items()}

    def read_rows(self, indices: Sequence[int]) -> RowArrays:
        """The rows at `indices`, [len(indices), sequence_length] each; many at once are read faster than one at a time.

        Raises:
          IndexError: there is no such row.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
        docs_of_rows = [np.asarray(self._row_docs[self._row_starts[i] : self._row_starts[i + 1]]) for i in indices]
        docs = np.concatenate([np.zeros(0, np.int64), *docs_of_rows])
        examples = self.dataset.read_joined(docs, self._split, limit=self.sequence_length)
        sources = np.searchsorted(self._source_starts, docs, side="right") - 1
        return assemble(examples, sources, [len(docs) for docs in docs_of_rows], self.sequence_length, self.packing)


class PlannedRows(PackedRows):
    """The rows of a plan.

    Raises:
      DataError: the plan was made of other data.
    """

    def __init__(self, plan: Plan, dataset: TokenDataset) -> None:
        plan.check_data(dataset)
        self.plan = plan
        facts = plan.manifest
        super().__init__(dataset, "train", plan.row_starts, plan.row_docs, facts["sequence_length"], facts["packing"])


class HoldoutRows(PackedRows):
    """Held-out records, source after source, each packed first-fit in stored order.

    Args:
      dataset: the token dataset.
      sources: of its sources, those to read.
      sequence_length: longer records are cut; those without a target before the cut are left out.
      max_rows: take the first so many rows of each source at most.
      multiple: rows of padding fill up to a multiple of this number.
    """

    def __init__(
        self, dataset: TokenDataset, sources: Sequence[str], sequence_length: int, max_rows: int, multiple: int = 1
    ) -> None:
        starts, docs = [0], [np.zeros(0, np.int64)]
        for source in sources:
            if source not in dataset.sources:
                raise ConfigError(f"no source {source!r} in the token dataset; it has {', '.join(dataset.sources)}")
            lengths = np.minimum(dataset.lengths(source, "holdout"), sequence_length)
            kept = np.flatnonzero(np.asarray(dataset.first_targets(source, "holdout")) < lengths)
            row_starts, members = pack(lengths[kept], sequence_length, "first_fit")
            row_starts = row_starts[: max_rows + 1]
            docs.append(kept[members[: row_starts[-1]]] + dataset.offsets("holdout")[dataset.sources.index(source)])
            starts += (row_starts[1:] + starts[-1]).tolist()
        # A row of padding holds no document: it starts where the row before it ends.
        starts += [starts[-1]] * (-(len(starts) - 1) % multiple)
        super().__init__(dataset, "holdout", np.array(starts), np.concatenate(docs), sequence_length, "first_fit")


def assemble(
    examples: Examples, sources: Sequence[int] | np.ndarray, docs_per_row: Sequence[int], sequence_length: int, packing: Packing
) -> RowArrays:
    """Lays examples (unshifted targets, no longer than a row) side by side into rows: [len(docs_per_row), sequence_length] each.

    In first-fit packing the last token of an example predicts nothing. In faithful packing it predicts the first token of the
    next example, where that is a target.
    """
    # Two examples in a row of 7, 11 12 13 with targets - 12 13 and 21 22 with targets 21 22 ("-" is -100):
    #
    #     tokens                  11  12  13  21  22   0   0
    #     targets      first fit  12  13   -  22   -   -   -
    #                  faithful   12  13  21  22   -   -   -
    #     segment_ids  first fit   1   1   1   2   2   0   0      faithful: 1 1 1 1 1 0 0
    #     positions    first fit   0   1   2   0   1   0   0      faithful: 0 1 2 3 4 0 0
    #
    # Everything is made for all rows end to end, without padding, and then cut into rows: numpy is called some twenty times,
    # however many rows and examples there are.
    lengths = examples.lengths
    docs_of_row = np.concatenate([[0], np.cumsum(docs_per_row)])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    tokens_of_row = ends[docs_of_row]
    if packing == "faithful":
        segments = np.ones(len(lengths), np.int32)
        begins, last = np.repeat(tokens_of_row[:-1], docs_per_row), tokens_of_row[1:] - 1
    else:
        segments = (np.arange(len(lengths)) - np.repeat(docs_of_row[:-1], docs_per_row) + 1).astype(np.int32)
        begins, last = ends[:-1], ends[1:] - 1
    # The one shift: the target of position i is the next token. `last` are the places that have no next token of their own.
    targets = np.append(examples.targets[1:], np.int32(IGNORED))
    if len(examples.targets):
        targets[last] = IGNORED
    joined = {
        "tokens": examples.tokens,
        "targets": targets[: len(examples.targets)],
        "segment_ids": np.repeat(segments, lengths),
        "positions": np.arange(len(examples.tokens), dtype=np.int32) - np.repeat(begins.astype(np.int32), lengths),
        "source_ids": np.repeat(np.asarray(sources, np.int32), lengths),
    }
    rows = {name: np.full((len(docs_per_row), sequence_length), padding, np.int32) for name, padding in PADDING.items()}
    for row, (begin, end) in enumerate(itertools.pairwise(tokens_of_row.tolist())):
        for name, values in joined.items():
            rows[name][row, : end - begin] = values[begin:end]
    return rows
