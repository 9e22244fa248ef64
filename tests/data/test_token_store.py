"""The reader of the token dataset, on a small dataset that the real build wrote."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.records.unified import UnifiedWriter
from data_tools.tokens.build import BuildRequest, build
from huatuo_jax.data import token_store
from huatuo_jax.data.dialogue import Record, encode_record
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.token_store import TokenDataset, pack_words, unpack_words
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


def test_documents_may_be_read_end_to_end_and_cut(tokens):
    dataset = TokenDataset.open(tokens)
    in_order = dataset.read(np.arange(6))
    joined = dataset.read_joined(np.array([4, 0]), limit=3)
    assert joined.lengths.tolist() == [3, 3]
    assert joined.tokens.tolist() == [*in_order[4].tokens[:3], *in_order[0].tokens[:3]]
    assert joined.targets.tolist() == [*in_order[4].targets[:3], *in_order[0].targets[:3]]


def test_words_hold_what_the_module_says():
    tokens, targets = np.array([5, 6, 7, 8, 5], np.int32), np.array([-100, -100, 7, 8, 2], np.int32)
    words = pack_words(tokens, targets, eos_id=2)
    assert words.tolist() == [5, 6, 7 + 2**30, 8 + 2**30, 5 + 2 * 2**30]
    assert [array.tolist() for array in unpack_words(words, eos_id=2)] == [tokens.tolist(), targets.tolist()]


@given(st.lists(st.tuples(st.integers(0, 2**30 - 1), st.integers(0, 2)), max_size=50), st.integers(0, 2**30 - 1))
def test_any_tokens_and_targets_come_back(pairs, eos_id):
    tokens = np.array([token for token, _ in pairs], np.int32)
    targets = np.array([(-100, token, eos_id)[code] for token, code in pairs], np.int32)
    assert [array.tolist() for array in unpack_words(pack_words(tokens, targets, eos_id), eos_id)] == [
        tokens.tolist(),
        targets.tolist(),
    ]


def test_other_targets_are_refused():
    with pytest.raises(DataError, match=r"token 6 at place 1 has the target 9; a token dataset holds only -100 .* end token 2"):
        pack_words(np.array([5, 6], np.int32), np.array([5, 9], np.int32), eos_id=2)
    with pytest.raises(DataError, match="outside 0 … 1,073,741,823"):
        pack_words(np.array([2**30], np.int32), np.array([-100], np.int32), eos_id=2)


def test_a_remote_shard_is_copied_to_local_disk_once(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(token_store, "is_local", lambda path: False)
    expected = TokenDataset.open(copy).read(np.arange(6))
    copies = tmp_path / "cache" / "huatuo-jax" / "tokens" / TokenDataset.open(copy).manifest_hash
    assert sorted(path.name for path in copies.glob("*/*")) == ["train-00000-of-00001.tokens"] * 2
    for shard in copy.glob("*/*.tokens"):
        shard.write_bytes(bytes(shard.stat().st_size))
    for before, again in zip(expected, TokenDataset.open(copy).read(np.arange(6)), strict=True):
        np.testing.assert_array_equal(before.tokens, again.tokens)


def test_hash_depends_on_the_manifest_alone(tokens):
    assert TokenDataset.open(tokens).manifest_hash == TokenDataset.open(str(tokens)).manifest_hash
    assert len(TokenDataset.open(tokens).manifest_hash) == 64


@pytest.fixture
def copy(tokens, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(tokens, tmp_path / "copy"))


def test_a_torn_shard_is_found_at_open(copy):
    shard = next((copy / "sft").glob("train-*.tokens"))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(DataError, match=f"{shard.name} has .* the manifest says .* build the token dataset again"):
        TokenDataset.open(copy)


def test_a_changed_document_is_found_when_it_is_read_and_no_other_is_blamed(copy):
    shard = next((copy / "sft").glob("train-*.tokens"))
    words = np.fromfile(shard, "<u4")
    words[3] ^= 1
    words.tofile(shard)
    dataset = TokenDataset.open(copy)
    with pytest.raises(DataError, match=rf"{shard.name}: document 4 was changed after the build .*build the token"):
        dataset.read(np.array([5, 4]))
    with pytest.raises(DataError, match="document 4 was changed"):
        dataset.read_joined(np.array([4]), limit=1)
    assert len(dataset.read(np.array([5]))) == 1


def test_a_missing_shard_is_found_at_open(copy):
    shard = next((copy / "books").glob("holdout-*.tokens"))
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name} is missing; build the token dataset again"):
        TokenDataset.open(copy)


def test_arrays_that_do_not_fit_the_manifest_are_refused(copy):
    np.save(copy / "sft" / "train.lengths.npy", np.zeros(1, np.int32))
    with pytest.raises(DataError, match=r"train.lengths.npy holds int32 \(1,\), not int32 \(2,\)"):
        TokenDataset.open(copy).lengths("sft")


def test_an_unfinished_build_is_told_apart_from_no_dataset(copy, tmp_path):
    with pytest.raises(DataError, match="no finished token dataset"):
        TokenDataset.open(tmp_path / "nowhere")
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match="interrupted; the same `huatuo-data build` command continues it"):
        TokenDataset.open(copy)


def test_a_changed_array_is_refused(copy):
    lengths = np.load(copy / "sft" / "train.lengths.npy")
    np.save(copy / "sft" / "train.lengths.npy", lengths + 1)
    with pytest.raises(DataError, match=r"train.lengths.npy was changed after the build: .*; build the token dataset again"):
        TokenDataset.open(copy).read(np.array([0]))


def test_no_flipped_bit_is_ever_trained_on(copy):
    """Each of 300 flips in records and arrays is refused, or (a spare bit of an array's header) changes nothing."""

    def everything() -> list:
        dataset = TokenDataset.open(copy)
        statistics = [getattr(dataset, name)(source, split) for name in token_store.STATISTICS for source, split in places]
        documents = [document for split, count in ids.items() for document in dataset.read(np.arange(count), split)]
        return [*(array for document in documents for array in document), *statistics]

    places = [(source, split) for source in ("books", "sft") for split in ("train", "holdout")]
    ids = {"train": 6, "holdout": 2}
    expected, refused = everything(), 0
    random = np.random.default_rng(0)
    files = sorted([*copy.glob("*/*.tokens"), *copy.glob("*/*.npy")])
    for number in random.integers(len(files), size=300):
        file = files[number]
        good = file.read_bytes()
        bad = bytearray(good)
        bad[random.integers(len(bad))] ^= 1 << int(random.integers(8))
        file.write_bytes(bad)
        try:
            for before, after in zip(expected, everything(), strict=True):
                np.testing.assert_array_equal(before, after)
            assert file.suffix == ".npy"
        except DataError:
            refused += 1
        file.write_bytes(good)
    assert refused > 150


def test_the_old_schema_is_refused_with_the_remedy(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(DataError, match=r"reads schema 3; build the token dataset again \(`huatuo-data build`"):
        TokenDataset.open(copy)
