import dataclasses
import json

import numpy as np
import pytest

from huatuo_jax.config import DataConfig, SourceMix
from huatuo_jax.data import plan as plan_module
from huatuo_jax.data.plan import Plan, settings
from huatuo_jax.errors import ConfigError, DataError

DATA = DataConfig(mixture={"books": SourceMix(8), "sft": SourceMix(1, 3)}, sequence_length=16)


class Dataset:
    manifest_hash = "data-hash"


@pytest.fixture
def plan() -> Plan:
    return Plan.of(np.array([0, 2, 5]), np.array([4, 0, 1, 3, 2]), {"token_manifest_hash": "data-hash", **settings(DATA)})


def test_rows_are_slices_of_the_documents(plan):
    assert len(plan) == 2
    assert plan.docs(1).tolist() == [1, 3, 2]


def test_a_saved_plan_loads_equal(plan, tmp_path):
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert loaded.hash == plan.hash
    assert loaded.row_docs.tolist() == plan.row_docs.tolist()
    assert isinstance(loaded.row_docs, np.memmap)


def test_the_hash_changes_with_a_single_document(plan):
    other = Plan.of(np.array([0, 2, 5]), np.array([4, 0, 1, 2, 3]), {"token_manifest_hash": "data-hash", **settings(DATA)})
    assert other.hash != plan.hash


def test_without_manifest_there_is_no_plan(plan, tmp_path):
    plan.save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DataError, match="huatuo-data plan"):
        Plan.load(tmp_path)


def test_a_torn_array_is_refused(plan, tmp_path):
    plan.save(tmp_path)
    content = (tmp_path / "row_docs.npy").read_bytes()
    (tmp_path / "row_docs.npy").write_bytes(content[:-3])
    with pytest.raises(DataError, match=r"row_docs\.npy is missing or torn"):
        Plan.load(tmp_path)


def test_one_altered_bit_is_refused(plan, tmp_path):
    plan.save(tmp_path)
    content = bytearray((tmp_path / "row_docs.npy").read_bytes())
    content[-8] ^= 1
    (tmp_path / "row_docs.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"row_docs\.npy was altered"):
        Plan.load(tmp_path)


def test_arrays_of_another_plan_are_refused(plan, tmp_path):
    plan.save(tmp_path)
    np.save(tmp_path / "row_starts.npy", np.array([0, 5]))
    with pytest.raises(DataError, match=r"int64 \[2\], the manifest says int64 \[3\]"):
        Plan.load(tmp_path)


@pytest.mark.parametrize("row_starts", [[0, 2, 2, 5], [1, 2, 5], [0, 2, 4]])
def test_row_starts_must_rise_from_zero_to_the_end(row_starts, tmp_path):
    Plan.of(np.array(row_starts), np.arange(5), {}).save(tmp_path)
    with pytest.raises(DataError, match="does not rise from 0 to 5"):
        Plan.load(tmp_path)


def test_another_schema_is_refused(plan, tmp_path):
    plan.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "schema": 7}))
    with pytest.raises(DataError, match="schema 7, this version reads 1"):
        Plan.load(tmp_path)


def test_a_file_that_is_no_plan_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="not a plan's manifest"):
        Plan.load(tmp_path)


def test_a_remote_plan_is_cached_on_local_disk_by_its_hash(plan, tmp_path, monkeypatch):
    plan.save(tmp_path / "far")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plan_module, "is_local", lambda path: False)
    assert Plan.load(tmp_path / "far").row_docs.filename == str(
        tmp_path / "cache" / "huatuo-jax" / "plans" / plan.hash / "row_docs.npy"
    )
    (tmp_path / "far" / "row_docs.npy").unlink()
    assert Plan.load(tmp_path / "far").row_docs.tolist() == plan.row_docs.tolist()


def test_matching_data_and_settings_pass(plan):
    plan.check_matches(Dataset(), DATA)


def test_a_plan_of_other_data_is_refused(plan):
    class Other:
        manifest_hash = "another-hash"

    with pytest.raises(DataError, match=r"data-hash.*another-hash"):
        plan.check_matches(Other(), DATA)


def test_every_differing_setting_is_listed_with_both_values(plan):
    changed = dataclasses.replace(DATA, seed=7, mixture={"books": SourceMix(16), "web": SourceMix(2)})
    with pytest.raises(ConfigError) as error:
        plan.check_matches(Dataset(), changed)
    text = str(error.value)
    assert "seed: 42 planned, 7 configured" in text
    assert "mixture.books.priority: 8.0 planned, 16.0 configured" in text
    assert "mixture.sft.epochs: 3.0 planned, absent configured" in text
    assert "mixture.web.priority: absent planned, 2.0 configured" in text
    assert "sequence_length" not in text
