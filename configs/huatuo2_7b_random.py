"""Baseline of huatuo2_7b: the same data and recipe in plain random order. Hardware and hours as huatuo2_7b."""

from configs import huatuo2_7b
from configs.baselines import random_mixing
from huatuo_jax.config import RunConfig


def config() -> RunConfig:
    """Plan it with `huatuo-data plan TOKENS --config configs/huatuo2_7b_random.py --out PLAN`."""
    return random_mixing(huatuo2_7b.config(), plan="data/huatuo2/plan_random")
