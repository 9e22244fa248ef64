"""Baseline of huatuo2_7b: classic adaptation, second stage (SFT from the first stage's weights). Hardware as huatuo2_7b."""

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.mixtures import stage_two


def config() -> RunConfig:
    """Starts from the newest checkpoint of the first stage."""
    return stage_two(load_config("huatuo2_7b"), plan="data/huatuo2/plan_stage2", stage_one_run="runs/huatuo2_7b_stage1")
