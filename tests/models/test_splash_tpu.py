"""Splash attention inside the model compiles for a TPU that is not here (libtpu, an extra)."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from huatuo_jax.config import MeshConfig
from huatuo_jax.models.decoder import abstract_params, split_decoder
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import batch_sharding, make_mesh, param_shardings, with_shardings

pytest.importorskip("libtpu")


@pytest.mark.slow
def test_forward_and_backward_compile_for_v5p(monkeypatch):
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    try:
        topology = topologies.get_topology_desc("v5p:2x2x1", "tpu")
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            pytest.skip(f"another process is using libtpu: {error}")
        raise
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), topology.devices)
    config = preset("tiny-yi", head_dim=128, num_layers=2)
    shardings = param_shardings(abstract_params(config), mesh)
    rows = jax.ShapeDtypeStruct((4, 320), jnp.int32, sharding=batch_sharding(mesh))

    def loss(params, tokens, positions, segment_ids):
        model = nnx.merge(split_decoder(config), params)
        hidden = model(tokens, positions, segment_ids, dtype=jnp.bfloat16, attention="splash", remat="full")
        return hidden.astype(jnp.float32).mean()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss), out_shardings=shardings)
        compiled = step.lower(with_shardings(abstract_params(config), shardings), rows, rows, rows).compile()
    # forward, forward again (remat), and the two of the backward pass
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 4
