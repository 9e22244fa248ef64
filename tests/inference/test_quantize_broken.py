import jax
import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.inference.quantize import Quantizer, parse_quantization
from huatuo_jax.models.presets import preset


@pytest.mark.parametrize("text", ["int8", "int4:32"])
def test_a_broken_weight_breaks_the_scales(text):
    """Rounding would make a zero of it, and the model would answer."""
    quantizer = Quantizer(preset("tiny-llama2"), parse_quantization(text), jnp.float32)
    weights = jnp.ones((64, 160)).at[3, 5].set(jnp.nan)
    kept = jax.jit(lambda array: quantizer("layers.ffn.up", array))(weights)
    assert np.isnan(kept.scale).any()
