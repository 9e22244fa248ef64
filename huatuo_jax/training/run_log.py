"""Log lines in; `metrics.jsonl`, TensorBoard events and the progress line on the console out."""

from collections.abc import Mapping
from typing import Any

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike
from huatuo_jax.io.jsonl import JsonLog


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
        self.events = _event_writer(epath.Path(run) / "tensorboard", start_step) if tensorboard else None
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
        """Moves the progress bar."""
        self._bar.update(self._task, completed=step)

    def step(self, line: Mapping[str, Any]) -> None:
        """Writes a line of `Meter`."""
        self._write(line)
        text = step_text(line)
        if self.console.is_terminal:
            self._bar.update(self._task, description=text, completed=line["step"])
        else:
            left = self._seconds_a_step(line) * (self.total_steps - line["step"])
            self.console.print(f"step {line['step']}/{self.total_steps}  {text}  ETA {_clock(left)}")

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
        """Since the first line, with all that lay between the steps; the first line itself knows its own steps alone."""
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


def _event_writer(folder: epath.Path, start_step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(logdir=str(folder), purge_step=start_step + 1 if start_step else None)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
