import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.planning.mixing import closed_form
from huatuo_jax.config import SourceMix
from huatuo_jax.data.priority import draw_order, draws_of_source, minus_log
from huatuo_jax.errors import ConfigError
from huatuo_jax.mixtures import PAPER, PAPER_RECORDS


def probability(order: tuple[int, ...], priorities: list[float]) -> float:
    """Product over t of π(x_t) / Σ of π over what is not yet drawn."""
    left = list(order)
    out = 1.0
    while left:
        out *= priorities[left[0]] / sum(priorities[x] for x in left)
        left.pop(0)
    return out


@pytest.mark.parametrize("priorities", [[1.0, 2.0, 4.0], [32.0, 4.0, 1.0, 1.0]])
def test_orders_have_the_probabilities_of_the_priority_law(priorities):
    mixture = {f"s{i}": SourceMix(priority=p) for i, p in enumerate(priorities)}
    counts = dict.fromkeys(mixture, 1)
    orders = list(itertools.permutations(range(len(priorities))))
    trials = 4000
    seen = dict.fromkeys(orders, 0)
    for seed in range(trials):
        seen[tuple(draw_order(counts, mixture, seed).tolist())] += 1
    expected = np.array([probability(order, priorities) for order in orders]) * trials
    assert math.isclose(expected.sum(), trials)
    observed = np.array(list(seen.values()))
    common = expected >= 5
    merged = lambda x: np.append(x[common], x[~common].sum())
    e, o = merged(expected), merged(observed)
    chi_square = float(((o - e)[e > 0] ** 2 / e[e > 0]).sum())
    degrees = int((e > 0).sum()) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


def test_equal_priorities_give_a_plain_shuffle():
    counts = {"a": 3000, "b": 7000}
    order = draw_order(counts, dict.fromkeys(counts, SourceMix()), seed=1)
    in_first_half = np.count_nonzero(order[:5000] < 3000)
    assert abs(in_first_half - 1500) < 4 * math.sqrt(5000 * 0.3 * 0.7 / 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_paper_mixture_follows_the_closed_form(seed):
    counts = {source: count // 10 for source, count in PAPER_RECORDS.items()}
    order = draw_order(counts, PAPER, seed)
    source = np.searchsorted(np.cumsum(list(counts.values())), order, side="right")
    shares = np.stack([np.bincount(part, minlength=9) / len(part) for part in np.array_split(source, 33)], axis=1)
    expected = np.stack(list(closed_form(counts, PAPER, 33).values()))
    assert np.abs(shares - expected).max() < 0.01


def test_closed_form_starts_with_shares_proportional_to_records_times_priority():
    curve = closed_form(PAPER_RECORDS, PAPER, 33)
    first = [curve[source][0] for source in ("medical_web_corpus_cn", "medical_books_cn", "sft")]
    assert first == pytest.approx([0.31, 0.113, 0.007], abs=0.002)
    assert curve["sft"][32] == pytest.approx(0.82, abs=0.005)
    assert np.sum(list(curve.values()), axis=0) == pytest.approx(1)


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    epochs=st.sampled_from([0.25, 1, 1.5, 2.3, 3]),
    seed=st.integers(0, 2**32),
)
def test_every_record_is_drawn_floor_epochs_times_or_once_more(counts, epochs, seed):
    named = {f"s{i}": count for i, count in enumerate(counts)}
    order = draw_order(named, dict.fromkeys(named, SourceMix(2, epochs)), seed)
    assert len(order) == sum(int(count * epochs) for count in counts)
    times = np.bincount(order, minlength=sum(counts))
    assert len(times) == sum(counts)
    assert set(times.tolist()) <= {math.floor(epochs), math.floor(epochs) + 1}


def test_copies_of_three_epochs_are_drawn_together_not_one_epoch_after_the_other():
    order = draw_order({"sft": 1000}, {"sft": SourceMix(epochs=3)}, seed=0)
    first_third = order[:1000]
    assert len(np.unique(first_third)) < 800
    assert (np.bincount(order) == 3).all()


def test_a_fraction_of_an_epoch_draws_random_records_not_the_first_ones():
    records = draws_of_source("a", 1000, 0.1, seed=0)
    assert len(np.unique(records)) == 100
    assert records.max() > 800


def test_a_source_that_is_left_out_is_not_drawn_but_still_numbered():
    assert draw_order({"a": 2, "b": 1}, {"b": SourceMix()}, 0).tolist() == [2]


def test_adding_a_source_leaves_the_order_within_the_others():
    alone = draw_order({"a": 50}, {"a": SourceMix()}, 3)
    both = draw_order({"a": 50, "b": 50}, {"a": SourceMix(), "b": SourceMix(8)}, 3)
    assert both[both < 50].tolist() == alone.tolist()


def test_the_order_is_the_same_on_every_machine():
    mixture = {"a": SourceMix(4), "b": SourceMix(1, epochs=2)}
    assert draw_order({"a": 6, "b": 3}, mixture, seed=42).tolist() == [7, 3, 1, 2, 6, 8, 5, 0, 4, 7, 6, 8]


def test_minus_log_agrees_with_the_library():
    x = np.concatenate([np.linspace(2**-53, 1 - 2**-53, 10_001), 2.0 ** -np.arange(1, 53)])
    assert np.allclose(minus_log(x), -np.log(x), rtol=4e-16, atol=0)


def test_unknown_source_is_named_beside_the_known_ones():
    with pytest.raises(ConfigError, match=r"sftt.*it has books, sft"):
        draw_order({"books": 1, "sft": 1}, {"sftt": SourceMix()}, 0)


def test_zero_or_negative_priority_is_refused():
    for priority in (0, -1):
        with pytest.raises(ConfigError, match=f"priority is {priority}"):
            SourceMix(priority=priority)


def test_more_than_two_to_the_24_records_are_no_limit():
    order = draw_order({"a": 2**24 + 1}, {"a": SourceMix()}, 0)
    assert len(order) == 2**24 + 1
    assert np.bincount(order).max() == 1
