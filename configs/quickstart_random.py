"""Baseline of quickstart: the same data and recipe in plain random order. Hardware and hours as quickstart."""

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.mixtures import random_mixing


def config() -> RunConfig:
    """Plan it with `huatuo-data plan TOKENS --config quickstart_random --out PLAN`."""
    return random_mixing(load_config("quickstart"), plan="runs/quickstart/data/plan_random")
