"""What a run directory holds, read for a report: logged steps, held-out losses, answers, recall and the mixing curve trained.

What must hold: a run in progress can be read too (its last line may be half-written, answers may be missing, its plan may have
been replaced), and what cannot be read is reported and never guessed. Next to read: `run_page.py`, which draws it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from huatuo_jax.config import require
from huatuo_jax.data.plan import Plan
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import read_json, read_log
from huatuo_jax.mixtures import in_mixture_order, mixing_curve


@dataclass(frozen=True)
class History:
    """What a run directory says.

    Attributes:
      config: the resolved config as plain values.
      steps: the logged training steps, ascending.
      evaluations: held-out losses, ascending in step.
      answers, recall: content of `answers.json` and `recall.json` ([] and {} where `huatuo ask` has not run yet).
      mixing: source → share of the draws in each window of the trained rows; empty where the plan is out of reach.
      mixing_note: why `mixing` is empty.
    """

    run: Path
    config: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    answers: list[dict[str, Any]] = field(default_factory=list)
    recall: dict[str, Any] = field(default_factory=dict)
    mixing: dict[str, np.ndarray] = field(default_factory=dict)
    mixing_note: str = ""

    @property
    def sources(self) -> list[str]:
        """Sources with a logged training loss, in the mixture's order: a source has one colour in all pictures."""
        logged = {key.removeprefix("loss/") for step in self.steps for key in step if key.startswith("loss/")}
        return in_mixture_order(logged, self.config["data"].get("mixture", {}))

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps at which `key` was logged, int [n], of a training or held-out line, and its values there, float64 [n]."""
        # Both kinds of lines stand in one log; a training line of the same step has no held-out loss.
        lines = self.evaluations if key.startswith("eval_loss") else self.steps
        pairs = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=float)


def read_history(run: Path, windows: int = 33) -> History:
    """Reads a run directory; ConfigError if it is none, DataError if nothing was logged yet."""
    require(
        (run / "config.json").is_file(),
        f"{run} is no run directory (it has no config.json); `huatuo train CONFIG.py --run {run}` makes one",
    )
    # A run that has just started has a config and no log yet: that is no mistake of the user, so not a ConfigError.
    if not (run / "metrics.jsonl").is_file():
        raise DataError(f"{run} has no metrics.jsonl: nothing was logged yet; let the run reach its first logged step")
    lines = read_log(run / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise DataError(f"{run / 'metrics.jsonl'} holds no training step yet; let the run reach its first logged step")
    config = read_json(run / "config.json")
    mixing, note = _trained_mixing(run, config, steps[-1]["step"], windows)
    return History(
        run=run,
        config=config,
        steps=steps,
        evaluations=[line for line in lines if "eval_loss" in line],
        answers=read_json(run / "answers.json") if (run / "answers.json").is_file() else [],
        recall=read_json(run / "recall.json") if (run / "recall.json").is_file() else {},
        mixing=mixing,
        mixing_note=note,
    )


def _trained_mixing(run: Path, config: dict[str, Any], last_step: int, windows: int) -> tuple[dict[str, np.ndarray], str]:
    try:
        plan = Plan.load(config["data"]["plan"])
    except (DataError, OSError) as error:
        return {}, f"the plan could not be read: {error}"
    # A new plan may have taken the place of the one trained on; its curve would be of another run.
    trained_on = read_json(run / "data.json")["plan_hash"] if (run / "data.json").is_file() else plan.hash
    if plan.hash != trained_on:
        return {}, f"{config['data']['plan']} now holds another plan than the one trained on ({trained_on[:12]})"
    # Rows are trained in the plan's order, so what was drawn so far is its beginning.
    trained_rows = min(last_step * config["batch_size"], len(plan))
    records = np.asarray(plan.row_docs[: plan.row_starts[trained_rows]])
    windows = max(1, min(windows, len(records) // 10))  # shares of fewer draws a window are noise
    curve = mixing_curve(records, np.asarray(plan.manifest["offsets"]), plan.manifest["sources"], windows)
    drawn = (source for source, shares in curve.items() if shares.any())
    return {source: curve[source] for source in in_mixture_order(drawn, config["data"]["mixture"])}, ""
