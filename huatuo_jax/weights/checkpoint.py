"""Checkpoints: their layout on disk, their facts, and their arrays, each verified by a fingerprint; written and read here.

    RUN/checkpoints/STEP/       an Orbax composite; STEP counts consumed batches
        params/  opt_state/     arrays by dotted name ("layers.attention.query"); a base has no opt_state
        meta/                   JSON: the resolved config, plan hash, tokenizer, dialogue format, fingerprints of all arrays

Runs save in the background through `huatuo_jax.training.saving`, which also resumes; everything else finds a model through
`huatuo_jax.weights.open` and reads `params` alone. Nothing here knows the model: what the arrays must be is asked by name, shape
and dtype. What must hold: no array is used before its fingerprint is verified, and a fault on one process is one on all.

Fingerprints. Orbax notices missing and truncated files, but not altered bytes. A sum modulo 2³² of the mixed bits of all elements
notices every single altered element, and swapped ones too, because the mixing depends on the position. It depends neither on the
sharding nor on the number of devices, so a checkpoint verifies on any mesh. `meta` carries the SHA-256 of everything else in it,
and its step must be the name of its folder: one altered bit of it would otherwise skip batches of the data.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, is_local, sha256_json

SCHEMA = 2
T = TypeVar("T")

# A number of 8 bytes becomes two words on an axis of its own, summed like two numbers: without x64 jax has no uint64.
_BIT_TYPES = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def absolute(path: PathLike) -> epath.Path:
    """The path as Orbax wants it: absolute if it is local."""
    return epath.Path(path).resolve() if is_local(path) else epath.Path(path)


def is_complete(path: epath.Path) -> bool:
    """Whether the save of this checkpoint came to its end."""
    # Orbax writes under another name and renames at the end; where renames are not atomic it leaves a file that says so.
    return path.exists() and ocp.utils.is_checkpoint_finalized(path)


def complete_steps(directory: epath.Path) -> list[int]:
    """Steps of the complete checkpoints in a directory, ascending."""
    if not directory.exists():
        return []
    # What has another name is a save that a kill cut short, or one that was found altered and moved aside.
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and is_complete(p))


def latest_checkpoint(run: PathLike) -> epath.Path:
    """The newest complete checkpoint of a run directory.

    Raises:
      DataError: there is none.
    """
    directory = absolute(run) / "checkpoints"
    steps = complete_steps(directory)
    if not steps:
        raise DataError(f"{directory} holds no complete checkpoint; `huatuo train CONFIG.py --run {run}` writes them")
    return directory / str(steps[-1])


def read_meta(path: PathLike) -> dict[str, Any]:
    """The facts of a checkpoint: step, counters, resolved config, plan hash, tokenizer, fingerprints.

    Raises:
      DataError: they cannot be read, or they were altered, or their folder was renamed.
    """
    folder = absolute(path)
    try:
        with ocp.Checkpointer(handler()) as checkpointer:
            meta = checkpointer.restore(folder, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    except Exception as error:
        raise DataError(f"the checkpoint {path} has no readable meta ({reason(error)})") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise DataError(f"the checkpoint {path} has no meta of schema {SCHEMA}; another version of huatuo-jax wrote it")
    content = {name: value for name, value in meta.items() if name != "sha256"}
    if sha256_json(content) != meta.get("sha256"):
        raise DataError(f"the checkpoint {path} is altered: the SHA-256 of its meta is not the saved one")
    if folder.parent.name == "checkpoints" and folder.name != str(meta["step"]):
        raise DataError(f"the checkpoint {path} is of step {meta['step']}: its folder was renamed")
    return meta


def read_item(path: epath.Path, item: str, tree: Any, meta: Mapping[str, Any]) -> Any:
    """One item of a checkpoint in the shapes, dtypes and shardings of an abstract tree, verified by its fingerprints.

    Raises:
      ConfigError: the checkpoint holds other arrays than the tree.
      DataError: it is torn or altered.
    """
    leaves = named_leaves(tree)
    check_same_arrays(path, leaves, meta["fingerprints"][item])
    abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in leaves.items()}

    def restore() -> dict[str, jax.Array]:
        with ocp.Checkpointer(handler()) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))[item]

    arrays = agreed(path, restore)
    _verify(path, item, {name: arrays[name] for name in leaves}, meta)
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in leaves])


def read_array(path: epath.Path, item: str, name: str, leaf: jax.ShapeDtypeStruct, meta: Mapping[str, Any]) -> jax.Array:
    """One array of an item by its dotted name, verified by its fingerprint. Raises DataError if it is torn or altered."""
    # The standard handler restores whole items only; a part of one is what the pytree handler is for.
    tree = {name: leaf}
    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)

    def restore() -> jax.Array:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arguments = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
            return checkpointer.restore(path / item, args=arguments)[name]

    array = agreed(path, restore)
    _verify(path, item, {name: array}, meta)
    return array


def read_arrays(
    path: epath.Path, shapes: Mapping[str, tuple[int, ...]], meta: Mapping[str, Any]
) -> Iterator[tuple[str, jax.Array]]:
    """Every parameter by its dotted name, one at a time, as stored, verified, in host memory.

    Args:
      shapes: dotted name → shape of what the model has.

    Raises:
      ConfigError: the checkpoint holds other arrays.
      DataError: it is torn or altered.
    """
    host = SingleDeviceSharding(_host())
    leaves = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=host) for name, shape in shapes.items()}
    leaves = as_stored(leaves, meta)
    check_same_arrays(path, leaves, meta["fingerprints"]["params"])
    for name, leaf in leaves.items():
        yield name, read_array(path, "params", name, leaf, meta)


def verify_checkpoint(path: epath.Path, on_array: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """Reads a whole checkpoint, one array at a time in host memory, and compares every fingerprint; returns its facts.

    Args:
      on_array: called after each array with its bytes.

    Raises:
      DataError: something is torn or altered, with the names.
    """
    meta, host = read_meta(path), SingleDeviceSharding(_host())
    for item, saved in meta["fingerprints"].items():
        for name, text in saved.items():
            dtype, _, shape = text.partition("]")[0].partition("[")
            sizes = tuple(int(size) for size in shape.split(",") if size)
            array = read_array(path, item, name, jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=host), meta)
            on_array(array.nbytes)
    return meta


def as_stored(leaves: Mapping[str, jax.ShapeDtypeStruct], meta: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract parameters by name, in the dtypes in which a checkpoint stores them (float32 or bfloat16)."""
    saved = meta["fingerprints"]["params"]
    dtypes = {name: jnp.dtype(text.split("[")[0]) for name, text in saved.items()}
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, dtypes.get(name, leaf.dtype), sharding=leaf.sharding)
        for name, leaf in leaves.items()
    }


def check_same_arrays(path: epath.Path, leaves: Mapping[str, Any], saved: Mapping[str, str]) -> None:
    """Raises ConfigError unless the fingerprints `saved` in a checkpoint are of arrays of these names, shapes and dtypes."""
    wanted = {name: dtype_and_shape(leaf) for name, leaf in leaves.items()}
    held = {name: text.split(":")[0] for name, text in saved.items()}
    names = [n for n in sorted(wanted.keys() | held.keys()) if wanted.get(n) != held.get(n)]
    if names:
        lines = [f"{n}: {held.get(n, 'absent')} in the checkpoint, {wanted.get(n, 'absent')} in this run" for n in names]
        raise ConfigError(f"the checkpoint {path} belongs to another model or optimizer; {_some(lines)}")


def _verify(path: epath.Path, item: str, arrays: Mapping[str, jax.Array], meta: Mapping[str, Any]) -> None:
    saved = meta["fingerprints"][item]
    altered = [name for name, fingerprint in fingerprints(arrays).items() if fingerprint != saved[name]]
    if altered:
        raise DataError(f"the checkpoint {path} is altered: the fingerprint of {item} {_some(altered)} is not the saved one")


def _host() -> jax.Device:
    """A CPU device; where JAX_PLATFORMS rules them out, the first device there is."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def agreed(path: epath.Path, work: Callable[[], T]) -> T:
    """Does `work` on every process; if it fails on one, it fails on all, so that none waits for ever."""
    value, failure = None, None
    try:
        value = work()
    except DataError as error:
        failure = error
    # Neither these nor a device without memory say anything about the checkpoint, which another machine may read.
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        failure = DataError(f"the checkpoint {path} is torn or altered ({reason(error)})")
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failed.any() and failure is None:
            failure = DataError(f"the checkpoint {path} is torn or altered (process {int(np.argmax(failed))} could not read it)")
    if failure is not None:
        raise failure
    return cast(T, value)


def save_arguments(step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> ocp.args.Composite:
    """What Orbax writes as one checkpoint: trees of arrays by item, and `meta` with the fingerprint of every array."""
    # Flat and by name: what lies on the disk must not depend on the classes of flax's and optax's containers.
    flat = {item: named_leaves(tree) for item, tree in items.items()}
    facts = {
        "schema": SCHEMA,
        "step": step,
        **meta,
        "fingerprints": {item: fingerprints(arrays) for item, arrays in flat.items()},
    }
    facts = json.loads(json.dumps(facts))  # as it will be read: tuples are lists, the keys are texts
    facts.pop("sha256", None)  # of the facts of another checkpoint, where these were taken from it
    facts["sha256"] = sha256_json(facts)
    arrays = {item: ocp.args.StandardSave(values) for item, values in flat.items()}
    return ocp.args.Composite(**arrays, meta=ocp.args.JsonSave(facts))


def write_checkpoint(path: PathLike, step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes one checkpoint and waits for it; a run, which must not wait, saves through `huatuo_jax.training.saving`."""
    with ocp.Checkpointer(handler()) as checkpointer:
        checkpointer.save(absolute(path), args=save_arguments(step, items, meta))


def handler() -> ocp.CompositeCheckpointHandler:
    """The layout of a checkpoint: what Orbax writes and reads for each item."""
    return ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(), opt_state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
    )


def reason(error: BaseException) -> str:
    """The innermost cause in one line: Orbax wraps errors of its threads, and storage errors end with the system's message."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:150] + ' … ' + text[-150:]}"


def _some(names: list[str]) -> str:
    return "; ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their dotted path, e.g. "layers.attention.query"; independent of the container classes."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def fingerprints(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Name → "dtype[shape]:sum", the sum as 8 hex digits. One pass over the arrays, on their devices.

    All processes call it together; all get the same answer.
    """
    if not arrays:
        return {}
    # One after the other: a compiler that does not fuse the sum, as on CPU, holds the bits of one array, not of all.
    mixed_sum = _compiled(_replicated(arrays))
    return {name: f"{dtype_and_shape(array)}:{int(np.asarray(mixed_sum(array))):08x}" for name, array in arrays.items()}


def dtype_and_shape(array: jax.Array | jax.ShapeDtypeStruct) -> str:
    """ "dtype[shape]" of an array or of its abstract form."""
    return f"{jnp.dtype(array.dtype).name}[{','.join(map(str, array.shape))}]"


def _replicated(arrays: Mapping[str, jax.Array]) -> NamedSharding | None:
    # The sum of a sharded array is needed whole on every process, each of which compares it for itself.
    for array in arrays.values():
        if isinstance(sharding := getattr(array, "sharding", None), NamedSharding):
            return NamedSharding(sharding.mesh, PartitionSpec())
    return None


@functools.lru_cache(maxsize=8)
def _compiled(out_sharding: NamedSharding | None) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(_mixed_sum, out_shardings=out_sharding)


def _mixed_sum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    # Bits, not values: −0.0 and 0.0 differ, and NaN equals itself.
    bits = jax.lax.bitcast_convert_type(array, _BIT_TYPES[array.dtype.itemsize]).astype(jnp.uint32)
    # The place of each element in row-major order, from its place on each axis, so that no axis has to be whole on one device:
    # element (1, 2) of an array [4, 3] has the place 1 · 3 + 2 = 5.
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    # 2³² divided by the golden ratio: it spreads the numbers of neighbouring places over all bits, so that swapping two elements
    # changes the sum.
    return jnp.sum(_mix(bits + index * jnp.uint32(0x9E3779B9)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: a bijection of 32-bit words, so one altered element always alters the sum."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
