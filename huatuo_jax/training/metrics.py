"""What a run reports of itself: training metrics and held-out loss as lines, and the files and console that lines go to.

`Meter` adds up the metrics of the step function (`step.py`) and makes a line of each logging interval; `Evaluator` measures the
loss on held-out records; `RunLog` writes the lines of both to `metrics.jsonl`, TensorBoard and the console, and
`report/history.py` reads them. The trainer adds a step's figures one step late and they are fetched only for a line, so the
devices always have work queued. The sums of an unfinished interval go into the checkpoint: a resumed run writes the same losses,
bit for bit, as one never stopped.
"""

import contextlib
import datetime
import functools
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from huatuo_jax.config import ModelConfig, RunConfig
from huatuo_jax.data.loader import make_loader
from huatuo_jax.data.rows import HoldoutRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import JsonLog, PathLike
from huatuo_jax.models.decoder import Params
from huatuo_jax.sharding import batch_sharding
from huatuo_jax.training.step import build_eval

PEAK_BF16_TFLOPS = (
    ("tpu v2", 22.5),
    ("tpu v3", 61.5),
    ("tpu v4", 275.0),
    ("tpu v5 lite", 197.0),
    ("tpu v5e", 197.0),
    ("tpu v5p?", 459.0),
    ("tpu v6", 918.0),
    ("tpu7x", 1153.5),
    ("tpu v7", 1153.5),
    ("gb200", 2500.0),
    ("gb300", 2500.0),
    ("b300", 2250.0),
    ("b200", 2250.0),
    ("b100", 1750.0),
    ("gh200", 989.0),
    ("h200", 989.0),
    ("h100 pcie", 756.0),
    ("h100 nvl", 835.0),
    ("h100", 989.0),
    ("h800", 989.0),
    ("h20", 148.0),
    ("a100", 312.0),
    ("a800", 312.0),
    ("a30", 165.0),
    ("a40", 149.7),
    ("a10", 125.0),
    ("rtx a6000", 154.8),
    ("rtx 6000 ada", 364.2),
    ("l40s", 362.0),
    ("l40", 181.0),
    ("l20", 119.5),
    ("l4", 121.0),
    ("rtx 5090", 209.5),
    ("rtx 4090(?! d)", 165.2),
    ("rtx 3090", 71.0),
)
"""Dense bf16 peak of one jax device, with fp32 accumulation, from the vendors' data sheets.

By words of `device_kind` (regular expressions), first match.
A chip of TPU v2, v3 and v7x is two devices, so each has half of the chip's peak.
"""


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device, or None if the kind is not in the table."""
    # The order of the table matters: "tpu v5 lite" is found before "tpu v5", which is a v5p. Whole words: an "L4" is no "L40S".
    kind = device_kind.lower()
    found = (tflops for name, tflops in PEAK_BF16_TFLOPS if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", kind))
    return next((tflops * 1e12 for tflops in found), None)


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of a training step, from which MFU follows; recomputation is not counted.

    Forward and backward pass together take 6 operations for each parameter that a token is multiplied with. The head counts for
    the positions at which the loss computes logits, and for no others; an untied input embedding is looked up, not multiplied.
    Attention takes 12 · heads · head size · layers for each pair of tokens that see each other: two products of 2 operations,
    three times; the pairs are half of Σ length² over the segments that are really there.

    Attributes:
      per_token: of a token that is no padding. per_logit_position: of a position with logits. per_pair: of two tokens.
    """

    per_token: float
    per_logit_position: float
    per_pair: float

    @classmethod
    def of(cls, model: ModelConfig, parameters: int) -> "TrainingFlops":
        """Those of a model with so many parameters."""
        head = model.vocab_size * model.hidden_size
        inside = parameters - (head if model.tied_embeddings else 2 * head)
        return cls(6.0 * inside, 6.0 * head, 12.0 * model.num_layers * model.num_heads * model.head_dim)

    def total(self, tokens: float, logit_positions: float, attended_pairs: float) -> float:
        """Operations of steps with these sums."""
        return self.per_token * tokens + self.per_logit_position * logit_positions + self.per_pair * attended_pairs


@dataclass
class Sums:
    """What a resumed run continues: totals of the run (first three), and sums since the last logged line."""

    tokens: float = 0.0
    target_tokens: float = 0.0
    skipped: float = 0.0
    loss: float = 0.0
    updates: int = 0
    source_loss: list[float] = field(default_factory=list)
    source_target_tokens: list[float] = field(default_factory=list)


class Meter:
    """Adds up the metrics of steps.

    Args:
      sources: names, in the order of `source_loss_sum`.
      flops: of this model; peak: FLOP/s of all devices together, or None if unknown.
      sums: `saved()` of the run that is resumed.
    """

    def __init__(
        self, sources: Sequence[str], flops: TrainingFlops, peak: float | None, sums: Mapping[str, Any] | None = None
    ) -> None:
        self.sources = tuple(sources)
        self.flops = flops
        self.peak = peak
        self.sums = Sums(**(sums or {}))
        if not sums:
            self._clear()
        self._on_device: list[Mapping[str, jax.Array]] = []
        self._last: Mapping[str, np.ndarray] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Speed is measured from here to the next line."""
        self._started, self._steps, self._input_wait = time.perf_counter(), 0, 0.0
        self._interval = dict.fromkeys(("tokens", "target_tokens", "logit_positions", "attended_pairs"), 0.0)

    @contextlib.contextmanager
    def stopped_clock(self) -> Iterator[None]:
        """Time inside is not counted as training."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def add(self, metrics: Mapping[str, jax.Array], input_wait: float) -> None:
        """Takes the metrics of one finished step; nothing is fetched yet."""
        self._on_device.append(metrics)
        self._input_wait += input_wait

    def saved(self) -> dict[str, Any]:
        """The sums as JSON values, for the checkpoint."""
        self._fetch()
        return dict(vars(self.sums))

    def line(self, step: int) -> dict[str, Any]:
        """The log line of the steps since the last one; sums of the interval start again.

        `loss` is the mean over the interval's updates; `loss/SOURCE` per target token; `input_wait_seconds` per step, like
        `step_seconds`. A figure that does not exist (no update, unknown peak) is None.
        """
        self._fetch()
        sums, seconds = self.sums, time.perf_counter() - self._started
        done, speed = self._interval, 1 / seconds if seconds > 0 else None
        flops = self.flops.total(done["tokens"], done["logit_positions"], done["attended_pairs"])
        # Totals of the run are cumulative, everything else is of this interval; a resumed run goes on with both.
        line = {
            "step": step,
            "loss": sums.loss / sums.updates if sums.updates else None,
            "learning_rate": _finite(self._last.get("learning_rate")),
            "grad_norm": _finite(self._last.get("grad_norm")),
            "tokens": int(sums.tokens),
            "target_tokens": int(sums.target_tokens),
            "tokens_per_second": done["tokens"] * speed if speed else None,
            "target_tokens_per_second": done["target_tokens"] * speed if speed else None,
            "step_seconds": seconds / self._steps if self._steps else None,
            "input_wait_seconds": self._input_wait / self._steps if self._steps else None,
            "mfu": flops * speed / self.peak if self.peak and speed else None,
            "skipped": int(sums.skipped),
            "time": time.time(),
        }
        for source, loss, count in zip(self.sources, sums.source_loss, sums.source_target_tokens, strict=True):
            if count:
                line[f"loss/{source}"] = loss / count
            line[f"target_tokens/{source}"] = int(count)
        self._clear()
        self.restart_clock()
        return line

    def _fetch(self) -> None:
        """float64 sums in the order of the steps: the same whether or not a restart lies between them."""
        for metrics in jax.device_get(self._on_device):
            self._last = metrics
            self._steps += 1
            for name in self._interval:
                self._interval[name] += float(metrics[name])
            self.sums.tokens += float(metrics["tokens"])
            self.sums.target_tokens += float(metrics["target_tokens"])
            # A skipped batch made no update, and its loss is not a number, or 0 for want of a target: it enters no mean.
            if metrics["skipped"]:
                self.sums.skipped += 1
                continue
            self.sums.loss += float(metrics["loss"])
            self.sums.updates += 1
            for i in range(len(self.sources)):
                self.sums.source_loss[i] += float(metrics["source_loss_sum"][i])
                self.sums.source_target_tokens[i] += float(metrics["source_target_tokens"][i])
        self._on_device.clear()

    def _clear(self) -> None:
        self.sums.loss, self.sums.updates = 0.0, 0
        self.sums.source_loss = [0.0] * len(self.sources)
        self.sums.source_target_tokens = [0.0] * len(self.sources)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


# ---------------------------------------------------------------- held-out loss


class Evaluator:
    """Loss on the held-out records (`huatuo-data build --holdout`), which no plan draws.

    `batches` is 0 where the token dataset holds nothing out. Rows that only pad the last batch have no target and enter no sum.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, dataset: TokenDataset) -> None:
        self.batch_rows = config.batch_size // config.accumulation
        held = [source for source in dataset.sources if dataset.count(source, "holdout")]
        self.rows = HoldoutRows(dataset, held, config.data.sequence_length, config.logging.eval_rows, multiple=self.batch_rows)
        self.batches = len(self.rows) // self.batch_rows
        self.sharding = batch_sharding(mesh)
        self.threads = config.data.threads
        self._evaluate = build_eval(config, mesh, dataset.sources)

    def __call__(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """(loss sums, target tokens), each float64 [num_sources]."""
        # All batches are dispatched before the first result is fetched, so the devices do not wait for this loop.
        with make_loader(self.rows, self.batch_rows, self.sharding, threads=self.threads) as batches:
            sums = jax.device_get([self._evaluate(params, batch) for batch in batches])
        names = ("source_loss_sum", "source_target_tokens")
        loss, tokens = (np.sum([np.asarray(s[name], np.float64) for s in sums], axis=0) for name in names)
        return loss, tokens


def eval_line(step: int, sources: Sequence[str], loss_sums: np.ndarray, target_tokens: np.ndarray) -> dict[str, Any]:
    """The log line of a held-out evaluation: mean loss per target token, of all sources and of each."""
    total = target_tokens.sum()
    line: dict[str, Any] = {"step": step, "eval_loss": float(loss_sums.sum() / total) if total else None}
    for source, loss, count in zip(sources, loss_sums.tolist(), target_tokens.tolist(), strict=True):
        if count:
            line[f"eval_loss/{source}"] = loss / count
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}


# ---------------------------------------------------------------- where lines go


def open_metrics(path: PathLike, start_step: int) -> JsonLog:
    """Opens `metrics.jsonl` without the lines beyond `start_step`: they belong to steps that a resumed run repeats.

    Raises:
      DataError: a line is not a metrics object.
    """

    def is_repeated(line: Any) -> bool:
        try:
            return line["step"] > start_step
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} has a line that is no metrics object: {line!r:.80}; remove that line") from error

    return JsonLog(path, until=is_repeated)


class TensorBoard:
    """An event file of scalars, written in the caller's thread, so that a failed write is the caller's error.

    Of tensorboardX only the file format is used: its SummaryWriter writes in a thread of its own, which a full disk ends with a
    traceback.
    """

    def __init__(self, folder: PathLike, start_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        epath.Path(folder).mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(f"{os.fspath(folder)}/events")
        # TensorBoard hides what an earlier part of the run logged from this step on, also of one killed before it had saved.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=start_step + 1, session_log=start))
        self._event = event_pb2.Event

    def write(self, line: Mapping[str, Any]) -> None:
        """The figures of a line, at its step."""
        from tensorboardX.summary import scalar

        for name, value in line.items():
            if name not in ("step", "time") and value is not None:
                self._writer.write_event(self._event(wall_time=time.time(), step=line["step"], summary=scalar(name, value)))

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


WORSE = 3
"""So many evaluations without a lower held-out loss are worth a warning."""


class RunLog:
    """Everything that a run writes about its steps; process 0 has one, the others none.

    Args:
      run: the run directory.
      start_step: the step that the run starts or resumes from.
      total_steps: of the whole run.
    """

    def __init__(self, run: PathLike, start_step: int, total_steps: int, console: Console, tensorboard: bool) -> None:
        self.jsonl = open_metrics(epath.Path(run) / "metrics.jsonl", start_step)
        self._held_out = [(row["eval_loss"], row["step"]) for row in self.jsonl.rows if row.get("eval_loss") is not None]
        self.console = console
        self.events: TensorBoard | None = None
        if tensorboard:
            self._write_events(lambda: setattr(self, "events", TensorBoard(epath.Path(run) / "tensorboard", start_step)))
        self.total_steps = total_steps
        self._first_line: tuple[int, float] | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=console.quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_steps, completed=start_step)
        self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step that is not logged."""
        self._bar.update(self._task, completed=step)

    def step(self, line: Mapping[str, Any]) -> None:
        """Writes a line of `Meter`."""
        self._write(line)
        text = step_text(line)
        # A terminal shows one line that changes; a file or a pipe gets a line each time.
        if self.console.is_terminal:
            self._bar.update(self._task, description=text, completed=line["step"])
        else:
            left = self._seconds_a_step(line) * (self.total_steps - line["step"])
            self.console.print(f"step {line['step']}/{self.total_steps}  {text}  ETA {datetime.timedelta(seconds=int(left))}")

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Writes a line of a held-out evaluation."""
        self._write(line)
        shown = "  ".join(f"{n.split('/')[-1]} {v:.3f}" for n, v in line.items() if n != "step" and v is not None)
        self.console.print(f"held out at step {line['step']}: {shown}")
        if line["eval_loss"] is not None:
            self._held_out.append((line["eval_loss"], line["step"]))
            lowest, at = min(self._held_out)
            if sum(step > at for _, step in self._held_out) >= WORSE:
                self.console.print(
                    f"held-out loss has not been lower since step {at} ({lowest:.4f}): the model may be overfitting"
                )

    def sync(self) -> None:
        """Before a checkpoint: nothing that precedes it may be lost."""
        self.jsonl.sync()
        if self.events is not None:
            self._write_events(self.events.flush)

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        self._bar.stop()
        if self.events is not None:
            self._write_events(self.events.close)
        self.jsonl.close()

    def _seconds_a_step(self, line: Mapping[str, Any]) -> float:
        """Mean since the first line, evaluations and checkpoints included; for the first line, of its own interval."""
        if self._first_line is None:
            self._first_line = line["step"], line["time"]
        step, began = self._first_line
        return (line["time"] - began) / (line["step"] - step) if line["step"] > step else line["step_seconds"] or 0.0

    def _write(self, line: Mapping[str, Any]) -> None:
        self.jsonl.append(line)
        if self.events is not None:
            self._write_events(functools.partial(self.events.write, line))

    def _write_events(self, write: Callable[[], Any]) -> None:
        """TensorBoard shows what metrics.jsonl holds: a full disk costs a run its curves there, not its training."""
        try:
            write()
        except OSError as error:
            self.console.print(f"TensorBoard files are not written any more ({error}); metrics.jsonl has every line")
            self.events = None


def step_text(line: Mapping[str, Any]) -> str:
    """The figures of a line for people."""
    parts = ["no update" if line["loss"] is None else f"loss {line['loss']:.4f}"]
    parts.append(f"{line['tokens_per_second'] or 0:,.0f} tokens/s")
    parts.append(f"{line['target_tokens_per_second'] or 0:,.0f} targets/s")
    if line["mfu"] is not None:
        parts.append(f"MFU {100 * line['mfu']:.1f} %")
    parts.append(f"input wait {1000 * (line['input_wait_seconds'] or 0):.1f} ms")
    if line["skipped"]:
        parts.append(f"skipped {line['skipped']}")
    return "  ".join(parts)
