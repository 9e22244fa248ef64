"""The fields of a config.json, sorted by what is done with them; `hf_config.read_config` asks here before it reads any.

What must hold: nothing that could change the function of the model passes unseen. A field is

    READ              by `hf_config.py`, and of the kind that it must be
    FIXED             present with the one value that the decoder computes
    WITHOUT_EFFECT    on the function of the model
    or refused        by name, all faults of a file in one error; `--ignore FIELD` lets an unknown one pass, and a sliding window

Next to read: `hf_config.py`.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from huatuo_jax.errors import ConfigError

Kind = tuple[str, Callable[[Any], bool]]
"""What a value must be: in words, and the test of it."""


def _is_number(value: Any) -> bool:
    """A number that a float can hold; neither a bool, which Python counts as one, nor NaN or infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


COUNT: Kind = ("a whole number of at least 1", lambda v: isinstance(v, int) and _is_number(v) and v >= 1)
POSITIVE: Kind = ("a number above 0", lambda v: _is_number(v) and v > 0)
NOT_NEGATIVE: Kind = ("a number of at least 0", lambda v: _is_number(v) and v >= 0)
TRUTH: Kind = ("true or false", lambda v: isinstance(v, bool))
TEXT: Kind = ("text", lambda v: isinstance(v, str))
TEXTS: Kind = ("a list of texts", _is_list_of_text)
ANYTHING: Kind = ("anything", lambda v: True)
OBJECT: Kind = ("an object", lambda v: isinstance(v, Mapping))

READ: dict[str, Kind] = {
    **dict.fromkeys(("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"), COUNT),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "max_position_embeddings", "model_max_length"), COUNT),
    "sliding_window": COUNT,
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), POSITIVE),
    **dict.fromkeys(("initializer_range", "z_loss_weight"), NOT_NEGATIVE),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), OBJECT),
    **dict.fromkeys(("architectures", "layer_types"), TEXTS),
    **dict.fromkeys(("model_type", "positions", "head"), TEXT),
    "tie_word_embeddings": TRUTH,
}
"""What `huatuo_jax.weights.hf_config` reads, and what it must be; null is the same as absent, save for a Mistral's window."""

MISTRAL_WINDOW = 4096
"""What both transformers take for the window of a Mistral whose config.json has no `sliding_window`; null is none."""

FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "the feed-forward here is SwiGLU, with silu"),
    "attention_bias": ((False,), "it puts a bias on q, k, v and the output projection; here only Qwen2 has q, k and v biases"),
    "mlp_bias": ((False,), "the feed-forward here has no biases"),
    "partial_rotary_factor": ((1,), "RoPE here turns whole heads"),
    "use_mrope": ((False,), "multimodal RoPE"),
    "use_sliding_window": ((False,), "attention here sees the whole sequence"),
    "quantization_config": ((), "the weights are quantised; give the folder in float32, bfloat16 or float16"),
    "num_experts": ((), "a mixture of experts"),
    "num_local_experts": ((), "a mixture of experts"),
    "n_routed_experts": ((), "a mixture of experts"),
    "moe_intermediate_size": ((), "a mixture of experts"),
}
"""Field → the values that we compute (absent and null are the same), and why no other."""

WITHOUT_EFFECT = frozenset(
    {
        # Bookkeeping of the files and of transformers.
        *("_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map", "tokenizer_class"),
        *("_from_model_config", "_commit_hash", "_attn_implementation", "attn_implementation", "_attn_implementation_autoset"),
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "generation_config"),
        *("is_decoder", "is_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix"),
        # How transformers computes and what it returns.
        *("use_cache", "pretraining_tp", "gradient_checkpointing", "use_bfloat16", "torchscript", "chunk_size_feed_forward"),
        *("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"),
        *("pruned_heads", "tf_legacy_loss", "attention_dropout", "hidden_dropout", "max_window_layers"),
        # Sampling, which older releases kept here.
        *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
        *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_beams"),
        *("num_beam_groups", "diversity_penalty", "num_return_sequences", "early_stopping", "remove_invalid_values"),
        *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"),
        "forced_eos_token_id",
    }
)
"""Fields that do not change what the decoder computes. Dropout is among them: training here uses none."""


def check_fields(values: Mapping[str, Any], where: str, ignore: Collection[str] = ()) -> None:
    """Refuses, all in one error, values that cannot be; then what the decoder does not compute and what nobody here knows.

    Args:
      values: the parsed config.json.
      where: its path, for the error.
      ignore: unknown fields that the user vouches for, or `sliding_window`.

    Raises:
      ConfigError: names each field, its value and the reason.
    """
    # All faults before any is raised: a file is corrected in one round. Values that cannot be go first, because a file with such
    # is damaged and says nothing about what it asks for.
    wrong, unsupported, unknown = [], [], []
    for name, value in values.items():
        if value is None or name in WITHOUT_EFFECT:
            continue
        words, holds = READ.get(name, ANYTHING)
        if not holds(value):
            wrong.append(f"{name} = {short(value)}: it must be {words}")
        elif name in FIXED:
            allowed, reason = FIXED[name]
            if value not in allowed:
                unsupported.append(f"{name} = {short(value)}: {reason}")
        elif name == "layer_types":
            others = sorted(set(value) - {"full_attention"})
            if others:
                unsupported.append(f"layer_types has {', '.join(others)}: all layers here are full_attention")
        elif name not in READ and name not in ignore:
            unknown.append(f"{name} = {short(value)}: unknown; if it does not change the model, pass --ignore {name}")
    if _has_window(values) and "sliding_window" not in ignore:
        window = values.get("sliding_window", f"{MISTRAL_WINDOW}, for it is absent")
        reason = FIXED["use_sliding_window"][1]
        unsupported.append(f"sliding_window = {window}: {reason}; if yours never exceed the window, pass --ignore sliding_window")
    if wrong:
        raise ConfigError(f"{where} has values that cannot be:\n  " + "\n  ".join(wrong) + "\ncorrect it or fetch it again")
    if unsupported or unknown:
        raise ConfigError(f"{where} asks for what huatuo-jax does not compute:\n  " + "\n  ".join([*unsupported, *unknown]))


def _has_window(values: Mapping[str, Any]) -> bool:
    """Whether a sliding window cuts off a part of the longest sequence, or may: values that cannot be count as if it did."""
    is_mistral = values.get("model_type") == "mistral"
    window = values.get("sliding_window", MISTRAL_WINDOW if is_mistral else None)
    # Qwen's files name a window that they then switch off; a Mistral has no such switch.
    if window is None or (values.get("use_sliding_window") is False and not is_mistral):
        return False
    length = values.get("max_position_embeddings") or values.get("model_max_length")
    _, is_count = COUNT
    return not (is_count(window) and is_count(length) and window >= length)


def short(value: Any) -> str:
    """A value as an error names it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
