"""Reading checkpoints: a run directory in, verified parameters and facts out; for training, inference and export alike.

Layout: `RUN/checkpoints/STEP/` is an Orbax composite of `params` and `opt_state` (flat dictionaries from dotted names to arrays)
and `meta` (JSON). Steps count consumed batches. `huatuo_jax.training.saving` writes it; inference and export read only `params`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

from huatuo_jax.config import ModelConfig
from huatuo_jax.config_files import config_from_dict
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, is_local
from huatuo_jax.models.params import Convert, abstract_params, cast, converted
from huatuo_jax.sharding import shardings_of, with_shardings
from huatuo_jax.weights.fingerprint import describe, fingerprints, named_leaves

SCHEMA = 1


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


def is_checkpoint(path: PathLike) -> bool:
    """Whether a path is a run or base directory (it has checkpoints), or the folder of one of its steps."""
    given = absolute(path)
    return (given / "checkpoints").exists() or given.parent.name == "checkpoints"


def locate_checkpoint(path: PathLike) -> tuple[epath.Path, epath.Path]:
    """The run or base directory of a path, and the folder of its newest step, or of the step that the path is.

    Raises:
      DataError: the path is neither, or has no complete checkpoint.
    """
    given = absolute(path)
    if (given / "checkpoints").exists():
        return given, latest_checkpoint(given)
    if not is_checkpoint(given):
        raise DataError(f"{path} holds no checkpoints/ and is no step in one; give a run directory, or RUN/checkpoints/STEP")
    return given.parent.parent, given


def read_meta(path: PathLike) -> dict[str, Any]:
    """The facts of a checkpoint: step, counters, resolved config, plan hash, tokenizer, fingerprints.

    Raises:
      DataError: they cannot be read.
    """
    try:
        with ocp.Checkpointer(handler()) as checkpointer:
            meta = checkpointer.restore(absolute(path), args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    except Exception as error:
        raise DataError(f"the checkpoint {path} has no readable meta ({reason(error)})") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise DataError(f"the checkpoint {path} has no meta of schema {SCHEMA}; another version of huatuo-jax wrote it")
    return meta


def restore_params(
    path: PathLike, placement: Mesh | Sharding | None = None, dtype: Any = jnp.float32, convert: Convert | None = None
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """The verified parameters of a run directory's newest whole checkpoint, or of one checkpoint, without the optimizer.

    A newest checkpoint of a run that is torn or altered is told of on stderr, and the one before it is read; the facts say which.

    Args:
      path: a run directory, or the folder of one step.
      placement: a mesh (sharded by the rules of `huatuo_jax.sharding`), one sharding for all arrays, or None = the first device.
      dtype: of the parameters; what is stored in another one is verified as stored, then cast. None = as stored.
      convert: what is kept of each parameter instead. They are then read one by one, so that a model fits which would not whole;
        the largest (all layers of one projection) exists once as stored.

    Returns:
      The model's config, the parameters as nested dictionaries (the tree of `huatuo_jax.models.decoder`), and the facts.

    Raises:
      DataError: there is no checkpoint, or it is torn or altered.
    """
    if not (absolute(path) / "checkpoints").exists():
        return _params_of(absolute(path), placement, dtype, convert)
    directory = latest_checkpoint(path).parent
    *older, newest = complete_steps(directory)
    while True:
        try:
            return _params_of(directory / str(newest), placement, dtype, convert)
        except DataError as error:
            if not older:
                raise
            newest = older.pop()
            print(f"warning: {error}; reading the one before it, of step {newest}", file=sys.stderr)


def _params_of(
    folder: epath.Path, placement: Mesh | Sharding | None, dtype: Any, convert: Convert | None
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    meta = read_meta(folder)
    model = config_from_dict(ModelConfig, meta["config"]["model"])
    abstract = abstract_params(model)
    stored = _as_stored(with_shardings(abstract, shardings_of(abstract, placement)), meta["fingerprints"]["params"])
    if convert is not None:
        _check_same_arrays(folder, stored, meta["fingerprints"]["params"])
        names = named_leaves(stored)
        kept = [converted(convert, name, read_array(folder, "params", name, leaf, meta)) for name, leaf in names.items()]
        return model, jax.tree.unflatten(jax.tree.structure(stored), kept), meta
    params = read_item(folder, "params", stored, meta)
    return model, params if dtype is None else jax.tree.map(lambda array: cast(array, dtype), params), meta


def _as_stored(abstract: Any, saved: Mapping[str, str]) -> Any:
    """The tree with the dtypes that the fingerprints tell of; weights are stored in float32 or bfloat16."""

    def stored(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        narrow = saved.get(name, "").startswith("bfloat16[")
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if narrow else leaf.dtype, sharding=leaf.sharding)

    leaves = [stored(name, leaf) for name, leaf in named_leaves(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def read_item(path: epath.Path, item: str, tree: Any, meta: Mapping[str, Any]) -> Any:
    """One item of a checkpoint in the shapes, dtypes and shardings of an abstract tree, verified by its fingerprints.

    Raises:
      ConfigError: the checkpoint holds other arrays than the tree.
      DataError: it is torn or altered.
    """
    wanted, saved = named_leaves(tree), meta["fingerprints"][item]
    _check_same_arrays(path, tree, saved)
    abstract = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for n, leaf in wanted.items()}

    def restore() -> dict[str, jax.Array]:
        with ocp.Checkpointer(handler()) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))[item]

    arrays = agreed(path, restore)
    found = fingerprints({name: arrays[name] for name in wanted})
    altered = [name for name in wanted if found[name] != saved[name]]
    if altered:
        raise DataError(f"the checkpoint {path} is altered: the fingerprint of {item} {_some(altered)} is not the saved one")
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in wanted])


def read_array(path: epath.Path, item: str, name: str, leaf: jax.ShapeDtypeStruct, meta: Mapping[str, Any]) -> jax.Array:
    """One array of an item by its dotted name, verified by its fingerprint. Raises DataError if it is torn or altered."""
    tree = {name: leaf}
    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)

    def restore() -> jax.Array:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arguments = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
            return checkpointer.restore(path / item, args=arguments)[name]

    array = agreed(path, restore)
    if fingerprints({name: array})[name] != meta["fingerprints"][item][name]:
        raise DataError(f"the checkpoint {path} is altered: the fingerprint of {item} {name} is not the saved one")
    return array


def _check_same_arrays(path: epath.Path, tree: Any, saved: Mapping[str, str]) -> None:
    """Raises ConfigError unless the checkpoint holds the arrays of an abstract tree."""
    wanted = {name: describe(leaf) for name, leaf in named_leaves(tree).items()}
    held = {name: text.split(":")[0] for name, text in saved.items()}
    names = [n for n in sorted(wanted.keys() | held.keys()) if wanted.get(n) != held.get(n)]
    if names:
        lines = [f"{n}: {held.get(n, 'absent')} in the checkpoint, {wanted.get(n, 'absent')} in this run" for n in names]
        raise ConfigError(f"the checkpoint {path} belongs to another model or optimizer; {_some(lines)}")


def agreed(path: epath.Path, work: Callable[[], Any]) -> Any:
    """Does `work` on every process; if it fails on one, it fails on all, so that none waits for ever."""
    value, failure = None, None
    try:
        value = work()
    except DataError as error:
        failure = error
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
    return value


def save_arguments(step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> ocp.args.Composite:
    """What Orbax writes as one checkpoint: trees of arrays by item, and `meta` with the fingerprint of every array."""
    flat = {item: named_leaves(tree) for item, tree in items.items()}
    facts = {
        "schema": SCHEMA,
        "step": step,
        **meta,
        "fingerprints": {item: fingerprints(arrays) for item, arrays in flat.items()},
    }
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


def absolute(path: PathLike) -> epath.Path:
    """The path as Orbax wants it: absolute if it is local."""
    return epath.Path(path).resolve() if is_local(path) else epath.Path(path)


def is_complete(path: epath.Path) -> bool:
    """Whether the save of this checkpoint came to its end."""
    return path.exists() and ocp.utils.is_checkpoint_finalized(path)


def complete_steps(directory: epath.Path) -> list[int]:
    """Steps of the complete checkpoints in a directory, ascending."""
    if not directory.exists():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and is_complete(p))


def _some(names: list[str]) -> str:
    return "; ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def reason(error: BaseException) -> str:
    """The innermost cause in one line: Orbax wraps errors of its threads, and storage errors end with what the system said."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:150] + ' … ' + text[-150:]}"
