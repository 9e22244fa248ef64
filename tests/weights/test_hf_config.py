"""config.json of the released models, as recalled from the hub, and of transformers 4 and 5: understood, or refused by name."""

import contextlib
import dataclasses
import json

import pytest

from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.models.presets import PRESETS, preset
from huatuo_jax.weights.hf_config import SHAPE, is_hf_folder, read_config, write_config
from huatuo_jax.weights.hf_config_fields import READ
from huatuo_jax.weights.hf_names import native_layout

BAICHUAN = {
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_baichuan.BaichuanConfig",
        "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
    },
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "baichuan",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.29.2",
    "use_cache": True,
}
SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
THIRTEEN = {"hidden_size": 5120, "intermediate_size": 13696, "num_attention_heads": 40, "num_hidden_layers": 40}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
}
YI = LLAMA | {
    "hidden_size": 7168,
    "intermediate_size": 20480,
    "max_position_embeddings": 4096,
    "num_attention_heads": 56,
    "num_hidden_layers": 60,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 5000000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 64000,
}
LLAMA2 = LLAMA | {"max_position_embeddings": 4096, "vocab_size": 32000}
LLAMA3 = LLAMA | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 128001,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
LLAMA31 = LLAMA3 | {
    "mlp_bias": False,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 32768,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}
RELEASED = {
    "Baichuan2-7B-Base": (
        BAICHUAN | SEVEN | {"vocab_size": 125696, "max_position_embeddings": 4096, "model_max_length": 4096},
        "baichuan2-7b",
    ),
    "Baichuan2-13B-Base": (
        BAICHUAN
        | THIRTEEN
        | {"vocab_size": 125696, "model_max_length": 4096, "z_loss_weight": 0, "gradient_checkpointing": [False]},
        "baichuan2-13b",
    ),
    "Baichuan-7B": (
        BAICHUAN | SEVEN | {"architectures": ["BaiChuanForCausalLM"], "vocab_size": 64000, "max_position_embeddings": 4096},
        "baichuan-7b",
    ),
    "Baichuan-13B-Base": (
        BAICHUAN | THIRTEEN | {"_from_model_config": True, "vocab_size": 64000, "model_max_length": 4096},
        "baichuan-13b",
    ),
    "Yi-34B, first release": (YI | {"architectures": ["YiForCausalLM"], "model_type": "Yi"}, "yi-34b"),
    "Yi-34B": (YI, "yi-34b"),
    "Llama-2-7b-hf": (LLAMA2 | SEVEN | {"num_key_value_heads": 32}, "llama2-7b"),
    "Llama-2-13b-hf": (LLAMA2 | THIRTEEN | {"intermediate_size": 13824, "pretraining_tp": 2}, "llama2-13b"),
    "Meta-Llama-3-8B": (LLAMA3, "llama3-8b"),
    "Llama-3.1-8B": (LLAMA31, "llama3.1-8b"),
    "Mistral-7B-v0.3": (MISTRAL, "mistral-7b-v0.3"),
    "Qwen2.5-0.5B": (QWEN2, "qwen2.5-0.5b"),
    "Qwen3-0.6B": (QWEN3, "qwen3-0.6b"),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_are_recognised(name):
    values, expected = RELEASED[name]
    assert read_config(values, name=expected) == PRESETS[expected]


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_reads_as_the_same_model(name):
    config = PRESETS[name]
    values = json.loads(json.dumps(write_config(config, native_layout(config), "bfloat16", eos_token_id=2)))
    assert read_config(values, name=name) == config


def test_a_baichuan_with_rope_written_as_llama_is_that_model_with_a_plain_head():
    config = preset("tiny-baichuan2-7b")
    found = read_config(write_config(config, "llama", "float32"), name=config.name)
    assert found == dataclasses.replace(config, family="llama", head="linear")


@pytest.mark.parametrize("name", ["tiny-llama3", "tiny-yi", "tiny-qwen2", "tiny-qwen3"])
def test_transformers_reads_what_is_written_as_we_do_and_writes_it_back(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    config = PRESETS[name]
    (tmp_path / "config.json").write_text(json.dumps(write_config(config, native_layout(config), "bfloat16", eos_token_id=2)))
    found = transformers.AutoConfig.from_pretrained(tmp_path)
    assert str(found.dtype).removeprefix("torch.") == "bfloat16" and found.eos_token_id == 2
    assert found.num_key_value_heads == config.num_kv_heads and found.rope_parameters["rope_theta"] == config.rope_theta
    found.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again", name=name) == config


@pytest.mark.parametrize(
    ("spelling", "theta"),
    [
        ({}, 10_000),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}, 5e5),
    ],
)
def test_both_spellings_of_the_rope_base(spelling, theta):
    values = {name: value for name, value in LLAMA3.items() if name != "rope_theta"} | spelling
    assert read_config(values).rope_theta == theta


def test_both_spellings_of_llama3_scaling():
    expected = PRESETS["llama3.1-8b"].rope_scaling
    old = LLAMA31["rope_scaling"]
    new = {name: value for name, value in LLAMA31.items() if name not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = old | {"rope_theta": 5e5}
    assert read_config(new).rope_scaling == expected
    older = LLAMA31 | {"rope_scaling": {("type" if k == "rope_type" else k): v for k, v in old.items()}}
    assert read_config(older).rope_scaling == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "several RoPE bases"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling 'linear'.*default and llama3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}}, "RoPE scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor, high_freq_factor, original"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "several kinds of layers"),
        ({"attention_bias": True}, "attention_bias = True: it puts a bias"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': .*SwiGLU"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"logit_scale": 0.1}, "logit_scale = 0.1: unknown; .*--ignore logit_scale"),
        ({"model_type": "mixtral"}, "model_type 'mixtral'.*baichuan, llama, Yi, mistral, qwen2, qwen3"),
        ({"model_type": "mistral", "sliding_window": None}, "LlamaForCausalLM.*of model_type mistral .*MistralForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"num_hidden_layers": None}, "lacks num_hidden_layers"),
        ({"max_position_embeddings": None}, "neither max_position_embeddings nor model_max_length"),
        ({"hidden_size": 4100}, "not a multiple"),
    ],
)
def test_what_would_change_the_model_is_refused_by_name(fields, reason):
    with pytest.raises(ConfigError, match=reason):
        read_config(LLAMA3 | fields)


STRANGE = ["x", "4096", [], [1], ["x"], {}, {"a": 1}, None, -1, 0, 1.5, True, False, float("nan"), float("inf"), 10**400]
POSSIBLE = {
    "rms_norm_eps": [1.5],
    "rope_theta": [1.5],
    "initializer_range": [0, 1.5],
    "z_loss_weight": [0, 1.5],
    "architectures": [[]],
    "layer_types": [[]],
    "rope_scaling": [{}],
    "rope_parameters": [{}],
    "tie_word_embeddings": [True, False],
}
"""Of the strange values, those that the field may have."""
NEEDED = ("model_type", "max_position_embeddings", *SHAPE.values())
"""Fields that may not be null."""


def is_among(value, values):
    """`in`, for which True is no 1 and False no 0."""
    return any(type(value) is type(other) and value == other for other in values)


@pytest.mark.parametrize("field", READ)
def test_a_value_that_cannot_be_is_refused_with_its_field(field):
    for value in STRANGE:
        if is_among(value, POSSIBLE.get(field, [])) or (value is None and field not in NEEDED):
            read_config(LLAMA31 | {field: value})
            continue
        with pytest.raises(ConfigError) as caught:
            read_config(LLAMA31 | {field: value})
        assert field.rstrip("s") in str(caught.value) or "unknown fields of RoPE scaling default: a" in str(caught.value)


@pytest.mark.parametrize("field", READ)
@pytest.mark.parametrize("name", ["Baichuan2-13B-Base", "Baichuan-7B", "Qwen3-0.6B", "Yi-34B, first release", "Mistral-7B-v0.3"])
def test_no_value_ends_in_another_exception(name, field):
    for value in STRANGE:
        with contextlib.suppress(ConfigError):
            read_config(RELEASED[name][0] | {field: value})


@pytest.mark.parametrize("field", [*LLAMA31["rope_scaling"], "rope_theta"])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_a_number_of_rope_that_cannot_be_is_refused(spelling, field):
    values = {name: found for name, found in LLAMA31.items() if name not in ("rope_scaling", "rope_theta")}
    for value in STRANGE:
        values[spelling] = LLAMA31["rope_scaling"] | {field: value}
        if is_among(value, [1.5]) or (field == "rope_theta" and value is None):
            continue
        with pytest.raises(ConfigError, match=r"RoPE|rope"):
            read_config(values)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rope_scaling": 5}, "rope_scaling = 5: it must be an object"),
        ({"model_type": ["x"]}, r"model_type \['x'\]; huatuo-jax reads baichuan"),
        ({"max_position_embeddings": "4096"}, "max_position_embeddings = '4096': it must be a whole number of at least 1"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5': it must be a number above 0"),
        ({"num_attention_heads": True}, "num_attention_heads = True: it must be a whole number"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple of num_key_value_heads 5"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false': it must be true or false"),
        ({"rope_scaling": LLAMA31["rope_scaling"] | {"factor": "8"}}, "factor of RoPE scaling is '8'; it must be a number"),
        ({"rope_scaling": LLAMA31["rope_scaling"] | {"low_freq_factor": 4.0}}, "is 4.0; it must be below high_freq_factor, 4.0"),
        ({"positions": "alibi"}, "has positions 'alibi'; for this model_type it is rope"),
        ({"head": "norm"}, "has head 'norm'; for this model_type it is linear"),
    ],
)
def test_the_refusal_says_what_is_expected(fields, reason):
    with pytest.raises(ConfigError, match=reason):
        read_config(LLAMA31 | fields)


def test_all_values_that_cannot_be_are_named_in_one_error():
    with pytest.raises(ConfigError) as caught:
        read_config(LLAMA3 | {"rms_norm_eps": -1, "vocab_size": 0, "rope_scaling": []})
    assert all(name in str(caught.value) for name in ("rms_norm_eps = -1", "vocab_size = 0", "rope_scaling = []"))


@pytest.mark.parametrize("content", ["[]", "5", "null", '"llama"', "[" * 100_000, '{"vocab_size": ' + "9" * 5_000 + "}"])
def test_a_file_that_is_no_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"config.json (holds a|is not JSON).*fetch it again"):
        read_config(tmp_path)


def test_several_faults_are_named_in_one_error():
    with pytest.raises(ConfigError) as caught:
        read_config(LLAMA3 | {"attention_bias": True, "logit_scale": 0.1, "embedding_multiplier": 12})
    assert all(name in str(caught.value) for name in ("attention_bias", "logit_scale", "embedding_multiplier"))


def test_an_unknown_field_passes_if_the_user_vouches_for_it():
    read_config(LLAMA3 | {"unsloth_fixed": True}, ignore=["unsloth_fixed"])
    with pytest.raises(ConfigError, match="attention_bias"):
        read_config(LLAMA3 | {"attention_bias": True}, ignore=["attention_bias"])


def test_a_qwen3_without_head_dim_is_not_guessed():
    with pytest.raises(ConfigError, match="lacks head_dim"):
        read_config({name: value for name, value in QWEN3.items() if name != "head_dim"})


@pytest.mark.parametrize("window", [4096, 32767, "absent"])
def test_a_window_below_the_longest_sequence_is_refused_unless_it_is_ignored(window):
    values = {name: value for name, value in MISTRAL.items() if name != "sliding_window"}
    if window != "absent":  # as Mistral-7B-v0.1, for example
        values["sliding_window"] = window
    with pytest.raises(ConfigError, match=rf"sliding_window = .*{window}.*--ignore sliding_window"):
        read_config(values)
    assert read_config(values, name="mistral-7b-v0.3", ignore=["sliding_window"]) == PRESETS["mistral-7b-v0.3"]


def test_the_switch_of_qwen_turns_no_window_of_a_mistral_off():
    with pytest.raises(ConfigError, match="sliding_window = 4096"):
        read_config(MISTRAL | {"use_sliding_window": False, "sliding_window": 4096})


@pytest.mark.parametrize("window", [None, 32768, 50000])
def test_a_window_that_holds_the_longest_sequence_is_none(window):
    assert read_config(MISTRAL | {"sliding_window": window}) == read_config(MISTRAL)


def test_a_window_that_cannot_be_is_refused_even_if_it_is_ignored():
    with pytest.raises(ConfigError, match="sliding_window = 0: it must be a whole number"):
        read_config(MISTRAL | {"sliding_window": 0}, ignore=["sliding_window"])


def test_the_defaults_of_a_mistral_are_not_those_of_a_llama():
    """transformers takes 8 kv heads and a window of 4096 where the file is silent."""
    with pytest.raises(ConfigError, match="lacks num_key_value_heads"):
        read_config({name: value for name, value in MISTRAL.items() if name != "num_key_value_heads"})
    silent = {name: value for name, value in MISTRAL.items() if name != "sliding_window"}
    assert read_config(silent | {"max_position_embeddings": 4096}).max_length == 4096


SMALL = BAICHUAN | SEVEN | {"hidden_size": 2048, "model_max_length": 4096}


def test_an_unusual_width_leaves_the_positions_open():
    values = SMALL | {"vocab_size": 64000}
    with pytest.raises(ConfigError, match=r"which positions .*nothing in it decides.*--positions rope or alibi"):
        read_config(values)
    assert read_config(values, positions="alibi").positions == "alibi"
    assert read_config(values | {"max_position_embeddings": 4096}).positions == "rope"


def test_an_unusual_vocabulary_leaves_the_head_open():
    values = SMALL | {"vocab_size": 70000, "max_position_embeddings": 4096}
    with pytest.raises(ConfigError, match=r"which head .*--head linear or norm"):
        read_config(values)
    assert read_config(values, head="linear").head == "linear"
    assert read_config(values | {"z_loss_weight": 0}).head == "norm"


def test_signs_for_both_leave_it_open():
    with pytest.raises(ConfigError, match="64,000, a Baichuan 1, means linear and z_loss_weight means norm"):
        read_config(BAICHUAN | SEVEN | {"vocab_size": 64000, "max_position_embeddings": 4096, "z_loss_weight": 0})
    with pytest.raises(ConfigError, match="max_position_embeddings means rope and hidden_size 5120"):
        read_config(BAICHUAN | THIRTEEN | {"vocab_size": 64000, "max_position_embeddings": 4096})


def test_the_model_that_the_weights_are_for_answers_what_is_open():
    values = SMALL | {"vocab_size": 70000}
    like = preset("baichuan2-13b")
    found = read_config(values, like=like)
    assert (found.positions, found.head) == ("alibi", "norm")
    assert read_config(RELEASED["Baichuan-7B"][0], like=like).head == "linear"


def test_an_answer_that_contradicts_the_file_is_refused():
    with pytest.raises(ConfigError, match=r"--head linear contradicts .*125,696"):
        read_config(RELEASED["Baichuan2-7B-Base"][0], head="linear")
    with pytest.raises(ConfigError, match=r"--positions alibi contradicts"):
        read_config(LLAMA3, positions="alibi")


def test_a_folder_without_config_or_with_a_broken_one(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lla')
    with pytest.raises(DataError, match="is not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="list, not an object"):
        read_config(tmp_path)


def test_the_name_is_that_of_the_folder(tmp_path):
    (tmp_path / "Llama-3").mkdir()
    (tmp_path / "Llama-3" / "config.json").write_text(json.dumps(LLAMA3))
    assert read_config(tmp_path / "Llama-3").name == "Llama-3"
    assert is_hf_folder(tmp_path / "Llama-3") and not is_hf_folder(tmp_path)


def test_yi_is_written_as_llama():
    with pytest.raises(ConfigError, match="only read"):
        write_config(preset("tiny-yi"), "yi", "float32")
