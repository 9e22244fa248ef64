"""Baseline of huatuo2_7b: classic adaptation, second stage (SFT from the first stage's weights). Hardware as huatuo2_7b."""

from configs import huatuo2_7b
from configs.baselines import stage_two
from huatuo_jax.config import RunConfig


def config() -> RunConfig:
    """Starts from the newest checkpoint of the first stage."""
    return stage_two(huatuo2_7b.config(), plan="data/huatuo2/plan_stage2", stage_one_run="runs/huatuo2_7b_stage1")
