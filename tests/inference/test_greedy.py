import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from huatuo_jax.config import MeshConfig, ModelConfig
from huatuo_jax.errors import ConfigError
from huatuo_jax.inference.greedy import greedy
from huatuo_jax.models.decoder import init_decoder, split_decoder
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import abstract_params, make_mesh, param_shardings

NO_EOS = -1
PROMPTS = [[5, 9, 200, 31], [7], list(range(40, 110))]


def random_model(name: str, **changes) -> tuple[ModelConfig, dict]:
    """Weights wide enough that the argmax changes from step to step."""
    config = preset(name, initializer_range=0.2, num_layers=2, **changes)
    return config, jax.jit(lambda key: init_decoder(config, key))(jax.random.key(3))


def greedy_without_cache(config: ModelConfig, params: dict, prompt: list[int], new_tokens: int) -> list[int]:
    """One full forward pass per token, on the right-padded row alone."""
    model, length = nnx.merge(split_decoder(config), params), len(prompt) + new_tokens

    @jax.jit
    def next_token(tokens, count):
        index = jnp.arange(length)[None]
        hidden = model(tokens[None], index, (index < count).astype(jnp.int32))
        return model.logits(hidden)[0, count - 1].argmax()

    tokens = np.zeros(length, np.int32)
    tokens[: len(prompt)] = prompt
    for count in range(len(prompt), length):
        tokens[count] = next_token(tokens, count)
    return tokens[len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["tiny-baichuan2-7b", "tiny-baichuan2-13b", "tiny-qwen3"])
def test_batch_with_cache_equals_single_rows_without(name):
    config, params = random_model(name)
    answers = greedy(config, params, PROMPTS, 12, NO_EOS)
    assert answers == [greedy_without_cache(config, params, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) == 3


def test_a_row_ends_before_its_eos_while_others_go_on():
    config, params = random_model("tiny-yi")
    first, second = greedy(config, params, PROMPTS[:2], 12, NO_EOS)
    eos = next(token for token in first[2:] if token not in second)
    ended, running = greedy(split_decoder(config), params, PROMPTS[:2], 12, eos)
    assert ended == first[: first.index(eos)]
    assert running == second


def test_sharded_parameters_give_the_same_answers():
    config, params = random_model("tiny-yi")
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), devices=jax.devices()[:4])
    sharded = jax.device_put(params, param_shardings(abstract_params(config), mesh))
    expected = greedy(config, params, PROMPTS, 6, NO_EOS)
    with jax.set_mesh(mesh):
        assert greedy(config, sharded, PROMPTS, 6, NO_EOS) == expected


def test_impossible_prompts_are_refused():
    config = preset("tiny-yi")
    params = abstract_params(config)
    with pytest.raises(ConfigError, match="prompt 1 has no tokens"):
        greedy(config, params, [[1], []], 4, 2)
    with pytest.raises(ConfigError, match="token id outside 0…255"):
        greedy(config, params, [[256]], 4, 2)
    with pytest.raises(ConfigError, match="510 tokens; with 4 new ones it exceeds max_length 512"):
        greedy(config, params, [[1] * 510], 4, 2)
    assert greedy(config, params, [], 4, 2) == []
