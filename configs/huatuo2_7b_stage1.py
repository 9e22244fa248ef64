"""Baseline of huatuo2_7b: classic adaptation, first stage (next-token training on raw passages). Hardware as huatuo2_7b."""

from configs import huatuo2_7b
from configs.baselines import stage_one
from huatuo_jax.config import RunConfig


def config() -> RunConfig:
    """Needs a token dataset of `text` records: `huatuo-data import` of the passages themselves, then `build`."""
    return stage_one(huatuo2_7b.config(), tokens="data/huatuo2/tokens_raw", plan="data/huatuo2/plan_stage1")
