"""Every model family against an independent torch implementation: logits and the gradient of each parameter, in fp32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from huatuo_jax.models.decoder import split_decoder
from huatuo_jax.models.presets import preset

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.support.random_models import random_params
from tests.support.torch_oracle import named, oracle

pytestmark = pytest.mark.usefixtures("compiled_fast")

TOLERANCE = 1e-4
LENGTH = 24
FAMILIES = {
    "baichuan rope normhead": preset("tiny-baichuan2-7b"),
    "baichuan alibi normhead": preset("tiny-baichuan2-13b"),
    "baichuan rope linear": preset("tiny-baichuan-7b"),
    "baichuan alibi linear, 6 heads": preset("tiny-baichuan-13b", hidden_size=96, num_heads=6, num_kv_heads=6),
    "yi": preset("tiny-yi"),
    "llama2": preset("tiny-llama2"),
    "llama3 scaled rope": preset("tiny-llama3", rope_theta=100.0),
    "mistral": preset("tiny-mistral"),
    "qwen2 bias, tied": preset("tiny-qwen2"),
    "qwen2 untied": preset("tiny-qwen2", tied_embeddings=False),
    "qwen3 q/k norm, tied": preset("tiny-qwen3"),
}


def load(module, tensors: dict[str, np.ndarray]) -> None:
    found = dict(module.named_parameters())
    assert found.keys() == tensors.keys()
    with torch.no_grad():
        for name, tensor in tensors.items():
            found[name].copy_(torch.tensor(tensor))


def assert_close(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    assert ours.shape == theirs.shape, what
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert difference <= TOLERANCE, f"{what}: {difference:.2e}"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_match_torch(family):
    config = FAMILIES[family]
    params = random_params(config)
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, config.vocab_size, (2, 2, LENGTH))
    positions = np.stack([np.arange(LENGTH), np.arange(LENGTH) + 100])

    def loss_and_logits(params):
        model = nnx.merge(split_decoder(config), params)
        hidden = model(jnp.asarray(tokens), jnp.asarray(positions), jnp.ones((2, LENGTH), jnp.int32), remat="full")
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(targets)[..., None], axis=-1)
        return -chosen.mean(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))(params)

    module = oracle(config)
    load(module, named(params, config))
    if config.family == "baichuan":
        expected = module(torch.tensor(tokens), torch.tensor(positions))
    else:
        expected = module(input_ids=torch.tensor(tokens), position_ids=torch.tensor(positions), use_cache=False).logits
    torch.nn.functional.cross_entropy(expected.reshape(-1, config.vocab_size), torch.tensor(targets).reshape(-1)).backward()

    assert_close(np.asarray(logits), expected.detach().numpy(), "logits")
    expected_grads = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    for name, grad in named(grads, config).items():
        assert_close(grad, expected_grads[name], name)
