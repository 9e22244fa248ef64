"""Checkpoints of a run: `RUN/checkpoints/STEP/`, written in the background and verified when they are read.

A checkpoint is an Orbax composite of `params`, `opt_state` and `meta` (JSON: config, facts of the data, sums of the log,
fingerprint of every array). Its layout and verification are in `weights/checkpoint.py`, which inference and export read too. Here
is what only training needs: saving while the next steps run, keeping the newest few, going back to an older one when the newest
is damaged. At every moment one complete checkpoint lies on the disk: an older one is removed after the newer one is complete.

Orbax's own CheckpointManager is not used: it unlinks the files of an old step in place, so that a removal that is interrupted
leaves a directory that still counts as complete; and it knows neither fingerprints nor checkpoints set aside.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from huatuo_jax.errors import DataError, HuatuoError
from huatuo_jax.io.files import PathLike, is_local
from huatuo_jax.models.decoder import Params
from huatuo_jax.weights.checkpoint import (
    absolute,
    agreed,
    complete_steps,
    handler,
    is_complete,
    read_item,
    read_meta,
    reason,
    save_arguments,
)

TEMPORARY = ".orbax-checkpoint-tmp"


@dataclass(frozen=True)
class Restored:
    """A verified checkpoint: trees of global arrays, and its facts."""

    step: int
    params: Params
    opt_state: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, written in the background; the newest `keep` stay, and each multiple of `keep_every`."""

    def __init__(self, directory: PathLike, keep: int = 2, keep_every: int = 0) -> None:
        self.directory = absolute(directory)
        self.keep = keep
        self.keep_every = keep_every
        self._checkpointer = ocp.AsyncCheckpointer(handler())
        self._saving: int | None = None
        if _is_writer():
            self.directory.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return complete_steps(self.directory)

    def remove_leftovers(self) -> None:
        """Removes what saves and removals left behind that were interrupted; nobody else may be writing here."""
        if _is_writer():
            for leftover in self.directory.glob(f"*{TEMPORARY}*"):
                leftover.rmtree()

    def save(self, step: int, params: Params, opt_state: dict[str, Any], meta: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint; returns once the arrays are copied off the device, so that they may be donated.

        `meta` is extended by the fingerprint of every array. All processes call it together.

        Raises:
          HuatuoError: this or the checkpoint before could not be written (a full disk); the older ones stay as they are.
        """
        # One save at a time: the one before must be complete before older ones are removed, and its arrays leave host memory.
        self.wait()
        arguments = save_arguments(step, {"params": params, "opt_state": opt_state}, meta)
        with self._explained(step):
            self._checkpointer.save(self.directory / str(step), args=arguments)
        self._saving = step

    def tidy(self) -> None:
        """Between steps: reports a failed save at once and removes what need not be kept; never waits."""
        if self._saving is not None:
            with self._explained(self._saving):
                self._checkpointer.check_for_errors()
            if is_complete(self.directory / str(self._saving)):
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

    def restore(self, step: int, params: Params, opt_state: dict[str, Any]) -> Restored:
        """Reads one checkpoint into the shapes, dtypes and shardings of two abstract trees and verifies it.

        Raises:
          ConfigError: it holds other arrays than the trees.
          DataError: it is torn or altered.
        """
        path = self.directory / str(step)
        meta = agreed(path, lambda: read_meta(path))
        return Restored(step, read_item(path, "params", params, meta), read_item(path, "opt_state", opt_state, meta), meta)

    def restore_newest(self, params: Params, opt_state: dict[str, Any], report: Callable[[str], None]) -> Restored | None:
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
                # No process may list the checkpoints again before the renaming is done.
                multihost_utils.sync_global_devices(f"aside-{step}")
        return None

    @contextlib.contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._saving = None
            usable = self.steps()
            newest = f"The one of step {usable[-1]} stays usable" if usable else "There is no older one"
            raise HuatuoError(
                f"the checkpoint of step {step} could not be written to {self.directory}: {reason(error)}. {newest}; make room "
                "(or set a smaller checkpoint.keep) and run the same command again to continue"
            ) from error


def _remove(path: epath.Path) -> None:
    """Makes the checkpoint incomplete first, so that an interrupted removal leaves nothing that looks whole."""
    if is_local(path):
        path = path.rename(path.parent / f"{path.name}{TEMPORARY}-removed")
    else:
        (path / "commit_success.txt").unlink(missing_ok=True)
    path.rmtree()


def _is_writer() -> bool:
    return jax.process_index() == 0


@contextlib.contextmanager
def one_error_per_failure() -> Iterator[None]:
    """Within the context a failed save or restore appears as its exception alone.

    Orbax also logs the traceback of each of its threads, and its storage layer then reports event loops that are closed.
    """
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def filtered(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = filtered
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook
