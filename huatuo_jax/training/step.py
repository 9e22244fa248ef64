"""A `RunConfig` and a mesh in; the compiled training step, its state and all its shardings out, without allocating a parameter.

The step is one pure function of (state, batch). Everything around it follows from the config and abstract shapes, so it can be
lowered and compiled for any mesh, also one whose devices are not here.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from huatuo_jax.config import RunConfig, require
from huatuo_jax.models.decoder import abstract_params, init_params
from huatuo_jax.sharding import ShardingRules, batch_sharding, param_shardings
from huatuo_jax.training.loss import position_weights, sums_by_source, token_losses, token_weights
from huatuo_jax.training.optimizer import build_optimizer, build_schedule

BATCH_FIELDS = ("tokens", "targets", "segment_ids", "positions", "source_ids")
Batch = dict[str, Array]
Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a run must remember.

    Attributes:
      params: fp32 parameters.
      opt_state: moments and counts of optax.
      step: batches consumed, skipped ones included: the position in the data; int32.
      updates: updates made: what the learning rate follows; int32.
      skipped_total: batches whose gradient was not finite; int32.
      skipped_in_a_row: of these, the ones since the last update; int32.
    """

    params: Any
    opt_state: Any
    step: Array
    updates: Array
    skipped_total: Array
    skipped_in_a_row: Array


@dataclass(frozen=True)
class TrainStep:
    """The compiled functions of a run and the shapes and shardings that they take and give.

    Attributes:
      init: seed → TrainState, sharded from the start.
      step: (state, batch) → (state, metrics); the given state is donated. Metrics are fp32 and on every device: loss, grad_norm,
        learning_rate, tokens, target_tokens, skipped (0 or 1), source_loss_sum and source_target_tokens [num_sources].
      abstract_state: the state as ShapeDtypeStructs with shardings; also what a checkpoint is restored to.
      state_shardings: of the state.
      batch_sharding: of every field of a batch: rows over devices.
      abstract_batch: the batch as ShapeDtypeStructs with shardings.
      schedule: updates made → learning rate.
    """

    init: Callable[[int], TrainState]
    step: Any
    abstract_state: TrainState
    state_shardings: TrainState
    batch_sharding: NamedSharding
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    schedule: optax.Schedule

    def lower(self) -> Any:
        """The step lowered for its mesh (`jax.stages.Lowered`); nothing is allocated."""
        return self.step.lower(self.abstract_state, self.abstract_batch)
