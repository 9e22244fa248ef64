"""Baseline of quickstart: the same data and recipe in plain random order. Hardware and hours as quickstart."""

from configs import quickstart
from configs.baselines import random_mixing
from huatuo_jax.config import RunConfig


def config() -> RunConfig:
    """Plan it with `huatuo-data plan TOKENS --config configs/quickstart_random.py --out PLAN`."""
    return random_mixing(quickstart.config(), plan="runs/quickstart/data/plan_random")
