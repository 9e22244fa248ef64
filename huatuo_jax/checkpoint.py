"""Checkpoints with Orbax: parameters, optimizer state and a JSON of facts in; the same on any mesh out, verified.

Layout: `DIRECTORY/STEP/` is an Orbax composite of `params` and `opt_state` (flat dictionaries from dotted names to arrays) and
`meta` (JSON). Steps count consumed batches. Training, inference and export read the same folders; the last two only `params`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from huatuo_jax.config import ModelConfig, config_from_dict
from huatuo_jax.errors import ConfigError, DataError, HuatuoError
from huatuo_jax.files import PathLike, is_local
from huatuo_jax.fingerprint import describe, fingerprints, named_leaves

SCHEMA = 1
TEMPORARY = ".orbax-checkpoint-tmp"


@dataclass(frozen=True)
class Restored:
    """A verified checkpoint: trees of global arrays, and its facts."""

    step: int
    params: Any
    opt_state: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, written in the background; the newest `keep` stay, and each multiple of `keep_every` for ever."""

    def __init__(self, directory: PathLike, keep: int = 2, keep_every: int = 0) -> None:
        self.directory = _absolute(directory)
        self.keep = keep
        self.keep_every = keep_every
        self._checkpointer = ocp.AsyncCheckpointer(_handler())
        self._saving: int | None = None
        if _is_writer():
            self.directory.mkdir(parents=True, exist_ok=True)
            for leftover in self.directory.glob(f"*{TEMPORARY}*"):
                leftover.rmtree()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return _steps(self.directory)

    def save(self, step: int, params: Any, opt_state: Any, meta: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the arrays are copied off the device, so that they may be donated.

        `meta` is extended by the fingerprint of every array. All processes call it together.

        Raises:
          HuatuoError: this or the checkpoint before could not be written (a full disk); the older ones stay as they are.
        """
        self.wait()
        items = {"params": named_leaves(params), "opt_state": named_leaves(opt_state)}
        facts = {"schema": SCHEMA, "step": step, **meta, "fingerprints": {k: fingerprints(v) for k, v in items.items()}}
        with self._explained(step):
            self._checkpointer.save(
                self.directory / str(step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(items["params"]),
                    opt_state=ocp.args.StandardSave(items["opt_state"]),
                    meta=ocp.args.JsonSave(facts),
                ),
            )
        self._saving = step

    def tidy(self) -> None:
        """Between steps: reports a failed save at once and removes what need not be kept; never waits."""
        if self._saving is not None:
            with self._explained(self._saving):
                self._checkpointer.check_for_errors()
            if _is_complete(self.directory / str(self._saving)):
                self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete, then removes what need not be kept."""
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        with self._explained(step):
            self._checkpointer.wait_until_finished()
        if _is_writer():
            for old in self.steps()[: -self.keep]:
                if not (self.keep_every and old % self.keep_every == 0):
                    _remove(self.directory / str(old))

    def close(self) -> None:
        """Ends the background thread; call `wait` first to learn of errors."""
        with contextlib.suppress(Exception):
            self._checkpointer.close()

    def meta(self, step: int) -> dict[str, Any]:
        """The facts of one checkpoint."""
        return read_meta(self.directory / str(step))

    def restore(self, step: int, params: Any, opt_state: Any) -> Restored:
        """Reads one checkpoint into the shapes, dtypes and shardings of two abstract trees and verifies it.

        Raises:
          ConfigError: it holds other arrays than the trees.
          DataError: it is torn or altered.
        """
        path = self.directory / str(step)
        meta = _agreed(path, lambda: read_meta(path))
        return Restored(step, _read(path, "params", params, meta), _read(path, "opt_state", opt_state, meta), meta)

    def restore_newest(self, params: Any, opt_state: Any, report: Callable[[str], None]) -> Restored | None:
        """The newest checkpoint that verifies, or None if there is none; a bad one is reported and kept as `corrupt-STEP`."""
        for step in reversed(self.steps()):
            try:
                return self.restore(step, params, opt_state)
            except DataError as error:
                aside = self.directory / f"corrupt-{step}"
                report(f"{error}; kept as {aside}")
                if _is_writer():
                    if aside.exists():
                        aside.rmtree()
                    (self.directory / str(step)).rename(aside)
                _barrier(f"aside-{step}")
        return None

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._saving = None
            usable = self.steps()
            newest = f"the one of step {usable[-1]} stays usable" if usable else "there is no older one"
            raise HuatuoError(
                f"the checkpoint of step {step} could not be written to {self.directory}: {_reason(error)}. {newest[0].upper()}"
                f"{newest[1:]}; make room (or set a smaller checkpoint.keep) and run the same command again to continue"
            ) from error


def latest_checkpoint(run: PathLike) -> epath.Path:
    """The newest complete checkpoint of a run directory.

    Raises:
      DataError: there is none.
    """
    directory = _absolute(run) / "checkpoints"
    steps = _steps(directory)
    if not steps:
        raise DataError(f"{directory} holds no complete checkpoint; `huatuo train CONFIG.py --run {run}` writes them")
    return directory / str(steps[-1])


def read_meta(path: PathLike) -> dict[str, Any]:
    """The facts of a checkpoint: step, counters, resolved config, plan hash, tokenizer, fingerprints.

    Raises:
      DataError: they cannot be read.
    """
    try:
        with ocp.Checkpointer(_handler()) as checkpointer:
            meta = checkpointer.restore(_absolute(path), args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    except Exception as error:
        raise DataError(f"the checkpoint {path} has no readable meta ({_reason(error)})") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
        raise DataError(f"the checkpoint {path} has no meta of schema {SCHEMA}; another version of huatuo-jax wrote it")
    return meta


Placement = Sharding | Callable[[ModelConfig, dict[str, jax.ShapeDtypeStruct]], Mapping[str, Sharding]]


def restore_params(path: PathLike, placement: Placement | None = None) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """The verified parameters of a run directory's newest checkpoint, or of one checkpoint, without the optimizer.

    Args:
      path: a run directory, or the folder of one step.
      placement: where the arrays go: one sharding for all, or a function from the model's config and the arrays' shapes by
        dotted name to a sharding for each name; the first device by default.

    Returns:
      The model's config, the parameters as nested dictionaries, and the checkpoint's facts.

    Raises:
      DataError: there is no checkpoint, or it is torn or altered.
    """
    folder = latest_checkpoint(path) if (_absolute(path) / "checkpoints").exists() else _absolute(path)
    meta = read_meta(folder)
    model = config_from_dict(ModelConfig, meta["config"]["model"])
    shapes = {name: _shape(text) for name, text in meta["fingerprints"]["params"].items()}
    if not callable(placement):
        single = placement or SingleDeviceSharding(jax.devices()[0])
        shardings: Mapping[str, Sharding] = dict.fromkeys(shapes, single)
    else:
        shardings = placement(model, shapes)
    abstract = {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[n]) for n, s in shapes.items()}
    return model, _nested(_read(folder, "params", abstract, meta)), meta


def _read(path: epath.Path, item: str, tree: Any, meta: Mapping[str, Any]) -> Any:
    wanted, saved = named_leaves(tree), meta["fingerprints"][item]
    _check_same_arrays(path, {name: describe(leaf) for name, leaf in wanted.items()}, saved)
    abstract = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for n, leaf in wanted.items()}

    def restore() -> dict[str, jax.Array]:
        with ocp.Checkpointer(_handler()) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(abstract)}))[item]

    arrays = _agreed(path, restore)
    found = fingerprints({name: arrays[name] for name in wanted})
    altered = [name for name in wanted if found[name] != saved[name]]
    if altered:
        raise DataError(f"the checkpoint {path} is altered: the fingerprint of {item} {_some(altered)} is not the saved one")
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in wanted])


def _check_same_arrays(path: epath.Path, wanted: Mapping[str, str], saved: Mapping[str, str]) -> None:
    held = {name: text.split(":")[0] for name, text in saved.items()}
    names = [n for n in sorted(wanted.keys() | held.keys()) if wanted.get(n) != held.get(n)]
    if names:
        lines = [f"{n}: {held.get(n, 'absent')} in the checkpoint, {wanted.get(n, 'absent')} in this run" for n in names]
        raise ConfigError(f"the checkpoint {path} belongs to another model or optimizer; {_some(lines)}")


def _agreed(path: epath.Path, work: Callable[[], Any]) -> Any:
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
        failure = DataError(f"the checkpoint {path} is torn or altered ({_reason(error)})")
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failed.any() and failure is None:
            failure = DataError(f"the checkpoint {path} is torn or altered (process {int(np.argmax(failed))} could not read it)")
    if failure is not None:
        raise failure
    return value


def _handler() -> ocp.CompositeCheckpointHandler:
    return ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(), opt_state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
    )


def _absolute(path: PathLike) -> epath.Path:
    return epath.Path(path).resolve() if is_local(path) else epath.Path(path)


def _is_complete(path: epath.Path) -> bool:
    return path.exists() and ocp.utils.is_checkpoint_finalized(path)


def _steps(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and _is_complete(p))


def _remove(path: epath.Path) -> None:
    """Makes the checkpoint incomplete first, so that an interrupted removal leaves nothing that looks whole."""
    if is_local(path):
        path = path.rename(path.parent / f"{path.name}{TEMPORARY}-removed")
    else:
        (path / "commit_success.txt").unlink(missing_ok=True)
    path.rmtree()


def _shape(text: str) -> jax.ShapeDtypeStruct:
    dtype, shape = text.split(":")[0].rstrip("]").split("[")
    return jax.ShapeDtypeStruct(tuple(int(n) for n in shape.split(",") if n), jax.numpy.dtype(dtype))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = out
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return out


def _some(names: list[str]) -> str:
    return "; ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: Orbax wraps errors of its threads."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _is_writer() -> bool:
    return jax.process_index() == 0


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
