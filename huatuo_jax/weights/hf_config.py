"""config.json ↔ `ModelConfig`: a folder (or its parsed config.json) in, our config out; and the other way.

    config = read_config(folder)                              # refuses what it does not understand, by name
    values = write_config(config, "llama", "bfloat16", eos_token_id=2)      # to be written as config.json

RoPE is read in both spellings, `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (transformers 5), and written
in both, and so is the dtype.

The four released Baichuans share one `model_type`. What tells them apart: `positions` and `head`, as `write_config` writes them;
else hidden size 4096 or `max_position_embeddings` = RoPE, 5120 = ALiBi; `z_loss_weight` or a vocabulary of 125,696 = NormHead,
64,000 = linear. What stays open, or speaks for both, is asked for and never guessed.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, is_local
from huatuo_jax.weights.hf_config_fields import check_fields, short
from huatuo_jax.weights.hf_names import Layout, check_layout
from huatuo_jax.weights.hf_rope import read_rope, written_rope

Positions = Literal["rope", "alibi"]
Head = Literal["linear", "norm"]


class FolderOptions(TypedDict, total=False):
    """What a user may have to say of a Hugging Face folder, on the command line `--positions`, `--head` and `--ignore`.

    Attributes:
      positions, head: where the config.json of a Baichuan leaves them open; a value that contradicts it is refused.
      ignore: unknown fields of config.json that do not change the model.
    """

    positions: Positions | None
    head: Head | None
    ignore: Collection[str]


FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "baichuan": ("baichuan", ("BaichuanForCausalLM", "BaiChuanForCausalLM")),
    "llama": ("llama", ("LlamaForCausalLM",)),
    "Yi": ("llama", ("YiForCausalLM",)),
    "qwen2": ("qwen2", ("Qwen2ForCausalLM",)),
    "qwen3": ("qwen3", ("Qwen3ForCausalLM",)),
}
"""`model_type` → our family, and the architectures that it may name."""

SHAPE = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn_size": "intermediate_size",
}
"""Our name → theirs, of what every config.json must say."""


def read_config_file(folder: PathLike) -> dict[str, Any]:
    """The parsed config.json of a folder.

    Raises:
      ConfigError: there is none. DataError: it is not a JSON object.
    """
    path = Path(folder) / "config.json"
    require(path.is_file(), f"{folder} has no config.json; give the folder of a Hugging Face model")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
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
      ignore: unknown fields that do not change the model.
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
    family, architectures = _family(values, where)
    check_fields(values, where, ignore)
    _check_architectures(values, architectures, where)
    missing = [theirs for theirs in SHAPE.values() if values.get(theirs) is None]
    require(not missing, f"{where} lacks {', '.join(missing)} (whole numbers); complete it")
    shape: dict[str, int] = {ours: values[theirs] for ours, theirs in SHAPE.items()}
    theta, scaling = read_rope(values, where)
    return ModelConfig(
        name=name,
        family=cast(Any, family),
        **shape,
        num_kv_heads=_num_kv_heads(values, family, where),
        head_dim=_head_dim(values, family, where),
        positions=_positions(values, family, where, positions, like.positions if like else None),
        rope_theta=theta,
        rope_scaling=scaling,
        head=_head(values, family, where, head, like.head if like else None),
        tied_embeddings=_or_default(values, "tie_word_embeddings", False),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        norm_eps=_or_default(values, "rms_norm_eps", 1e-6),
        max_length=_max_length(values, where),
        z_loss_weight=_or_default(values, "z_loss_weight", 0.0),
        initializer_range=_or_default(values, "initializer_range", 0.02),
    )


def is_hf_folder(path: PathLike) -> bool:
    """Whether a path is a Hugging Face folder: a config.json with a `model_type`, which a run directory's has not."""
    if not is_local(path) or not (Path(path) / "config.json").is_file():
        return False
    return "model_type" in read_config_file(path)


def _family(values: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """Our family, and the architectures that the file may name."""
    kind = values.get("model_type")
    known = isinstance(kind, str) and kind in FAMILIES
    require(known, f"{where} has model_type {short(kind)}; huatuo-jax reads {', '.join(FAMILIES)}")
    return FAMILIES[cast(str, kind)]


def _check_architectures(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    kind, readable = values["model_type"], ", ".join(known)
    for architecture in values.get("architectures") or ():
        require(
            architecture in known,
            f"{where} has architecture {architecture!r}; of model_type {kind} huatuo-jax reads {readable}",
        )


def _or_default(values: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of a field; where it is absent or null, what transformers takes."""
    found = values.get(name)
    return default if found is None else found


def _num_kv_heads(values: Mapping[str, Any], family: str, where: str) -> int:
    found = values.get("num_key_value_heads")
    require(
        found is not None or family in ("llama", "baichuan"),
        f"{where} lacks num_key_value_heads, whose default differs between releases of transformers; add it",
    )
    heads = values["num_attention_heads"]
    require(
        found is None or heads % found == 0,
        f"{where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {found}; mend one of them",
    )
    return heads if found is None else found


def _head_dim(values: Mapping[str, Any], family: str, where: str) -> int:
    found = values.get("head_dim")
    if found is not None:
        return found
    require(family != "qwen3", f"{where} lacks head_dim, which Qwen3 does not derive from the hidden size; add it")
    size, heads = values["hidden_size"], values["num_attention_heads"]
    require(size % heads == 0, f"{where}: hidden_size {size} is not a multiple of num_attention_heads {heads}; mend one of them")
    return size // heads


def _max_length(values: Mapping[str, Any], where: str) -> int:
    found = values.get("max_position_embeddings") or values.get("model_max_length")
    require(bool(found), f"{where} has neither max_position_embeddings nor model_max_length; add the longest trained sequence")
    return cast(int, found)


def _positions(
    values: Mapping[str, Any], family: str, where: str, answer: Positions | None, assumed: Positions | None
) -> Positions:
    evidence: dict[str, str] = {}
    if family != "baichuan":
        evidence["rope"] = f"model_type {values['model_type']}"
    elif values.get("positions") is None:
        if values.get("max_position_embeddings") is not None:
            evidence["rope"] = "max_position_embeddings"
        if values["hidden_size"] == 4096:
            evidence["rope"] = "hidden_size 4096, a 7B,"
        if values["hidden_size"] == 5120:
            evidence["alibi"] = "hidden_size 5120, a 13B,"
    return _decide("positions", ("rope", "alibi"), values, evidence, where, answer, assumed)


def _head(values: Mapping[str, Any], family: str, where: str, answer: Head | None, assumed: Head | None) -> Head:
    evidence: dict[str, str] = {}
    if family != "baichuan":
        evidence["linear"] = f"model_type {values['model_type']}"
    elif values.get("head") is None:
        if values["vocab_size"] == 64_000:
            evidence["linear"] = "vocab_size 64,000, a Baichuan 1,"
        if values["vocab_size"] == 125_696:
            evidence["norm"] = "vocab_size 125,696, a Baichuan 2,"
        if values.get("z_loss_weight") is not None:
            evidence["norm"] = "z_loss_weight"
    return _decide("head", ("linear", "norm"), values, evidence, where, answer, assumed)


def _decide(
    what: str,
    choices: tuple[str, str],
    values: Mapping[str, Any],
    evidence: dict[str, str],
    where: str,
    answer: str | None,
    assumed: str | None,
) -> Any:
    """The one value that the file speaks for; where it speaks for none or for both, the user's answer, or what is assumed."""
    said = values.get(what)
    if said is not None:
        possible = tuple(evidence) or choices
        require(said in possible, f"{where} has {what} {short(said)}; for this model_type it is {' or '.join(possible)}")
        evidence = {said: f"its field {what!r}"}
    if len(evidence) == 1:
        found, why = next(iter(evidence.items()))
        require(
            answer in (None, found),
            f"--{what} {answer} contradicts {where}, where {why} means {found}; leave the flag out, or add "
            f'"{what}": "{answer}" to the file if the model really is so',
        )
        return found
    if answer or assumed:
        return answer or assumed
    says = " and ".join(f"{why} means {value}" for value, why in evidence.items()) or "nothing in it decides"
    raise ConfigError(f"{where} leaves open which {what} the model has ({says}); pass --{what} {' or '.join(choices)}")


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
    kinds: dict[str, tuple[str, str]] = {
        "llama": ("llama", "LlamaForCausalLM"),
        "baichuan": ("baichuan", "BaichuanForCausalLM"),
        "qwen2": ("qwen2", "Qwen2ForCausalLM"),
        "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    }
    model_type, architecture = kinds[layout]
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        **{theirs: getattr(config, ours) for ours, theirs in SHAPE.items()},
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }
    if auto_map:
        values["auto_map"] = dict(auto_map)
    if config.positions == "rope":
        values |= {"max_position_embeddings": config.max_length, **written_rope(config)}
    if layout == "baichuan":
        values |= {"model_max_length": config.max_length, "positions": config.positions, "head": config.head}
        if config.head == "norm":
            values["z_loss_weight"] = config.z_loss_weight
        return values
    values |= {"num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "attention_dropout": 0.0}
    if layout in ("llama", "qwen3"):
        values["attention_bias"] = False
    if layout == "llama":
        values["mlp_bias"] = False
    else:
        values |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.num_layers}
    return values
