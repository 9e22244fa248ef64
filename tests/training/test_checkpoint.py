"""Checkpoints: saved in the background, verified at restore, restored onto any mesh; bad ones set aside, never used."""

import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from huatuo_jax.config import MeshConfig, config_to_dict
from huatuo_jax.errors import ConfigError, DataError, HuatuoError
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.saving import Checkpoints
from huatuo_jax.weights import checkpoint
from huatuo_jax.weights.checkpoint import fingerprints, latest_checkpoint, named_leaves
from huatuo_jax.weights.open import open_stored_model
from tests.support.random_models import sharded_params

# Orbax leaves a coroutine behind when a file of a checkpoint is torn.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MODEL = preset("tiny-llama2")
META = {"config": {"model": config_to_dict(MODEL)}, "plan_hash": "abc"}


def mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh((devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def tree(devices: int = 8, scale: float = 1.0) -> dict:
    rows = NamedSharding(mesh(devices), PartitionSpec("fsdp"))
    whole = NamedSharding(mesh(devices), PartitionSpec())
    weights = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32) * scale
    return {
        "layers": {"query": jax.device_put(weights, rows), "norm": jax.device_put(jnp.ones(8, jnp.bfloat16), whole)},
        "count": jax.device_put(jnp.int32(3), whole),
    }


def abstract(values: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), values)


def saved(directory: Path, *steps: int, **options: int) -> Checkpoints:
    checkpoints = Checkpoints(directory, **options)
    for step in steps:
        checkpoints.save(step, tree(scale=step), {"mu": tree()}, META)
    checkpoints.wait()
    return checkpoints


def assert_equal(a: dict, b: dict) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_restores_what_was_saved(tmp_path: Path) -> None:
    restored = saved(tmp_path, 5).restore_newest(abstract(tree()), {"mu": abstract(tree())}, print)
    assert restored.step == 5 and restored.meta["plan_hash"] == "abc"
    assert_equal(restored.params, tree(scale=5))
    assert_equal(restored.opt_state, {"mu": tree()})


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_restores_onto_another_number_of_devices(tmp_path: Path, devices: int) -> None:
    wanted = abstract(tree(devices))
    restored = saved(tmp_path, 5).restore(5, wanted, {"mu": wanted})
    assert_equal(restored.params, tree(scale=5))
    assert restored.params["layers"]["query"].sharding == wanted["layers"]["query"].sharding


def test_keeps_the_newest_and_every_multiple(tmp_path: Path) -> None:
    assert saved(tmp_path, 10, 20, 25, 30, 35, keep=2, keep_every=20).steps() == [20, 30, 35]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["20", "30", "35"]


def test_leftovers_of_an_interrupted_save_are_removed_and_never_listed(tmp_path: Path) -> None:
    (tmp_path / "40.orbax-checkpoint-tmp-123" / "params").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == []
    checkpoints.remove_leftovers()
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    """Flips one bit of a stored weight without leaving any trace in the format: rewrites the array with Orbax itself."""
    import orbax.checkpoint as ocp

    flat = named_leaves(tree(scale=20))
    weights = np.array(flat["layers.query"])
    weights.view(np.uint32)[3, 4] ^= 1 << 7
    flat["layers.query"] = weights
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "params", flat, force=True)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    flip_a_bit(tmp_path / "20")
    warnings: list[str] = []
    restored = checkpoints.restore_newest(abstract(tree()), {"mu": abstract(tree())}, warnings.append)
    assert restored.step == 10
    assert "layers.query" in warnings[0] and "corrupt-20" in warnings[0]
    assert (tmp_path / "corrupt-20" / "params").is_dir() and checkpoints.steps() == [10]


@pytest.mark.parametrize("place", range(6))
def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path: Path, place: int) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    file = max((tmp_path / "20" / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) * (place + 1) // 8] ^= 4
    file.write_bytes(content)
    restored = checkpoints.restore_newest(abstract(tree()), {"mu": abstract(tree())}, print)
    assert_equal(restored.params, tree(scale=restored.step))


def test_a_torn_newest_checkpoint_is_set_aside(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    for file in (tmp_path / "20" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    warnings: list[str] = []
    assert checkpoints.restore_newest(abstract(tree()), {"mu": abstract(tree())}, warnings.append).step == 10
    assert "torn or altered" in warnings[0]


def test_a_checkpoint_without_readable_meta_is_set_aside(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    (tmp_path / "20" / "meta" / "metadata").write_text('{"step": 2')
    assert checkpoints.restore_newest(abstract(tree()), {"mu": abstract(tree())}, print).step == 10


def test_the_checkpoint_of_another_model_is_refused_by_name_and_stays(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    other = abstract(tree())
    other["layers"]["query"] = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=other["layers"]["query"].sharding)
    with pytest.raises(ConfigError, match=r"layers.query: float32\[16,32\] in the checkpoint, float32\[16,64\] in this run"):
        checkpoints.restore_newest(other, {"mu": abstract(tree())}, print)
    assert checkpoints.steps() == [10]


def test_a_full_disk_is_explained_and_the_older_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 10, keep=1)

    async def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint._src.serialization.jax_array_handlers.ArrayHandler.serialize", full)
    with pytest.raises(HuatuoError, match=r"step 20 could not be written.*No space left on device.*step 10 stays usable"):
        checkpoints.save(20, tree(), {"mu": tree()}, META)
        checkpoints.wait()
    monkeypatch.undo()
    checkpoints.close()
    assert Checkpoints(tmp_path).restore_newest(abstract(tree()), {"mu": abstract(tree())}, print).step == 10


@pytest.fixture(scope="module")
def model_params() -> dict:
    return sharded_params(MODEL, 0, make_mesh(MeshConfig(fsdp=2)))[1]


def test_parameters_alone_for_inference(tmp_path: Path, model_params: dict) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, model_params, {"mu": tree()}, META)
    checkpoints.wait()
    for placement in (None, make_mesh(MeshConfig(fsdp=4, tensor=2))):
        stored = open_stored_model(tmp_path)
        params = stored.params(placement)
        assert stored.config == MODEL and stored.step == 10
        assert_equal(params, model_params)
    assert open_stored_model(tmp_path / "checkpoints" / "10").step == 10


@pytest.mark.parametrize("item", ["params", "meta"])
def test_parameters_of_the_checkpoint_before_if_the_newest_is_torn(tmp_path: Path, model_params: dict, capfd, item: str) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        checkpoints.save(step, model_params, {"mu": tree()}, META)
    checkpoints.wait()
    for file in (tmp_path / "checkpoints" / "20" / item).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    stored = open_stored_model(tmp_path)
    params = stored.params()
    assert stored.step == 10
    assert_equal(params, model_params)
    assert {"params": "reading the one before it, of step 10", "meta": "looking at the one before it"}[
        item
    ] in capfd.readouterr().err
    assert (tmp_path / "checkpoints" / "20").is_dir(), "reading does not alter a run"
    with pytest.raises(DataError):
        open_stored_model(tmp_path / "checkpoints" / "20").params()


def test_no_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="huatuo train"):
        latest_checkpoint(tmp_path)


def test_fingerprints_do_not_depend_on_the_sharding() -> None:
    assert fingerprints(named_leaves(tree(8))) == fingerprints(named_leaves(tree(2)))


def test_every_single_bit_and_every_swap_changes_a_fingerprint() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    variants = [base]
    for bit in range(32):
        flipped = base.copy()
        flipped.view(np.uint32)[1, 2] ^= 1 << bit
        variants.append(flipped)
    variants += [base[::-1], base[:, [1, 0, 2, 3]], base.T.reshape(3, 4)]
    sums = fingerprints({str(i): jnp.asarray(v) for i, v in enumerate(variants)})
    assert len(set(sums.values())) == len(variants)


def test_all_dtypes_have_fingerprints() -> None:
    arrays = {d: jnp.ones((2, 3), d) for d in ("bool", "int8", "bfloat16", "float16", "float32", "int32")}
    assert fingerprints(arrays)["bfloat16"].startswith("bfloat16[2,3]:")


def test_module_names_its_own_errors() -> None:
    assert checkpoint.reason(OSError(errno.ENOSPC, "full")) == "OSError: [Errno 28] full"
