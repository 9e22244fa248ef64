import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from huatuo_jax.config import MeshConfig
from huatuo_jax.errors import ConfigError, DoesNotFitError
from huatuo_jax.models.decoder import abstract_params
from huatuo_jax.models.presets import PRESETS, preset
from huatuo_jax.sharding import (
    ShardingRules,
    batch_sharding,
    check_batch,
    constrain,
    make_mesh,
    param_shardings,
)
from tests.support.random_models import sharded_params

FOUR_BY_TWO = MeshConfig(data=1, fsdp=4, tensor=2)


def test_open_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_smaller_explicit_mesh_leaves_devices_idle():
    assert make_mesh(MeshConfig(data=1, fsdp=2, tensor=1)).size == 2


def test_a_mesh_that_does_not_fit_names_the_sizes():
    with pytest.raises(DoesNotFitError, match="needs 16 devices and there are 8"):
        make_mesh(MeshConfig(data=1, fsdp=8, tensor=2))
    with pytest.raises(DoesNotFitError, match="does not cover 8 devices: its fixed sizes make 3"):
        make_mesh(MeshConfig(data=3, fsdp=-1, tensor=1))


def test_parameters_are_made_in_parts():
    config = preset("tiny-yi")
    _, params = sharded_params(config, seed=0, mesh=make_mesh(FOUR_BY_TWO))
    query = params["layers"]["attention"]["query"]  # [layers 3, embed 64, heads 4, head_dim 16]
    assert query.sharding.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert {shard.data.shape for shard in query.addressable_shards} == {(3, 16, 2, 16)}
    head = params["head"]  # [vocab 256, embed 64]
    assert {shard.data.shape for shard in head.addressable_shards} == {(128, 16)}


def test_initial_values_do_not_depend_on_the_mesh():
    config = preset("tiny-qwen3", num_layers=1)
    _, one = sharded_params(config, seed=7, mesh=make_mesh(MeshConfig(data=1, fsdp=1, tensor=1)))
    _, eight = sharded_params(config, seed=7, mesh=make_mesh(FOUR_BY_TWO))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


@pytest.mark.parametrize("name", PRESETS)
def test_every_dimension_of_every_model_has_a_rule(name):
    for spec in jax.tree.leaves(abstract_params(preset(name))):
        assert set(spec.axes) <= {field.name for field in dataclasses.fields(ShardingRules)}
        assert len(spec.axes) == len(spec.shape)


def test_a_dimension_that_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(
        ConfigError, match=r"layers/attention/key: dimension kv_heads of size 2 does not divide by mesh axis tensor of size 4"
    ):
        param_shardings(abstract_params(preset("tiny-yi")), mesh)


def test_rules_that_use_a_mesh_axis_twice_are_refused():
    with pytest.raises(ConfigError, match="one mesh axis on two dimensions"):
        ShardingRules(embed="tensor").spec(("embed", "heads", "head_dim"))


def test_rows_lie_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = jax.device_put(jnp.zeros((8, 3)), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    check_batch(8, mesh)
    with pytest.raises(ConfigError, match="6 rows do not divide over 4 devices"):
        check_batch(6, mesh)


def test_constrain_lays_out_an_activation_and_does_nothing_without_a_mesh():
    x = jnp.ones((8, 4))
    assert constrain(x, "batch", "heads") is x
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        laid_out = jax.jit(lambda x: constrain(x, "batch", "heads"))(x)
        assert {shard.data.shape for shard in laid_out.addressable_shards} == {(2, 2)}
        assert jax.jit(lambda x: constrain(x, "batch", "heads"))(x[:3]).shape == (3, 4)
