"""HuatuoGPT-II-13B: Baichuan2-13B-Base (ALiBi) adapted in one stage, with the paper's mixture and recipe.

Hardware: written for 32 TPU v5p chips; two-way tensor parallelism and micro-batches keep the ALiBi scores (one row's
[heads, 4096, 4096]) small. Hours: not measured here. Expected loss: not published.
"""

import dataclasses

from huatuo_jax.config import MeshConfig, RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.models.presets import preset


def config() -> RunConfig:
    """The 7B's run with the 13B's model and mesh."""
    return dataclasses.replace(
        load_config("huatuo2_7b"),
        name="huatuo2_13b",
        model=preset("baichuan2-13b"),
        mesh=MeshConfig(fsdp=-1, tensor=2),
        accumulation=8,
    )
