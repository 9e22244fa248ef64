"""Baseline of quickstart: classic adaptation, second stage (SFT from the first stage's weights). Hardware as quickstart."""

from configs import quickstart
from configs.baselines import stage_two
from huatuo_jax.config import RunConfig


def config() -> RunConfig:
    """Starts from the newest checkpoint of the first stage."""
    return stage_two(quickstart.config(), plan="runs/quickstart/data/plan_stage2", stage_one_run="runs/quickstart_stage1")
