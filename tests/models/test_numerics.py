import jax
import jax.numpy as jnp
import numpy as np

from huatuo_jax.models.numerics import matmul


def test_gradients_are_those_of_einsum():
    x, w, g = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 3, 4), (4, 5, 6), (2, 3, 5, 6)]))
    ours, pull_ours = jax.vjp(lambda x, w: matmul("BSD,DNH->BSNH", x, w), x, w)
    plain, pull_plain = jax.vjp(lambda x, w: jnp.einsum("BSD,DNH->BSNH", x, w), x, w)
    for a, b in zip([ours, *pull_ours(g)], [plain, *pull_plain(g)], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_operands_are_summed_in_float32():
    x, w = jnp.full((1, 1000), 1.0, jnp.bfloat16), jnp.full((1000, 1), 1.0)
    assert matmul("SD,DF->SF", x, w, jnp.float32).item() == 1000.0
    gradient = jax.grad(lambda w: matmul("SD,DF->SF", jnp.ones((257, 1), jnp.bfloat16), w, jnp.float32).sum())(jnp.ones((1, 1)))
    assert gradient.dtype == jnp.float32
    assert gradient.item() == 257.0  # no bf16 number: rounding would give 256
