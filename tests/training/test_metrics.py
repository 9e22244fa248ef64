"""Log lines: what a figure means, and that a restart changes none of them."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.cli.console import make_console
from huatuo_jax.config import ModelConfig
from huatuo_jax.errors import DataError
from huatuo_jax.training.metrics import Meter, RunLog, TrainingFlops, eval_line, open_metrics, peak_flops, step_text
from tests.support.tiny_run import TIMES

SOURCES = ("books", "sft")
FLOPS = TrainingFlops(per_token=10.0, per_logit_position=5.0, per_pair=2.0)


def metrics(loss: float, books: tuple[float, float], sft: tuple[float, float], skipped: int = 0) -> dict:
    """Metrics of a step; a source is given as (sum of its losses, its target tokens)."""
    values = {
        "loss": loss,
        "grad_norm": 2.0,
        "learning_rate": 1e-3,
        "tokens": 100,
        "target_tokens": books[1] + sft[1],
        "logit_positions": 64,
        "attended_pairs": 1000,
        "skipped": skipped,
        "not_finite": skipped,
        "source_loss_sum": [books[0], sft[0]],
        "source_target_tokens": [books[1], sft[1]],
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def meter(saved: dict | None = None) -> Meter:
    return Meter(SOURCES, flops=FLOPS, peak=None, sums=saved)


def without_times(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in TIMES}


def test_a_line_sums_up_the_steps_since_the_last_one() -> None:
    m = meter()
    m.add(metrics(2.0, books=(30.0, 10), sft=(10.0, 10)), 0.1)
    m.add(metrics(1.0, books=(10.0, 10), sft=(0.0, 0)), 0.3)
    assert without_times(m.line(2)) == {
        "step": 2,
        "loss": 1.5,
        "learning_rate": pytest.approx(1e-3),
        "grad_norm": 2.0,
        "tokens": 200,
        "target_tokens": 30,
        "mfu": None,
        "skipped": 0,
        "loss/books": 2.0,
        "target_tokens/books": 20,
        "loss/sft": 1.0,
        "target_tokens/sft": 10,
    }
    m.add(metrics(1.0, books=(10.0, 10), sft=(0.0, 0)), 0.0)
    line = m.line(3)
    assert (line["tokens"], line["target_tokens/books"], line["target_tokens/sft"]) == (300, 10, 0)
    assert "loss/sft" not in line


def test_a_skipped_step_enters_no_loss_and_the_line_stays_valid_json() -> None:
    m = meter()
    m.add(metrics(float("nan"), books=(float("nan"), 10), sft=(0.0, 0), skipped=1), 0.0)
    line = m.line(1)
    assert line["loss"] is None and line["skipped"] == 1 and line["tokens"] == 100
    json.dumps(line, allow_nan=False)
    assert step_text(line).startswith("no update")


def test_a_restart_between_two_lines_changes_no_figure() -> None:
    rng = np.random.default_rng(1)
    steps = [metrics(rng.normal(), (rng.normal() * 9, 7), (rng.normal() * 9, 3)) for _ in range(6)]
    whole, before = meter(), meter()
    for step in steps:
        whole.add(step, 0.0)
    for step in steps[:4]:
        before.add(step, 0.0)
    after = meter(json.loads(json.dumps(before.saved())))
    for step in steps[4:]:
        after.add(step, 0.0)
    assert without_times(after.line(6)) == without_times(whole.line(6))


def test_utilisation_is_the_share_of_the_peak() -> None:
    m = Meter(SOURCES, flops=FLOPS, peak=1e6)
    for _ in range(3):
        m.add(metrics(1.0, (1.0, 1), (1.0, 1)), 0.0)
    line = m.line(3)
    assert line["target_tokens_per_second"] == pytest.approx(line["tokens_per_second"] * 2 / 100)
    operations = 3 * (10.0 * 100 + 5.0 * 64 + 2.0 * 1000)
    assert line["mfu"] == pytest.approx(operations / (300 / line["tokens_per_second"]) / 1e6)


@pytest.mark.parametrize("tied", [False, True])
def test_operations_of_training(tied: bool) -> None:
    model = ModelConfig(
        "m",
        "llama",
        vocab_size=10,
        num_layers=2,
        hidden_size=4,
        num_heads=2,
        num_kv_heads=2,
        head_dim=2,
        ffn_size=8,
        tied_embeddings=tied,
    )
    flops = TrainingFlops.of(model, parameters=1000)
    # One matrix of 10 × 4 is looked up and multiplied, or two are there and one of them is multiplied.
    assert flops == TrainingFlops(6 * (960 if tied else 920), 6 * 40, 12 * 2 * 2 * 2)
    # Two segments of 8 and 4 tokens, logits at 6 positions: attention by the usual 6 · layers · width · Σ length².
    assert flops.total(12, 6, (8**2 + 4**2) / 2) == 12 * flops.per_token + 6 * 240 + 6 * 2 * 4 * (8**2 + 4**2)


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100", 312),
        ("TPU v4", 275),
        ("TPU7x", 1153.5),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA H800", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_by_device_kind(kind: str, tflops: float) -> None:
    assert peak_flops(kind) == tflops * 1e12


def test_an_unknown_device_has_no_peak() -> None:
    for kind in ("cpu", "NVIDIA GeForce RTX 4090 D", "NVIDIA A1000"):
        assert peak_flops(kind) is None


def test_held_out_loss_is_per_target_token() -> None:
    line = eval_line(5, SOURCES, np.array([30.0, 0.0]), np.array([10.0, 0.0]))
    assert line == {"step": 5, "eval_loss": 3.0, "eval_loss/books": 3.0}


def test_lines_beyond_the_resumed_step_and_a_torn_last_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "eval_loss": 1}\n{"step": 3}\n{"st')
    lines = open_metrics(path, start_step=2)
    lines.append({"step": 3, "loss": 1.0})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 2, 3]


def test_a_foreign_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('hello\n{"step": 2}\n')
    with pytest.raises(DataError, match="hello"):
        open_metrics(tmp_path / "metrics.jsonl", start_step=2)


def test_console_tensorboard_and_file_get_the_same_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, 0, 10, make_console(), tensorboard=True)
    m = meter()
    m.add(metrics(2.0, (30.0, 10), (10.0, 10)), 0.1)
    log.step(m.line(1))
    log.evaluation(eval_line(1, SOURCES, np.array([30.0, 5.0]), np.array([10.0, 5.0])))
    log.close()
    out = capsys.readouterr().out
    assert "step 1/10  loss 2.0000" in out and "ETA" in out and "held out at step 1" in out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert list((tmp_path / "tensorboard").glob("events*"))
