"""Training from the first step to the last: `train(config, run, console)` is all of `huatuo train`; the same call again resumes.

`train` reads top to bottom: what is trained on, where, how it starts (`startup.py`), what is written, and the loop. The loop
calls the compiled step (`step.py`) on batches of the plan's rows (`data/loader.py`) and decides between steps what else is due:
log lines and held-out loss (`metrics.py`), checkpoints (`saving.py`), the end. Every process runs it, and all processes take the
same decisions after the same step; process 0 alone writes the log.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from huatuo_jax.config import RunConfig, config_to_dict
from huatuo_jax.data.loader import make_loader
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.data.tokenizers import copy_tokenizer
from huatuo_jax.errors import DoesNotFitError, HuatuoError, StoppedError
from huatuo_jax.io.files import PathLike, full_disk_named, write_json
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.hosts import Peers
from huatuo_jax.training.metrics import Evaluator, Meter, RunLog, TrainingFlops, eval_line, peak_flops
from huatuo_jax.training.saving import Checkpoints, alone_in, one_error_per_failure
from huatuo_jax.training.startup import choose_case, load_state, open_run_data, run_summary, what_must_agree, without_params
from huatuo_jax.training.step import TrainState, build_step


def train(config: RunConfig, run: PathLike, console: Console, peers: Peers | None = None) -> dict[str, Any]:
    """Trains, or goes on training, until the last step; every process calls it.

    Args:
      peers: the other processes of the run, where there are any (`hosts.start`).

    Returns:
      The figures of the run: how it started, steps, last losses, seconds.

    Raises:
      ConfigError: config, plan, data, model and run directory do not belong together; before anything is loaded.
      DoesNotFitError: mesh or memory.
      StoppedError: a signal; the state is saved.
      HuatuoError: too many non-finite updates in a row, or a checkpoint that cannot be written.
    """
    began = time.time()

    # ---------------------------------------------------------------- what is trained on
    peers = peers or Peers()
    data = peers.run_together(lambda: open_run_data(config, console))
    dataset, facts, total_steps = data.dataset, data.facts, data.total_steps

    # ---------------------------------------------------------------- where it is trained
    mesh = make_mesh(config.mesh)
    train_step = build_step(config, mesh, total_steps, dataset.sources)
    console.print(run_summary(config, mesh, total_steps))

    # ---------------------------------------------------------------- how it starts
    peers.check_shared(run)
    saving = config.checkpoint
    checkpoints = Checkpoints(epath.Path(run) / "checkpoints", saving.keep, saving.keep_every, saving.keep_best)
    start = peers.run_together(lambda: choose_case(checkpoints, config, facts))
    peers.agree(what_must_agree(config, facts, start))
    with (
        peers.watched(),
        alone_in(run),
        one_error_per_failure(),
        StopSignals() as signals,
        out_of_memory_explained(config),
        full_disk_named(Path(run)),
    ):
        checkpoints.remove_leftovers()
        # A finished run's last checkpoint is what everything after it uses: it is read, and if it is damaged the steps from the
        # one before are trained again.
        verified = load_state(start, checkpoints, train_step, config, mesh, console.print) if start.case == "finished" else None
        if verified is not None and int(verified[0].step) >= total_steps:
            console.print(f"{run} is finished: all {total_steps} steps are done, and its last checkpoint is whole")
            return {"case": start.case, "steps": total_steps}
        # Compiled before the state is loaded: a step that does not fit fails before minutes are spent on reading weights.
        console.print("compiling the step")
        compiling = time.time()
        compiled = train_step.lower().compile()
        compiled_at = time.time()
        state, meta = verified or load_state(start, checkpoints, train_step, config, mesh, console.print)
        step = int(state.step)
        how = {"fresh": "fresh, from random weights", "weights": f"from the weights of {config.init}", "finished": "resume"}
        console.print(f"{how.get(start.case, start.case)}: step {step} of {total_steps}")
        jax.block_until_ready(state.params)
        phases = {"data and devices": compiling - began, "compiling": compiled_at - compiling, "state": time.time() - compiled_at}
        console.print("  ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items()))

        # ------------------------------------------------------------ what is written
        is_writer = jax.process_index() == 0
        if is_writer:
            write_json(epath.Path(run) / "config.json", config_to_dict(config))
            write_json(epath.Path(run) / "data.json", facts)
            copy_tokenizer(dataset.tokenizer_path, run)
        log = RunLog(run, step, total_steps, console, config.logging.tensorboard) if is_writer else None
        meter, evaluator = make_meter(config, mesh, dataset, state, meta), Evaluator(config, mesh, dataset)
        loop = Loop(config, facts, checkpoints, log, meter, evaluator, int(state.skipped_in_a_row))

        # ------------------------------------------------------------ the steps
        # The step is the position in the data: row step × batch_size of the plan is the next one, on any mesh.
        try:
            with make_loader(
                PlannedRows(data.plan, dataset),
                config.batch_size,
                train_step.batch_sharding,
                start_step=step,
                num_steps=total_steps - step,
                threads=config.data.threads,
                prefetch=config.data.prefetch,
            ) as batches:
                loop.run(compiled, state, batches, step, signals)
        except BaseException as error:
            # A save in flight is good and is waited for, unless the user will not wait; what fails while all is closed shall not
            # hide what failed first.
            with contextlib.suppress(Exception):
                if isinstance(error, Exception):
                    checkpoints.wait()
            with contextlib.suppress(OSError):
                close(checkpoints, log)
            raise
        close(checkpoints, log)
    console.print(f"done: {total_steps} steps; the last checkpoint is {checkpoints.directory / str(total_steps)}")
    return {"case": start.case, "steps": total_steps, **loop.last, "seconds": time.time() - began}


def close(checkpoints: Checkpoints, log: RunLog | None) -> None:
    """Ends what a run writes."""
    checkpoints.close()
    if log is not None:
        log.close()


@dataclass
class Loop:
    """The loop over steps: dispatches one step ahead, and decides what happens between steps."""

    config: RunConfig
    facts: Mapping[str, Any]
    checkpoints: Checkpoints
    log: RunLog | None
    meter: Meter
    evaluator: Evaluator
    skipped_in_a_row: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    _held_out: Mapping[str, Any] = field(default_factory=dict)
    # Steps that are dispatched and not yet waited for: (step, its metrics on the devices, seconds waited for its batch).
    _in_flight: deque[tuple[int, Mapping[str, jax.Array], float]] = field(default_factory=deque)

    def run(
        self,
        compiled: jax.stages.Compiled,
        state: TrainState,
        batches: Iterator[Mapping[str, jax.Array]],
        step: int,
        signals: "StopSignals",
    ) -> None:
        """Trains from `step` batches consumed to the last one.

        JAX returns before a step is computed. Waiting for step n only after step n + 1 is dispatched keeps the devices busy while
        this loop looks at metrics; whatever must see the newest state (evaluation, checkpoint, stop) waits for all steps first.
        """
        total_steps = self.facts["total_steps"]
        logging = self.config.logging
        self.meter.restart_clock()
        while step < total_steps:
            waiting = time.perf_counter()
            batch = next(batches)
            input_wait = time.perf_counter() - waiting
            state, metrics = compiled(state, batch)
            step += 1
            self._in_flight.append((step, metrics, input_wait))

            # All processes come to the same answers here, from the step number, the coordination service and global metrics.
            is_last = step == total_steps
            evaluate = is_last or bool(logging.eval_every and step % logging.eval_every == 0)
            save = is_last or step % self.config.checkpoint.every == 0
            stop = signals.stop_after(step) and not is_last
            self._settle(0 if evaluate or save or stop else 1)
            # Seen up to one step late, unless all steps are waited for: one more skipped step changes nothing in the state.
            diverging = self.skipped_in_a_row > 0
            if self.skipped_in_a_row >= self.config.max_skipped:
                self.checkpoints.wait()
                usable = self.checkpoints.steps()
                saved = f"the newest checkpoint is of step {usable[-1]}" if usable else "no step is saved"
                raise HuatuoError(
                    f"{self.skipped_in_a_row} updates in a row, up to step {step}, were not finite (limit: max_skipped = "
                    f"{self.config.max_skipped}); {saved}. Look at the rows of these steps, or start another --run with a lower "
                    "optimizer.learning_rate"
                )
            if evaluate:
                self._evaluate(step, state)
            # While updates are skipped nothing is saved but at the end: a run that diverges would push its good checkpoints out.
            if is_last or stop or (save and not diverging):
                self._settle(0)
                self._save(step, state)
            self.checkpoints.tidy()
            if stop:
                self.checkpoints.wait()
                raise StoppedError(
                    f"stopped by {signals.received} after step {step} of {total_steps}; its state is saved and the same command "
                    "continues it"
                )
        self.checkpoints.wait()

    def _settle(self, keep: int) -> None:
        """Waits until at most `keep` steps are in flight, and logs those that are done."""
        while len(self._in_flight) > keep:
            step, metrics, input_wait = self._in_flight.popleft()
            if metrics["not_finite"]:
                self.skipped_in_a_row += 1
            elif not metrics["skipped"]:
                self.skipped_in_a_row = 0
            self.meter.add(metrics, input_wait)
            if step % self.config.logging.every == 0 or step == self.facts["total_steps"]:
                line = self.meter.line(step)
                self.last.update(loss=line["loss"], tokens=line["tokens"], skipped=line["skipped"])
                if self.log is not None:
                    self.log.step(line)
            elif self.log is not None:
                self.log.advance(step)

    def _evaluate(self, step: int, state: TrainState) -> None:
        if not self.evaluator.batches:  # the token dataset holds no records out
            return
        with self.meter.stopped_clock():
            line = eval_line(step, self.meter.sources, *self.evaluator(state.params))
        self.last["eval_loss"] = line["eval_loss"]
        self._held_out = line
        if self.log is not None:
            self.log.evaluation(line)

    def _save(self, step: int, state: TrainState) -> None:
        # The log first: after a resume from this checkpoint, no line up to its step may be missing.
        if self.log is not None:
            self.log.sync()
        rest = without_params(state)
        meta = {
            **{name: int(rest[name]) for name in ("updates", "skipped_total", "skipped_in_a_row")},
            **self.facts,
            "config": config_to_dict(self.config),
            # What `checkpoint.keep_best` compares; None where this step was not evaluated.
            "held_out": self._held_out if self._held_out.get("step") == step else None,
            "metrics": self.meter.saved(),
            "time": time.time(),
        }
        self.checkpoints.save(step, state.params, rest, meta)


class StopSignals:
    """Within the context a first SIGTERM, SIGINT or SIGHUP asks for a stop after this step; a second SIGINT interrupts at once.

    One process: our own handlers set a flag. Several: a signal may reach one process first, and all must leave after the same
    step, so the notice goes to JAX's coordination service, which fixes that step.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._install(signal.SIGINT, self._note)
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup the run outlives its terminal
                self._install(signal.SIGHUP, self._note)
            if not jax.distributed.is_initialized():
                self._install(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_after(self, step: int) -> bool:
        """Whether to save and leave now that `step` batches are consumed. Every process asks after every step."""
        if jax.distributed.is_initialized():
            reached = multihost_utils.reached_preemption_sync_point(step)
            if reached:
                self.received = self.received or "SIGTERM (to one of the processes)"
            return reached
        return self.received is not None

    def _install(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._before[number] = signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        # Not print: a handler may interrupt one.
        os.write(2, f"\n{self.received}: will save after this step and end; Ctrl-C now ends at once, without saving\n".encode())
        if jax.distributed.is_initialized():
            # The coordination service listens to SIGTERM alone, by a handler of its own.
            os.kill(os.getpid(), signal.SIGTERM)


def make_meter(config: RunConfig, mesh: Mesh, dataset: TokenDataset, state: TrainState, meta: Mapping[str, Any]) -> Meter:
    """The meter of this model on this mesh, continued where the checkpoint left it."""
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(state.params))
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return Meter(dataset.sources, TrainingFlops.of(config.model, parameters), peak and peak * mesh.size, meta.get("metrics"))


@contextlib.contextmanager
def out_of_memory_explained(config: RunConfig) -> Iterator[None]:
    """Turns XLA's out-of-memory errors into `DoesNotFitError` with what can be done."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        rows = config.batch_size // config.accumulation
        raise DoesNotFitError(
            f"out of device memory with {rows} rows a micro-batch: {' '.join(str(error).split())[:300]}\nTry, in this order: "
            f"--accumulation {config.accumulation * 2}; --compute.remat full (now {config.compute.remat}); --compute.loss-chunks "
            f"{config.compute.loss_chunks * 2}; more devices under --mesh.fsdp; --optimizer.state-dtype bfloat16"
        ) from error
