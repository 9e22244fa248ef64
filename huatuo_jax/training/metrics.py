"""Metrics of single steps in (still on the devices), lines for the log out: losses per source, speed, utilisation.

A step's figures are fetched one step late and only when they are logged, so that the devices always have work queued.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from huatuo_jax.config import ModelConfig

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
    """What a resumed run must continue: totals of the run, and sums since the last logged line."""

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


def eval_line(step: int, sources: Sequence[str], loss_sums: np.ndarray, target_tokens: np.ndarray) -> dict[str, Any]:
    """The log line of a held-out evaluation: mean loss per target token, of all sources and of each."""
    line: dict[str, Any] = {
        "step": step,
        "eval_loss": float(loss_sums.sum() / target_tokens.sum()) if target_tokens.sum() else None,
    }
    for source, loss, count in zip(sources, loss_sums.tolist(), target_tokens.tolist(), strict=True):
        if count:
            line[f"eval_loss/{source}"] = loss / count
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in line.items()}


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None
