"""HuatuoGPT-II-34B: Yi-34B adapted in one stage, with the paper's mixture and recipe.

Hardware: written for 64 TPU v5p chips or more. The token dataset must be built with Yi's tokenizer. Hours: not measured here.
Expected loss: not published.
"""

import dataclasses

from huatuo_jax.config import MeshConfig, RunConfig
from huatuo_jax.config_files import load_config
from huatuo_jax.models.presets import preset


def config() -> RunConfig:
    """The 7B's run with Yi-34B: other tokenizer, hence other token dataset and plan."""
    base = load_config("huatuo2_7b")
    return dataclasses.replace(
        base,
        name="huatuo2_34b",
        model=preset("yi-34b"),
        data=dataclasses.replace(base.data, tokens="data/huatuo2_yi/tokens", plan="data/huatuo2_yi/plan"),
        mesh=MeshConfig(fsdp=-1, tensor=4),
        accumulation=2,
    )
