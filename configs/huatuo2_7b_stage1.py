"""Baseline of huatuo2_7b: classic adaptation, first stage (next-token training on raw passages). Hardware as huatuo2_7b."""

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.mixtures import stage_one


def config() -> RunConfig:
    """Needs a token dataset of `text` records: `huatuo-data import` of the passages themselves, then `build`."""
    return stage_one(load_config("huatuo2_7b"), tokens="data/huatuo2/tokens_raw", plan="data/huatuo2/plan_stage1")
