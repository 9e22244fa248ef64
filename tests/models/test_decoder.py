import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from huatuo_jax.config import MeshConfig
from huatuo_jax.models.cache import KVCache, extend
from huatuo_jax.models.decoder import split_decoder
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import batch_sharding, make_mesh
from tests.support import random_models
from tests.support.random_models import sharded_params

pytestmark = pytest.mark.usefixtures("compiled_fast")

BOTH_POSITIONS = ["tiny-yi", "tiny-baichuan2-13b"]


@functools.cache
def random_model(name: str):
    """Weights wide enough that attention is far from uniform."""
    config, params = random_models.random_model(name)
    return split_decoder(config), params


@functools.partial(jax.jit, static_argnums=0, static_argnames="unroll")
def hidden_of(graphdef, params, *inputs, unroll=1):
    """Compiled once for all rows of a length."""
    return nnx.merge(graphdef, params)(*inputs, unroll=unroll)


def row(*segments: list[int], length: int):
    """tokens, positions and segment ids [1, length] of examples packed side by side, then padding."""
    tokens, positions, ids = np.zeros((3, 1, length), np.int32)
    start = 0
    for index, segment in enumerate(segments, 1):
        part = slice(start, start + len(segment))
        tokens[0, part], positions[0, part], ids[0, part] = segment, np.arange(len(segment)), index
        start += len(segment)
    return tokens, positions, ids


@pytest.mark.parametrize("name", BOTH_POSITIONS)
def test_a_packed_example_is_computed_as_if_alone(name):
    graphdef, params = random_model(name)
    forward = functools.partial(hidden_of, graphdef)
    first, second = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8]
    packed = forward(params, *row(first, second, length=16))
    np.testing.assert_allclose(packed[0, :5], forward(params, *row(first, length=16))[0, :5], atol=2e-5)
    np.testing.assert_allclose(packed[0, 5:12], forward(params, *row(second, length=16))[0, :7], atol=2e-5)


@pytest.mark.parametrize("attention", ["einsum", "dot_product", "blocked"])
def test_padding_leaves_values_and_gradients_finite(attention):
    graphdef, params = random_model("tiny-yi")
    inputs = row([3, 1, 4], length=16)
    loss = lambda params: jnp.square(nnx.merge(graphdef, params)(*inputs, attention=attention)).sum()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params)))


def test_a_token_beyond_the_vocabulary_shows():
    graphdef, params = random_model("tiny-yi")
    assert np.isnan(hidden_of(graphdef, params, *row([256] * 16, length=16))).all()


def test_unrolled_layers_are_the_same_layers():
    graphdef, params = random_model("tiny-yi")
    inputs = row([3, 1, 4], length=16)
    looped, unrolled = (hidden_of(graphdef, params, *inputs, unroll=n) for n in (1, 2))
    np.testing.assert_allclose(looped, unrolled, atol=1e-5)


def test_remat_changes_what_is_recomputed_and_nothing_else():
    graphdef, params = random_model("tiny-qwen3")
    inputs = row([3, 1, 4, 1, 5], [9, 2, 6], length=12)
    gradients, products = {}, {}
    for remat in ("none", "dots", "full"):
        gradient = jax.grad(lambda params, remat=remat: jnp.square(nnx.merge(graphdef, params)(*inputs, remat=remat)).sum())
        gradients[remat] = jax.jit(gradient)(params)
        products[remat] = str(jax.make_jaxpr(gradient)(params)).count("dot_general")
    for remat in ("dots", "full"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients[remat], gradients["none"])
    # "dots" repeats the two products of attention; "full" also query, key, value, output, gate and up. `down` is never needed.
    assert products == {"none": products["none"], "dots": products["none"] + 2, "full": products["none"] + 8}


def test_bfloat16_compute_keeps_parameters_and_gradients_in_float32():
    graphdef, params = random_model("tiny-baichuan2-7b")
    inputs = row(list(range(12)), length=12)

    def loss(params, dtype):
        model = nnx.merge(graphdef, params)
        hidden = model(*inputs, dtype=dtype)
        assert hidden.dtype == dtype
        logits = model.logits(hidden)
        return jnp.square(logits).sum(), logits

    exact = jax.jit(lambda params: loss(params, jnp.float32)[1])(params)
    grads, rounded = jax.jit(jax.grad(lambda params: loss(params, jnp.bfloat16), has_aux=True))(params)
    assert rounded.dtype == jnp.float32
    assert np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_norm_head_rows_have_length_one():
    graphdef, params = random_model("tiny-baichuan2-7b")
    weights = jax.jit(lambda params: nnx.merge(graphdef, params).output_weights())(params)
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(weights[3] * np.linalg.norm(params["head"][3]), params["head"][3], rtol=1e-5)


def test_tied_embeddings_are_the_output_matrix():
    graphdef, params = random_model("tiny-qwen2")
    assert "head" not in params
    np.testing.assert_array_equal(nnx.merge(graphdef, params).output_weights(), params["embedding"])


@pytest.mark.parametrize("name", BOTH_POSITIONS)
def test_pieces_through_the_cache_equal_the_whole_row(name):
    graphdef, params = random_model(name)
    inputs = row([3, 1, 4, 1, 5, 9, 2, 6], length=8)
    other = np.array([[7, 7]], np.int32)

    @jax.jit
    def whole_and_pieces(params):
        model = nnx.merge(graphdef, params)
        cache, pieces = KVCache.empty(model.config, 2, 12, jnp.float32), []
        rows = jnp.array([1])
        # Row 0 belongs to somebody else, who is two tokens long.
        _, cache = extend(model, other, cache, jnp.array([0]), visible=12, rows_B=jnp.array([0]))
        for start, end in ((0, 5), (5, 7)):
            tokens = inputs[0][:, start:end]
            hidden, cache = extend(model, tokens, cache, jnp.array([start]), visible=8, rows_B=rows)
            pieces.append(hidden)
        both = jnp.concatenate([other[:, :1], inputs[0][:, 7:]])
        hidden, cache = extend(model, both, cache, jnp.array([2, 7]), visible=8)
        return model(*inputs), jnp.concatenate([*pieces, hidden[1:]], axis=1), model(*row([7, 7, 7], length=3)), hidden[:1]

    whole, pieces, other_whole, other_last = whole_and_pieces(params)
    np.testing.assert_allclose(pieces, whole, atol=2e-5)
    np.testing.assert_allclose(other_last[0, 0], other_whole[0, 2], atol=2e-5)


def test_a_mesh_changes_only_rounding():
    config = preset("tiny-yi", num_layers=2)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    graphdef, params = sharded_params(config, seed=0, mesh=mesh)
    tokens = np.arange(48, dtype=np.int32).reshape(4, 12)
    ones, index = np.ones_like(tokens), np.tile(np.arange(12, dtype=np.int32), (4, 1))

    def loss(params, *rows):
        model = nnx.merge(graphdef, params)
        return jax.nn.logsumexp(model.logits(model(*rows, remat="full")), axis=-1).mean()

    single = jax.jit(jax.value_and_grad(loss))(jax.device_get(params), tokens, index, ones)
    with jax.set_mesh(mesh):
        rows = jax.device_put((tokens, index, ones), batch_sharding(mesh))
        shardings = jax.tree.map(lambda x: x.sharding, params)
        sharded = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))(params, *rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), sharded, single)
