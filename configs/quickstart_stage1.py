"""Baseline of quickstart: classic adaptation, first stage (next-token training on raw passages). Hardware as quickstart."""

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.mixtures import stage_one


def config() -> RunConfig:
    """Needs a token dataset of `text` records: `huatuo-data import` of the passages themselves, then `build`."""
    return stage_one(load_config("quickstart"), tokens="runs/quickstart/data/tokens_raw", plan="runs/quickstart/data/plan_stage1")
