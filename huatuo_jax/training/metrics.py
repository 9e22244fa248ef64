"""What a run reports of itself: training metrics and held-out loss as lines, and the files and console that lines go to.

`Meter` adds up the metrics of the step function (`step.py`) and makes a line of each logging interval; `Evaluator` measures the
loss on held-out records; `RunLog` writes the lines of both to `metrics.jsonl`, TensorBoard and the console, and
`report/history.py` reads them. The trainer adds a step's figures one step late and they are fetched only for a line, so the
devices always have work queued. The sums of an unfinished interval go into the checkpoint: a resumed run writes the same losses,
bit for bit, as one never stopped.
"""

import contextlib
import datetime
import math
import time
from collections.abc import Iterator, Mapping, Sequence
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
    ("v5 lite", 197.0),
    ("v5e", 197.0),
    ("v5p", 459.0),
    ("v5", 459.0),
    ("v6", 918.0),
    ("h100 pcie", 756.0),
    ("h100", 989.0),
    ("h200", 989.0),
    ("a100", 312.0),
)
"""Dense bf16 peak by a part of `device_kind`, first match; the vendors' data sheets."""


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device, or None if the kind is not in the table."""
    # The order of the table matters: "v5 lite" is found before "v5", which is a v5p.
    kind = device_kind.lower()
    return next((tflops * 1e12 for part, tflops in PEAK_BF16_TFLOPS if part in kind), None)


def flops_per_token(model: ModelConfig, parameters: int, sequence_length: int) -> float:
    """Floating-point operations of one training step per token, recomputation not counted.

    6 per parameter that is multiplied (an untied input embedding is looked up, not multiplied), and for the two causal attention
    products 6 · layers · heads · head size · sequence length: half of the square.
    """
    looked_up = 0 if model.tied_embeddings else model.vocab_size * model.hidden_size
    attention = 6 * model.num_layers * model.num_heads * model.head_dim * sequence_length
    return float(6 * (parameters - looked_up) + attention)


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
      flops: per token; peak: of all devices together, or None if unknown.
      sums: `saved()` of the run that is resumed.
    """

    def __init__(self, sources: Sequence[str], flops: float, peak: float | None, sums: Mapping[str, Any] | None = None) -> None:
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
        self._started, self._steps, self._tokens, self._input_wait = time.perf_counter(), 0, 0.0, 0.0

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
        speed = self._tokens / seconds if seconds > 0 else None
        # Totals of the run are cumulative, everything else is of this interval; a resumed run goes on with both.
        line = {
            "step": step,
            "loss": sums.loss / sums.updates if sums.updates else None,
            "learning_rate": _finite(self._last.get("learning_rate")),
            "grad_norm": _finite(self._last.get("grad_norm")),
            "tokens": int(sums.tokens),
            "target_tokens": int(sums.target_tokens),
            "tokens_per_second": speed,
            "step_seconds": seconds / self._steps if self._steps else None,
            "input_wait_seconds": self._input_wait / self._steps if self._steps else None,
            "mfu": self.flops * speed / self.peak if self.peak and speed is not None else None,
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
            self._tokens += float(metrics["tokens"])
            self.sums.tokens += float(metrics["tokens"])
            self.sums.target_tokens += float(metrics["target_tokens"])
            # A skipped batch made no update, and its loss is not a number: it enters the tokens and no mean.
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


class RunLog:
    """Everything that a run writes about its steps; process 0 has one, the others none.

    Args:
      run: the run directory.
      start_step: the step that the run starts or resumes from.
      total_steps: of the whole run.
    """

    def __init__(self, run: PathLike, start_step: int, total_steps: int, console: Console, tensorboard: bool) -> None:
        self.jsonl = open_metrics(epath.Path(run) / "metrics.jsonl", start_step)
        self.events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard hides what an earlier part of the run logged beyond the step that is resumed.
            purge = start_step + 1 if start_step else None
            self.events = SummaryWriter(logdir=str(epath.Path(run) / "tensorboard"), purge_step=purge)
        self.console = console
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

    def sync(self) -> None:
        """Before a checkpoint: nothing that precedes it may be lost."""
        self.jsonl.sync()
        if self.events is not None:
            self.events.flush()

    def close(self) -> None:
        """Ends the progress line and closes the files."""
        self._bar.stop()
        self.jsonl.close()
        if self.events is not None:
            self.events.close()

    def _seconds_a_step(self, line: Mapping[str, Any]) -> float:
        """Mean since the first line, evaluations and checkpoints included; for the first line, of its own interval."""
        if self._first_line is None:
            self._first_line = line["step"], line["time"]
        step, began = self._first_line
        return (line["time"] - began) / (line["step"] - step) if line["step"] > step else line["step_seconds"] or 0.0

    def _write(self, line: Mapping[str, Any]) -> None:
        self.jsonl.append(line)
        if self.events is not None:
            for name, value in line.items():
                if name not in ("step", "time") and value is not None:
                    self.events.add_scalar(name, value, line["step"])


def step_text(line: Mapping[str, Any]) -> str:
    """The figures of a line for people."""
    parts = ["no update" if line["loss"] is None else f"loss {line['loss']:.4f}"]
    parts.append(f"{line['tokens_per_second'] or 0:,.0f} tokens/s")
    if line["mfu"] is not None:
        parts.append(f"MFU {100 * line['mfu']:.1f} %")
    parts.append(f"input wait {1000 * (line['input_wait_seconds'] or 0):.1f} ms")
    if line["skipped"]:
        parts.append(f"skipped {line['skipped']}")
    return "  ".join(parts)
