import numpy as np
import pytest

from data_tools.planning.planner import make_plan
from huatuo_jax.config import DataConfig, SourceMix
from huatuo_jax.data.rows import HoldoutRows, PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError, DataError
from tests.support.token_folder import assembled, dialogue, write_tokens

A = (np.array([11, 12, 13], np.int32), np.array([-100, 12, 13], np.int32))
B = (np.array([21, 22], np.int32), np.array([21, 22], np.int32))


def as_lists(row):
    return {name: array.tolist() for name, array in row.items()}


def test_first_fit_rows_keep_examples_apart():
    assert as_lists(assembled([A, B], [3, 0], 7, "first_fit")) == {
        "tokens": [11, 12, 13, 21, 22, 0, 0],
        "targets": [12, 13, -100, 22, -100, -100, -100],
        "segment_ids": [1, 1, 1, 2, 2, 0, 0],
        "positions": [0, 1, 2, 0, 1, 0, 0],
        "source_ids": [3, 3, 3, 0, 0, -1, -1],
    }


def test_faithful_rows_run_through_and_the_shift_crosses_examples():
    assert as_lists(assembled([A, B], [3, 0], 7, "faithful")) == {
        "tokens": [11, 12, 13, 21, 22, 0, 0],
        "targets": [12, 13, 21, 22, -100, -100, -100],
        "segment_ids": [1, 1, 1, 1, 1, 0, 0],
        "positions": [0, 1, 2, 3, 4, 0, 0],
        "source_ids": [3, 3, 3, 0, 0, -1, -1],
    }


def test_the_target_at_row_position_0_is_never_used():
    assert assembled([B], [0], 2, "faithful")["targets"].tolist() == [22, -100]


def test_a_longer_example_is_cut_at_the_row():
    row = assembled([A], [0], 2, "first_fit")
    assert row["tokens"].tolist() == [11, 12]
    assert row["targets"].tolist() == [12, -100]


def test_an_example_of_one_token_has_no_target_of_its_own():
    one = (np.array([2], np.int32), np.array([2], np.int32))
    assert assembled([one, one], [0, 0], 3, "first_fit")["targets"].tolist() == [-100, -100, -100]
    assert assembled([one, one], [0, 0], 3, "faithful")["targets"].tolist() == [2, -100, -100]


@pytest.fixture
def tokens(tmp_path):
    train = {"books": [dialogue(3, 4, first=10), dialogue(2, 30, first=100)], "sft": [dialogue(2, 3, first=50)]}
    return write_tokens(tmp_path / "tokens", train, {"books": [dialogue(2, 5, 30), dialogue(9, 1), dialogue(3, 3, 40)]})


@pytest.fixture
def data():
    return DataConfig(mixture={"books": SourceMix(8), "sft": SourceMix(1, 2)}, sequence_length=8)


def test_every_document_of_the_plan_lies_in_its_row(tokens, data):
    dataset = TokenDataset.open(tokens)
    rows = PlannedRows(make_plan(dataset, data), dataset)
    assert all(array.shape == (8,) and array.dtype == np.int32 for i in range(len(rows)) for array in rows[i].values())
    first_tokens = [rows[i]["tokens"][rows[i]["positions"] == 0] for i in range(len(rows))]
    assert sorted(t for found in first_tokens for t in found.tolist() if t) == [10, 50, 50, 100]
    sources = {int(t): int(s) for i in range(len(rows)) for t, s in zip(rows[i]["tokens"], rows[i]["source_ids"], strict=True)}
    assert (sources[10], sources[50], sources[0]) == (0, 1, -1)


def test_rows_outside_the_plan_raise_index_error(tokens, data):
    dataset = TokenDataset.open(tokens)
    rows = PlannedRows(make_plan(dataset, data), dataset)
    for index in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows[index]


def test_a_plan_of_other_data_is_refused(tokens, data, tmp_path):
    plan = make_plan(TokenDataset.open(tokens), data)
    other = write_tokens(tmp_path / "other", {"books": [dialogue(1, 1)], "sft": []})
    with pytest.raises(DataError, match="made of other data"):
        PlannedRows(plan, TokenDataset.open(other))


def test_holdout_rows_leave_out_what_has_no_target_before_the_cut(tokens):
    rows = HoldoutRows(TokenDataset.open(tokens), ["books"], 8, max_rows=10)
    assert [row["tokens"].tolist() for row in (rows[0], rows[1])] == [
        [30, 31, 32, 33, 34, 35, 36, 0],
        [40, 41, 42, 43, 44, 45, 0, 0],
    ]
    assert len(rows) == 2
    assert rows[1]["targets"].tolist() == [-100, -100, 43, 44, 45, -100, -100, -100]


def test_holdout_rows_stop_at_max_rows(tokens):
    assert len(HoldoutRows(TokenDataset.open(tokens), ["books"], 8, max_rows=1)) == 1


def test_a_source_without_holdout_has_no_holdout_rows(tokens):
    assert len(HoldoutRows(TokenDataset.open(tokens), ["sft"], 8, max_rows=4)) == 0


def test_an_unknown_holdout_source_is_named(tokens):
    with pytest.raises(ConfigError, match=r"'web'.*books, sft"):
        HoldoutRows(TokenDataset.open(tokens), ["web"], 8, max_rows=4)


def test_holdout_rows_of_several_sources_are_filled_up_with_padding(tmp_path):
    train = {"books": [dialogue(1, 1)], "sft": [dialogue(1, 1)]}
    held_out = {"books": [dialogue(2, 4, 30)], "sft": [dialogue(2, 5, 50), dialogue(1, 6, 70)]}
    rows = HoldoutRows(TokenDataset.open(write_tokens(tmp_path, train, held_out)), ["books", "sft"], 8, max_rows=4, multiple=4)
    assert [rows[i]["tokens"][0] for i in range(len(rows))] == [30, 50, 70, 0]
    assert [rows[i]["source_ids"][0] for i in range(len(rows))] == [0, 1, 1, -1]
    assert rows[3]["targets"].tolist() == [-100] * 8


def test_many_rows_at_once_are_the_rows_one_by_one(tokens, data):
    dataset = TokenDataset.open(tokens)
    rows = PlannedRows(make_plan(dataset, data), dataset)
    indices = [2, 0, 1, 0]
    for name, together in rows.read_rows(indices).items():
        assert together.tolist() == [rows[i][name].tolist() for i in indices]
