"""The reader of the token dataset, on a small dataset that the real build wrote."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_tools.records.unified import UnifiedWriter
from data_tools.tokens.build import BuildRequest, build
from huatuo_jax.data.dialogue import encode_record
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.record import Record
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import DataError

BOOKS = [Record(str(i), "books", text=f"第{i}章：" + "内容。" * i) for i in range(1, 6)]
SFT = [Record(str(i), "sft", ("头痛怎么办？" * i, "多休息。" * (4 - i))) for i in range(1, 4)]


@pytest.fixture(scope="module")
def tokenizer(baichuan_like):
    return baichuan_like


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    with UnifiedWriter(folder / "unified") as writer:
        for record in (*SFT, *BOOKS):
            writer.write(record)
        writer.finish()
    build(BuildRequest((folder / "unified",), Path(tokenizer.path), folder / "tokens", holdout=1))
    return folder / "tokens"


def kept(dataset: TokenDataset, records: list[Record], tokenizer, split: str = "train"):
    """Each record of a split beside what the encoder makes of it; hold-out is chosen by hash, so look for both."""
    source = records[0].source
    encoded = [encode_record(record, tokenizer, get_format("huatuo")) for record in records]
    begin = dataset.offsets(split)[dataset.sources.index(source)]
    read = dataset.read(np.arange(begin, begin + dataset.count(source, split)), split)
    return read, encoded


def test_sources_are_sorted_and_numbered_one_after_the_other(tokens):
    dataset = TokenDataset.open(tokens)
    assert dataset.sources == ("books", "sft")
    assert dataset.offsets().tolist() == [0, 4, 6]
    assert dataset.offsets("holdout").tolist() == [0, 1, 2]


def test_records_are_what_the_encoder_made_in_their_order(tokens, tokenizer):
    dataset = TokenDataset.open(tokens)
    for records in (BOOKS, SFT):
        train, encoded = kept(dataset, records, tokenizer)
        held_out, _ = kept(dataset, records, tokenizer, "holdout")
        held_out_tokens = [t.tolist() for t, _ in held_out]
        expected = [e for e in encoded if e.tokens.tolist() not in held_out_tokens]
        assert len(expected) == len(train) == len(records) - 1
        for (found_tokens, found_targets), one in zip(train, expected, strict=True):
            np.testing.assert_array_equal(found_tokens, one.tokens)
            np.testing.assert_array_equal(found_targets, one.targets)


def test_statistics_say_what_the_records_hold(tokens):
    dataset = TokenDataset.open(tokens)
    for source, begin in zip(dataset.sources, dataset.offsets(), strict=False):
        for i, (found, targets) in enumerate(dataset.read(np.arange(begin, begin + dataset.count(source)))):
            learned = [p for p in range(1, len(targets)) if targets[p] != -100]
            assert dataset.lengths(source)[i] == len(found)
            assert dataset.target_counts(source)[i] == len(learned)
            assert dataset.first_targets(source)[i] == learned[0]


def test_ids_may_come_in_any_order_and_twice(tokens):
    dataset = TokenDataset.open(tokens)
    in_order = dataset.read(np.arange(6))
    mixed = dataset.read(np.array([5, 0, 5, 3]))
    for place, index in enumerate((5, 0, 5, 3)):
        np.testing.assert_array_equal(mixed[place][0], in_order[index][0])
    assert dataset.read(np.array([], np.int64)) == []


def test_threads_may_read_at_once(tokens):
    dataset = TokenDataset.open(tokens)
    in_order = [t.tolist() for t, _ in dataset.read(np.arange(6))]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda seed: dataset.read(np.random.default_rng(seed).permutation(6)), range(50)):
            assert sorted(t.tolist() for t, _ in found) == sorted(in_order)


def test_ids_out_of_range_are_refused(tokens):
    with pytest.raises(DataError, match="outside 0 … 5"):
        TokenDataset.open(tokens).read(np.array([6]))


def test_tensorflow_datasets_reads_the_same(tokens):
    tfds = pytest.importorskip("tensorflow_datasets")
    dataset = TokenDataset.open(tokens)
    for split in ("train", "holdout"):
        source = tfds.builder_from_directory(str(tokens / "books")).as_data_source(split=split)
        assert len(source) == dataset.count("books", split)
        for i, (found, targets) in enumerate(dataset.read(np.arange(len(source)), split)):
            assert source[i]["tokens"].dtype == np.int32
            np.testing.assert_array_equal(source[i]["tokens"], found)
            np.testing.assert_array_equal(source[i]["targets"], targets)


def test_hash_depends_on_the_manifest_alone(tokens):
    assert TokenDataset.open(tokens).manifest_hash == TokenDataset.open(str(tokens)).manifest_hash
    assert len(TokenDataset.open(tokens).manifest_hash) == 64


@pytest.fixture
def copy(tokens, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(tokens, tmp_path / "copy"))


def test_a_torn_shard_is_found_at_open(copy):
    shard = next((copy / "sft").glob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(DataError, match=f"{shard.name} has .* the manifest says .* build the token dataset again"):
        TokenDataset.open(copy)


def test_a_missing_shard_is_found_at_open(copy):
    shard = next((copy / "books").glob("*holdout.array_record*"))
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name} is missing; build the token dataset again"):
        TokenDataset.open(copy)


def test_arrays_that_do_not_fit_the_manifest_are_refused(copy):
    np.save(copy / "sft" / "train.lengths.npy", np.zeros(1, np.int32))
    with pytest.raises(DataError, match=r"train.lengths.npy has shape \(1,\), not \(2,\)"):
        TokenDataset.open(copy).lengths("sft")


def test_an_unfinished_build_is_told_apart_from_no_dataset(copy, tmp_path):
    with pytest.raises(DataError, match="no finished token dataset"):
        TokenDataset.open(tmp_path / "nowhere")
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="interrupted; the same `huatuo-data build` command continues it"):
        TokenDataset.open(copy)


def test_another_schema_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema": 2}))
    with pytest.raises(DataError, match="schema 2, this version reads schema 1"):
        TokenDataset.open(copy)
