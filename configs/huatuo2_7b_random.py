"""Baseline of huatuo2_7b: the same data and recipe in plain random order. Hardware and hours as huatuo2_7b."""

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.mixtures import random_mixing


def config() -> RunConfig:
    """Plan it with `huatuo-data plan TOKENS --config huatuo2_7b_random --out PLAN`."""
    return random_mixing(load_config("huatuo2_7b"), plan="data/huatuo2/plan_random")
