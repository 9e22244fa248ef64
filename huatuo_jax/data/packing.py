"""Packing: which examples share a row, from their token counts in drawn order.

The planner (`data_tools/planning/planner.py`) calls it after `priority.py` has drawn the order, and held-out rows are packed the
same way (`rows.py`). Two modes, one rule: put the example into the first open row that has room, else open a new row.

- "first_fit" keeps 8 rows open. Opening a ninth closes the oldest, so an example lands at most 7 rows before the newest one: the
  curriculum's order blurs by a few rows, never more. Best-fit, or closing the fullest row, would fill no better and lose that
  bound.
- "faithful" keeps 1 row open and closes it after every 256 examples, as the original does.

Lengths 5 4 3 2 6 1 in rows of 8, with 2 open rows (a "|" closes a row):

    5            row 0: 5
    4            row 0: 5       row 1: 4            4 has no room beside 5
    3            row 0: 5 3     row 1: 4
    2            row 0: 5 3     row 1: 4 2
    6            row 0: 5 3 |   row 1: 4 2   row 2: 6
    1                           row 1: 4 2 1 row 2: 6
    row_starts = 0 2 5 6, members (places in drawn order) = 0 2 1 3 5 4

What must hold: rows come in the order in which they were opened, so the first examples of successive rows are in drawn order;
within a row examples keep their drawn order; and the result is the same on every machine.

A Python loop over examples would take minutes for millions. So the order is cut into contiguous chunks, each packed on its own,
and step t of the loop places the t-th example of every chunk at once, with numpy. A chunk holds at least 256 rows' worth, so that
its last, partly filled rows cost little. Next to read: `plan.py`.
"""

from typing import Literal

import numpy as np

Packing = Literal["first_fit", "faithful"]

OPEN_ROWS = 8
FAITHFUL_GROUP = 256

# A chunk has at least this many draws, and at least so many rows' worth of them: it ends with up to 8 rows that are not full,
# and among 256 rows that is little.
_CHUNK_DRAWS = 16_384
_CHUNK_ROWS = 256
_SLAB_DRAWS = 1 << 22  # draws that are brought from chunks into rows at a time: 100 MB of temporary arrays


def pack(lengths: np.ndarray, sequence_length: int, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """Packs examples into rows of at most `sequence_length` tokens.

    Args:
      lengths: integer [n], tokens an example in drawn order, each at most `sequence_length`.
      sequence_length: tokens a row.
      packing: the mode.

    Returns:
      row_starts: int64 [rows + 1]; row i is members[row_starts[i] : row_starts[i + 1]].
      members: int64 [n], indices into `lengths`; a permutation.

    Raises:
      ValueError: an example is empty or longer than a row.
    """
    n = len(lengths)
    if n == 0:
        return np.zeros(1, np.int64), np.empty(0, np.int64)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 1:
        raise ValueError(f"an example has {shortest} tokens; leave it out before packing")
    if longest > sequence_length:
        raise ValueError(f"an example has {longest} tokens, a row only {sequence_length}; cut lengths before packing")
    if packing == "faithful":
        return _pack_chunks(lengths, sequence_length, FAITHFUL_GROUP, open_rows=1)
    # Chunks of equal size, for the loop takes as many steps as the longest has examples.
    mean = max(float(lengths.mean(dtype=np.float64)), 1.0)
    chunk = max(_CHUNK_DRAWS, int(_CHUNK_ROWS * sequence_length / mean))
    chunks = -(-n // chunk)
    return _pack_chunks(lengths, sequence_length, -(-n // chunks), OPEN_ROWS)


def _pack_chunks(lengths: np.ndarray, capacity: int, chunk: int, open_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs every `chunk` consecutive examples on their own, all chunks side by side."""
    n = len(lengths)
    whole, rest = divmod(n, chunk)
    chunks = whole + bool(rest)
    by_step = np.zeros((chunk, chunks), np.int32)
    by_step[:, :whole] = lengths[: whole * chunk].reshape(whole, chunk).T
    if rest:
        by_step[:rest, whole] = lengths[whole * chunk :]

    open_rows_of_chunks = _OpenRows(chunks, capacity, open_rows)
    # With 10 examples in chunks of 4 the third chunk has 2: from step 2 on only the first two chunks are active.
    row_of, rank_of = np.empty_like(by_step), np.empty_like(by_step)
    for step in range(chunk):
        active = chunks if step < rest or not rest else whole
        row_of[step, :active], rank_of[step, :active] = open_rows_of_chunks.place(by_step[step, :active])
    return _members(row_of, rank_of, open_rows_of_chunks.opened, n)


class _OpenRows:
    """The open rows of each chunk: [open rows, chunks], oldest row first.

    A row that was never opened counts as full, so the first example of a chunk opens one like any other.
    """

    def __init__(self, chunks: int, capacity: int, open_rows: int):
        self.capacity = capacity
        self.fill = np.full((open_rows, chunks), capacity, np.int32)
        self.size = np.zeros((open_rows, chunks), np.int32)
        self.opened = np.zeros(chunks, np.int32)
        self.columns = np.arange(chunks)

    def place(self, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Puts one example into each of the first n chunks, their lengths int32 [n].

        Returns:
          Its row in the chunk and its place in the row, int [n] each.
        """
        n = len(length)
        fill, size, opened, columns = self.fill[:, :n], self.size[:, :n], self.opened[:n], self.columns[:n]
        rows = len(fill)
        # The first slot with room: from the newest to the oldest, each one that has room overwrites the choice.
        slot = np.full(n, rows)
        for k in range(rows - 1, -1, -1):
            np.copyto(slot, k, where=fill[k] + length <= self.capacity)
        # Where none has room, the oldest row leaves slot 0, the others move down, and a new row takes the last slot.
        opening = slot == rows
        if opening.any():
            for k in range(rows - 1):
                np.copyto(fill[k], fill[k + 1], where=opening)
                np.copyto(size[k], size[k + 1], where=opening)
            np.copyto(fill[-1], 0, where=opening)
            np.copyto(size[-1], 0, where=opening)
            opened += opening
            slot -= opening
        rank = size[slot, columns]
        fill[slot, columns] += length
        size[slot, columns] = rank + 1
        return opened - rows + slot, rank


def _members(row_of: np.ndarray, rank_of: np.ndarray, opened: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """From (row in the chunk, place in the row) of each example, both [chunk, chunks], to `pack`'s result.

    Chunks are contiguous in drawn order, so the rows of a slab of chunks hold exactly that slab's examples: slab by slab, the
    temporary arrays stay small. Rows 0 1 0 1 and places 0 0 1 1 of four examples (row starts 0 2) give the members 0 2 1 3:
    example 2 goes to starts[0] + 1.
    """
    chunk, chunks = row_of.shape
    first_row = np.concatenate([[0], np.cumsum(opened, dtype=np.int64)])
    row_starts = np.empty(first_row[-1] + 1, np.int64)
    row_starts[-1] = n
    members = np.empty(n, np.int64)
    slab = max(1, _SLAB_DRAWS // chunk)
    for a in range(0, chunks, slab):
        b = min(a + slab, chunks)
        start, stop = a * chunk, min(b * chunk, n)
        row = (row_of[:, a:b] + (first_row[a:b] - first_row[a])).T.reshape(-1)[: stop - start]
        counts = np.bincount(row, minlength=first_row[b] - first_row[a])
        starts = start + np.cumsum(counts) - counts
        row_starts[first_row[a] : first_row[b]] = starts
        members[starts[row] + rank_of[:, a:b].T.reshape(-1)[: stop - start]] = np.arange(start, stop)
    return row_starts, members
