"""config.json ↔ `ModelConfig`, both ways.

    config = read_config(folder)                              # refuses what it does not understand, by name
    values = write_config(config, "llama", "bfloat16", eos_token_id=2)      # the content of a config.json

On the way in (`base.py`, `open.py`) and on the way out (`hf_write.py`). What must hold: what is written reads back as the same
config here and as the same function in both transformers. Reading asks `hf_config_fields.py` first whether every field of the
file is understood. RoPE is read in both spellings, `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters`
(transformers 5), and written in both; so is the dtype.

The four released Baichuans share one `model_type`. What tells them apart, in this order:

                   positions                                           head
    their field    `positions`                                         `head`            (`write_config` writes both)
    else           hidden size 4096, or `max_position_embeddings`:     vocabulary of 64,000: linear
                   RoPE; hidden size 5120: ALiBi                       125,696, or `z_loss_weight`: norm

What stays open, or has evidence for both, is asked for (`--positions`, `--head`) and never guessed. Next to read: `hf_names.py`.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from huatuo_jax.config import ModelConfig, RopeScaling, require
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, is_local, read_json
from huatuo_jax.weights.hf_config_fields import COUNT, POSITIVE, check_fields, short
from huatuo_jax.weights.hf_names import Layout, check_layout

Positions = Literal["rope", "alibi"]
Head = Literal["linear", "norm"]


class FolderOptions(TypedDict, total=False):
    """What a user may have to say of a Hugging Face folder, on the command line `--positions`, `--head` and `--ignore`.

    Attributes:
      positions, head: where the config.json of a Baichuan leaves them open; a value that contradicts it is refused.
      ignore: unknown fields of config.json that do not change the model; `sliding_window` where no sequence is longer than it.
    """

    positions: Positions | None
    head: Head | None
    ignore: Collection[str]


FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "baichuan": ("baichuan", ("BaichuanForCausalLM", "BaiChuanForCausalLM")),
    "llama": ("llama", ("LlamaForCausalLM",)),
    "Yi": ("llama", ("YiForCausalLM",)),  # as its first release wrote it; later ones say llama
    "mistral": ("llama", ("MistralForCausalLM",)),  # Llama's layout and function, where no window cuts the attention off
    "qwen2": ("qwen2", ("Qwen2ForCausalLM",)),
    "qwen3": ("qwen3", ("Qwen3ForCausalLM",)),
}
"""`model_type` → our family, and the architectures that it may name; we write the first."""

SHAPE = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn_size": "intermediate_size",
}
"""Our name → theirs, of what every config.json must say."""

EVIDENCE: dict[str, tuple[tuple[str, str, Callable[[Mapping[str, Any]], bool]], ...]] = {
    "positions": (
        ("rope", "max_position_embeddings", lambda values: values.get("max_position_embeddings") is not None),
        ("rope", "hidden_size 4096, a 7B,", lambda values: values["hidden_size"] == 4096),
        ("alibi", "hidden_size 5120, a 13B,", lambda values: values["hidden_size"] == 5120),
    ),
    "head": (
        ("linear", "vocab_size 64,000, a Baichuan 1,", lambda values: values["vocab_size"] == 64_000),
        ("norm", "vocab_size 125,696, a Baichuan 2,", lambda values: values["vocab_size"] == 125_696),
        ("norm", "z_loss_weight", lambda values: values.get("z_loss_weight") is not None),
    ),
}
"""What a Baichuan is: field of ours → (value, what in a config.json speaks for it, whether that is there)."""

LLAMA3_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_length": "original_max_position_embeddings",
}
"""The same of RoPE scaling."""


def read_config_file(folder: PathLike) -> dict[str, Any]:
    """The parsed config.json of a folder.

    Raises:
      ConfigError: there is none. DataError: it is not a JSON object.
    """
    path = Path(folder) / "config.json"
    require(path.is_file(), f"{folder} has no config.json; give the folder of a Hugging Face model")
    try:
        values = read_json(path)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}, not an object; fetch it again")
    return values


def read_config(
    source: PathLike | Mapping[str, Any],
    *,
    name: str = "",
    positions: Positions | None = None,
    head: Head | None = None,
    ignore: Collection[str] = (),
    like: ModelConfig | None = None,
) -> ModelConfig:
    """The architecture that a config.json describes.

    Args:
      source: a folder, or the parsed config.json.
      name: of the model; default: the folder's.
      positions, head: the answer where a Baichuan's config.json leaves them open; one that contradicts it is refused.
      ignore: unknown fields that do not change the model; `sliding_window` where no sequence is longer than it.
      like: the model that these weights are meant for; it answers what is still open.

    Raises:
      ConfigError: not a model of ours, something that the decoder does not compute, an open question, a missing field.
      DataError: config.json is not JSON.
    """
    if isinstance(source, Mapping):
        values, where, name = source, "config.json", name or "imported"
    else:
        values, where = read_config_file(source), str(Path(source) / "config.json")
        name = name or Path(source).resolve().name
    kind = values.get("model_type")
    known = isinstance(kind, str) and kind in FAMILIES
    require(known, f"{where} has model_type {short(kind)}; huatuo-jax reads {', '.join(FAMILIES)}")
    family, architectures = FAMILIES[cast(str, kind)]
    check_fields(values, where, ignore)
    for architecture in values.get("architectures") or ():
        require(
            architecture in architectures,
            f"{where} has architecture {architecture!r}; of model_type {kind} huatuo-jax reads {', '.join(architectures)}",
        )
    missing = [theirs for theirs in SHAPE.values() if values.get(theirs) is None]
    require(not missing, f"{where} lacks {', '.join(missing)} (whole numbers); complete it")
    shape: dict[str, int] = {ours: values[theirs] for ours, theirs in SHAPE.items()}
    theta, scaling = _read_rope(values, where)
    return ModelConfig(
        name=name,
        family=cast(Any, family),
        **shape,
        num_kv_heads=_num_kv_heads(values, where),
        head_dim=_head_dim(values, family, where),
        positions=_decide("positions", values, family, where, positions, like),
        rope_theta=theta,
        rope_scaling=scaling,
        head=_decide("head", values, family, where, head, like),
        tied_embeddings=_or_default(values, "tie_word_embeddings", False),
        # By the family: a config.json of Qwen2 has no field for its biases, and Qwen3's has none for its norms.
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        norm_eps=_or_default(values, "rms_norm_eps", 1e-6),
        max_length=_max_length(values, where),
        z_loss_weight=_or_default(values, "z_loss_weight", 0.0),
        initializer_range=_or_default(values, "initializer_range", 0.02),
    )


def is_hf_folder(path: PathLike) -> bool:
    """Whether a path is a Hugging Face folder: a config.json with a `model_type`, which a run directory's has not."""
    # Runs may lie in an object store, folders not: their weights are mapped.
    if not is_local(path) or not (Path(path) / "config.json").is_file():
        return False
    return "model_type" in read_config_file(path)


def _or_default(values: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of a field; where it is absent or null, what transformers takes."""
    value = values.get(name)
    return default if value is None else value


def _num_kv_heads(values: Mapping[str, Any], where: str) -> int:
    heads, kv_heads = values["num_attention_heads"], values.get("num_key_value_heads")
    # The first Llamas and the Baichuans, which have no grouped heads, do not write the field.
    if kv_heads is None:
        require(
            values["model_type"] in ("llama", "Yi", "baichuan"),
            f"{where} lacks num_key_value_heads, whose default differs between models and releases of transformers; add it",
        )
        return heads
    require(
        heads % kv_heads == 0,
        f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}; correct one of them",
    )
    return kv_heads


def _head_dim(values: Mapping[str, Any], family: str, where: str) -> int:
    if values.get("head_dim") is not None:
        return values["head_dim"]
    require(family != "qwen3", f"{where} lacks head_dim, which Qwen3 does not derive from the hidden size; add it")
    size, heads = values["hidden_size"], values["num_attention_heads"]
    require(
        size % heads == 0, f"{where}: hidden_size {size} is not a multiple of num_attention_heads {heads}; correct one of them"
    )
    return size // heads


def _max_length(values: Mapping[str, Any], where: str) -> int:
    # A Baichuan with ALiBi has no table of positions, so only the second.
    length = values.get("max_position_embeddings") or values.get("model_max_length")
    require(bool(length), f"{where} has neither max_position_embeddings nor model_max_length; add the longest trained sequence")
    return cast(int, length)


def _decide(
    field: Literal["positions", "head"],
    values: Mapping[str, Any],
    family: str,
    where: str,
    requested: str | None,
    like: ModelConfig | None,
) -> Any:
    """The value of `positions` or `head`; as a field of config.json it decides alone.

    Args:
      requested: what the user says; must not contradict the file.
      like: the model that these weights are meant for; its value is taken where nobody says anything.

    Raises:
      ConfigError: a contradiction, or an open question.
    """
    choices = list(dict.fromkeys(value for value, _, _ in EVIDENCE[field]))
    evidence: dict[str, str] = {}
    if family != "baichuan":  # all others have RoPE and a linear head
        evidence = {choices[0]: f"model_type {values['model_type']}"}
    elif values.get(field) is None:
        evidence = {value: why for value, why, is_there in EVIDENCE[field] if is_there(values)}
    written = values.get(field)
    if written is not None:
        possible = list(evidence) or choices
        require(written in possible, f"{where} has {field} {short(written)}; for this model_type it is {' or '.join(possible)}")
        evidence = {written: f"its field {field!r}"}
    if len(evidence) == 1:
        value, why = next(iter(evidence.items()))
        require(
            requested in (None, value),
            f"--{field} {requested} contradicts {where}, where {why} means {value}; leave the flag out, or add "
            f'"{field}": "{requested}" to the file if the model really is so',
        )
        return value
    if requested or like:
        return requested or getattr(like, field)
    says = " and ".join(f"{why} means {value}" for value, why in evidence.items()) or "nothing in it decides"
    raise ConfigError(f"{where} leaves open which {field} the model has ({says}); pass --{field} {' or '.join(choices)}")


def _read_rope(values: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from whichever spelling is there; `check_fields` has seen the values.

    Raises:
      ConfigError: the spellings disagree, the kind of RoPE is not one that we compute, or a number of it cannot be.
    """
    # A folder may carry both spellings, as ours do; they must then say the same.
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
        words, holds = POSITIVE
        require(holds(base), f"{where} has {name} {short(base)}; it must be {words}")
    require(len(set(bases.values())) <= 1, f"{where} names several RoPE bases: {bases}; remove the wrong ones")
    scalings = [_rope_scaling(spelling, where) for spelling in (new, old) if spelling]
    require(len(set(scalings)) <= 1, f"{where}: rope_scaling {old} and rope_parameters {new} disagree; remove the wrong one")
    return float(next(iter(bases.values()), 10_000.0)), scalings[0] if scalings else None


def _rope_scaling(spelling: dict[str, Any], where: str) -> RopeScaling | None:
    kind = spelling.get("rope_type", spelling.get("type", "default"))
    known = {"rope_type", "type"}
    if kind == "llama3":
        missing = [theirs for theirs in LLAMA3_SCALING.values() if spelling.get(theirs) is None]
        require(not missing, f"{where}: RoPE scaling llama3 lacks {', '.join(missing)}; complete it")
        for theirs in LLAMA3_SCALING.values():
            words, holds = COUNT if theirs == "original_max_position_embeddings" else POSITIVE
            number = spelling[theirs]
            require(holds(number), f"{where}: {theirs} of RoPE scaling is {short(number)}; it must be {words}")
        low, high = spelling["low_freq_factor"], spelling["high_freq_factor"]
        require(low < high, f"{where}: low_freq_factor of RoPE scaling is {low}; it must be below high_freq_factor, {high}")
        scaling = RopeScaling(**{ours: spelling[theirs] for ours, theirs in LLAMA3_SCALING.items()})
        known |= set(LLAMA3_SCALING.values())
    else:
        require(kind == "default", f"{where} has RoPE scaling {short(kind)}; huatuo-jax computes default and llama3")
        scaling = None
    # 1 turns whole heads, as here; any other number stays among the unknown fields, which are refused.
    if spelling.get("partial_rotary_factor") == 1:
        known.add("partial_rotary_factor")
    unknown = sorted(name for name in set(spelling) - known if spelling[name] is not None)
    require(not unknown, f"{where}: unknown fields of RoPE scaling {kind}: {', '.join(unknown)}; remove them if they do nothing")
    return scaling


def write_config(
    config: ModelConfig,
    layout: Layout,
    dtype: Literal["float32", "bfloat16", "float16"],
    *,
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    auto_map: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The values of config.json for this model in this layout, the same to transformers 4 and 5.

    With layout "llama" a NormHead is taken to be baked into lm_head.weight. `auto_map` names the folder's own modelling file.

    Raises:
      ConfigError: the layout has no place for what the model has, or is only read ("yi").
    """
    require(layout != "yi", "layout 'yi' (ln1, ln2) is only read; write 'llama', which is the same model")
    check_layout(config, layout)
    _, architectures = FAMILIES[layout]  # the layouts that are written are called as their model_type
    values: dict[str, Any] = {
        "architectures": [architectures[0]],
        "model_type": layout,
        **{theirs: getattr(config, ours) for ours, theirs in SHAPE.items()},
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "torch_dtype": dtype,  # transformers 4
        "dtype": dtype,  # transformers 5
        "use_cache": True,
    }
    if auto_map:
        values["auto_map"] = dict(auto_map)
    # Not for ALiBi: a Baichuan's readers, ours too, take this field for a sign of RoPE.
    if config.positions == "rope":
        values |= {"max_position_embeddings": config.max_length, **_written_rope(config)}
    if layout == "baichuan":
        values |= {"model_max_length": config.max_length, "positions": config.positions, "head": config.head}
        if config.head == "norm":
            values["z_loss_weight"] = config.z_loss_weight
        return values
    # What has a default in transformers is written all the same, as releases differ in the defaults.
    values |= {"num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "attention_dropout": 0.0}
    if layout in ("llama", "qwen3"):
        values["attention_bias"] = False
    if layout == "llama":
        values["mlp_bias"] = False
    else:
        values |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.num_layers}
    return values


def _written_rope(config: ModelConfig) -> dict[str, Any]:
    """The fields of config.json, in both spellings."""
    scaling: dict[str, Any] | None = None
    if config.rope_scaling is not None:
        scaling = {
            "rope_type": "llama3",
            **{theirs: getattr(config.rope_scaling, ours) for ours, theirs in LLAMA3_SCALING.items()},
        }
    both = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": both}
