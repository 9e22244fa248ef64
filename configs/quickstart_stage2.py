"""Baseline of quickstart: classic adaptation, second stage (SFT from the first stage's weights). Hardware as quickstart."""

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.mixtures import stage_two


def config() -> RunConfig:
    """Starts from the newest checkpoint of the first stage."""
    return stage_two(load_config("quickstart"), plan="runs/quickstart/data/plan_stage2", stage_one_run="runs/quickstart_stage1")
