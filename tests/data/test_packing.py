import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huatuo_jax.data import packing
from huatuo_jax.data.packing import OPEN_ROWS, pack


def rows(lengths, sequence_length, mode):
    row_starts, members = pack(np.asarray(lengths, np.int32), sequence_length, mode)
    return [members[a:b].tolist() for a, b in itertools.pairwise(row_starts)]


def faithful_by_hand(lengths, sequence_length):
    """The original's loop: append if it still fits, else a new row; close after every 256 examples."""
    out = []
    for group in range(0, len(lengths), 256):
        row, fill = [], 0
        for i in range(group, min(group + 256, len(lengths))):
            if row and fill + lengths[i] > sequence_length:
                out.append(row)
                row, fill = [], 0
            row.append(i)
            fill += lengths[i]
        out.append(row)
    return out


def first_fit_by_hand(lengths, sequence_length):
    out, fill = [], []
    for i, length in enumerate(lengths):
        fitting = [r for r in range(max(0, len(out) - OPEN_ROWS), len(out)) if fill[r] + length <= sequence_length]
        if fitting:
            out[fitting[0]].append(i)
            fill[fitting[0]] += length
        else:
            out.append([i])
            fill.append(length)
    return out


any_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=700)


def test_first_fit_returns_to_an_open_row_and_faithful_does_not():
    assert rows([6, 5, 4, 5], 10, "first_fit") == [[0, 2], [1, 3]]
    assert rows([6, 5, 4, 5], 10, "faithful") == [[0], [1, 2], [3]]


def test_a_full_house_closes_the_oldest_row():
    lengths = [6] + [9] * OPEN_ROWS + [4]
    assert rows(lengths, 10, "first_fit")[-1] == [OPEN_ROWS + 1]
    assert rows(lengths[1:], 10, "first_fit")[-1] == [OPEN_ROWS]
    assert rows([6] + [9] * (OPEN_ROWS - 1) + [4], 10, "first_fit")[0] == [0, OPEN_ROWS]


def test_faithful_closes_a_row_after_every_256_examples():
    assert [len(row) for row in rows([1] * 600, 1000, "faithful")] == [256, 256, 88]


@given(any_lengths)
def test_faithful_is_the_original_loop(lengths):
    assert rows(lengths, 40, "faithful") == faithful_by_hand(lengths, 40)


@given(any_lengths)
def test_first_fit_is_the_plain_loop_while_one_chunk_is_enough(lengths):
    assert rows(lengths, 40, "first_fit") == first_fit_by_hand(lengths, 40)


@settings(max_examples=50)
@given(lengths=any_lengths, mode=st.sampled_from(["first_fit", "faithful"]), chunk=st.integers(1, 50))
def test_no_example_is_lost_or_doubled_and_no_row_overflows(lengths, mode, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK_DRAWS", chunk)
        patch.setattr(packing, "_CHUNK_ROWS", 1)
        patch.setattr(packing, "_SLAB_DRAWS", 64)
        packed = rows(lengths, 40, mode)
    assert sorted(i for row in packed for i in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[i] for i in row) <= 40 for row in packed)


@settings(max_examples=50)
@given(lengths=any_lengths, chunk=st.integers(1, 200))
def test_order_blurs_by_fewer_than_8_rows(lengths, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK_DRAWS", chunk)
        patch.setattr(packing, "_CHUNK_ROWS", 1)
        packed = rows(lengths, 40, "first_fit")
    openings = [row[0] for row in packed]
    assert openings == sorted(openings)
    assert all(row == sorted(row) for row in packed)
    for row, later in zip(packed, packed[OPEN_ROWS:], strict=False):
        assert row[-1] < later[0]


def test_chunks_cost_hardly_any_fill():
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.7, 0.8, 100_000).astype(np.int32) + 1, 4096)
    row_starts, _ = pack(lengths, 4096, "first_fit")
    assert lengths.sum() / (4096 * (len(row_starts) - 1)) > 0.98


def test_short_examples_fill_rows_too():
    lengths = np.random.default_rng(0).integers(5, 30, 20_000).astype(np.int32)
    row_starts, _ = pack(lengths, 4096, "first_fit")
    assert lengths.sum() / (4096 * (len(row_starts) - 1)) > 0.98


def test_nothing_to_pack_gives_no_row():
    assert rows([], 10, "first_fit") == []


@pytest.mark.parametrize("lengths", [[11], [0]])
def test_examples_that_cannot_lie_in_a_row_are_refused(lengths):
    with pytest.raises(ValueError, match=f"has {lengths[0]} tokens"):
        pack(np.array(lengths), 10, "first_fit")
