"""A config in; its verified data, the number of steps and the identity of the run out, before anything large is loaded."""

from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from huatuo_jax.config import RunConfig, require
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.models.attention import resolve_attention


@dataclass(frozen=True)
class Inputs:
    """What a run trains on. `facts` identify it and go into every checkpoint: plan_hash, tokenizer, template, total_steps."""

    dataset: TokenDataset
    plan: Plan
    total_steps: int
    facts: dict[str, Any]


def open_inputs(config: RunConfig, console: Console) -> Inputs:
    """Opens token dataset and plan and checks that they, the model and the config belong together.

    Raises:
      DataError: data or plan are missing or torn, or the plan is of other data.
      ConfigError: the plan was made with other settings or has too few rows; the tokenizer is larger than the model's vocabulary.
    """
    dataset = TokenDataset.open(config.data.tokens)
    plan = Plan.load(config.data.plan)
    plan.check_matches(dataset, config.data)
    total_steps = count_steps(config, len(plan), console)
    tokenizer = dict(dataset.manifest["tokenizer"])
    require(
        tokenizer["vocab_size"] <= config.model.vocab_size,
        f"the data's tokenizer {tokenizer['path']} has {tokenizer['vocab_size']} tokens and model.vocab_size is "
        f"{config.model.vocab_size}; encode the data with the model's tokenizer, or raise model.vocab_size",
    )
    facts = {"plan_hash": plan.hash, "tokenizer": tokenizer, "template": dataset.manifest["template"], "total_steps": total_steps}
    return Inputs(dataset, plan, total_steps, facts)


def count_steps(config: RunConfig, rows: int, console: Console) -> int:
    """Steps of the run: all whole batches of the plan, or `config.steps` of them. Says how many rows are left over."""
    whole = rows // config.batch_size
    require(whole >= 1, f"batch_size is {config.batch_size} and the plan {config.data.plan} has {rows} rows; lower batch_size")
    require(
        config.steps <= whole,
        f"steps is {config.steps}; the plan {config.data.plan} has {rows} rows = {whole} steps of {config.batch_size}; "
        "lower steps, or plan more epochs",
    )
    if not config.steps and rows % config.batch_size:
        console.print(f"{rows % config.batch_size} of {rows} rows do not fill a batch of {config.batch_size} and are not used")
    return config.steps or whole


def describe(config: RunConfig, mesh: Mesh, total_steps: int) -> str:
    """One paragraph: what is trained, on what, how."""
    device = mesh.devices.flat[0]
    attention = resolve_attention(config.compute.attention, config.model, device.platform, config.data.packing == "first_fit")
    length = config.data.sequence_length
    shape = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return (
        f"{config.name}: {config.model.name} on {mesh.size} {device.device_kind} ({shape}), attention {attention}, "
        f"{config.compute.dtype}; {total_steps} steps of {config.batch_size} × {length} = {config.batch_size * length:,} tokens"
    )
