"""RoPE in a config.json: `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5) in, our fields out;
and the other way, in both spellings at once."""

from collections.abc import Mapping
from typing import Any

from huatuo_jax.config import ModelConfig, RopeScaling, require
from huatuo_jax.weights.hf_config_fields import COUNT, POSITIVE, short

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_length": "original_max_position_embeddings",
}
"""Our name → theirs."""


def read_rope(values: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from whichever spelling is there; `check_fields` has seen the values.

    Raises:
      ConfigError: the spellings disagree, the kind of RoPE is not one that we compute, or a number of it cannot be.
    """
    new, old = dict(values.get("rope_parameters") or {}), dict(values.get("rope_scaling") or {})
    require(
        not any(isinstance(value, Mapping) for value in new.values()),
        f"{where} has rope_parameters for several kinds of layers; huatuo-jax computes one RoPE for all layers",
    )
    places = {
        "rope_theta": values.get("rope_theta"),
        "rope_parameters.rope_theta": new.pop("rope_theta", None),
        "rope_scaling.rope_theta": old.pop("rope_theta", None),
    }
    bases = {name: base for name, base in places.items() if base is not None}
    for name, base in bases.items():
        require(POSITIVE.holds(base), f"{where} has {name} {short(base)}; it must be {POSITIVE.words}")
    require(len(set(bases.values())) <= 1, f"{where} names several RoPE bases: {bases}; remove the wrong ones")
    found = [_rope_scaling(spelling, where) for spelling in (new, old) if spelling]
    require(len(set(found)) <= 1, f"{where}: rope_scaling {old} and rope_parameters {new} disagree; remove the wrong one")
    return float(next(iter(bases.values()), 10_000.0)), found[0] if found else None


def _rope_scaling(spelling: dict[str, Any], where: str) -> RopeScaling | None:
    kind = spelling.get("rope_type", spelling.get("type", "default"))
    known = {"rope_type", "type"}
    if kind == "llama3":
        missing = [theirs for theirs in _LLAMA3.values() if spelling.get(theirs) is None]
        require(not missing, f"{where}: RoPE scaling llama3 lacks {', '.join(missing)}; complete it")
        for theirs in _LLAMA3.values():
            kind_of = COUNT if theirs == "original_max_position_embeddings" else POSITIVE
            found = spelling[theirs]
            require(kind_of.holds(found), f"{where}: {theirs} of RoPE scaling is {short(found)}; it must be {kind_of.words}")
        low, high = spelling["low_freq_factor"], spelling["high_freq_factor"]
        require(low < high, f"{where}: low_freq_factor of RoPE scaling is {low}; it must be below high_freq_factor, {high}")
        scaling = RopeScaling(**{ours: spelling[theirs] for ours, theirs in _LLAMA3.items()})
        known |= set(_LLAMA3.values())
    else:
        require(kind == "default", f"{where} has RoPE scaling {short(kind)}; huatuo-jax computes default and llama3")
        scaling = None
    if spelling.get("partial_rotary_factor") == 1:
        known.add("partial_rotary_factor")
    unknown = sorted(name for name in set(spelling) - known if spelling[name] is not None)
    require(not unknown, f"{where}: unknown fields of RoPE scaling {kind}: {', '.join(unknown)}; remove them if they do nothing")
    return scaling


def written_rope(config: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in both spellings."""
    scaling: dict[str, Any] | None = None
    if config.rope_scaling is not None:
        scaling = {"rope_type": "llama3", **{theirs: getattr(config.rope_scaling, ours) for ours, theirs in _LLAMA3.items()}}
    both = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": both}
