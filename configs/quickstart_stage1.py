"""Baseline of quickstart: classic adaptation, first stage (next-token training on raw passages). Hardware as quickstart."""

from configs import quickstart
from configs.baselines import stage_one
from huatuo_jax.config import RunConfig


def config() -> RunConfig:
    """Needs a token dataset of `text` records: `huatuo-data import` of the passages themselves, then `build`."""
    return stage_one(quickstart.config(), tokens="runs/quickstart/data/tokens_raw", plan="runs/quickstart/data/plan_stage1")
