"""Keys and values of the tokens so far: a static-size cache for decoding, as one pytree.

All rows write the same slots, so prompts of unequal length are padded on the left; padding and unwritten slots have segment 0.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from huatuo_jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Cache of `T` slots for `B` rows.

    Attributes:
      keys, values: [layers, B, T, kv heads, head_dim], in the compute dtype; keys are already rotated.
      segment_ids: int32 [B, T]; 0 = padding or not yet written.
      length: int32 scalar, slots written.
    """

    keys: jax.Array
    values: jax.Array
    segment_ids: jax.Array
    length: jax.Array

    @classmethod
    def empty(cls, config: ModelConfig, batch_size: int, slots: int, dtype: Any = jnp.bfloat16) -> "KVCache":
        """A cache with nothing written; `slots` = longest prompt + new tokens."""
        shape = (config.num_layers, batch_size, slots, config.num_kv_heads, config.head_dim)
        return cls(
            keys=jnp.zeros(shape, dtype),
            values=jnp.zeros(shape, dtype),
            segment_ids=jnp.zeros((batch_size, slots), jnp.int32),
            length=jnp.zeros((), jnp.int32),
        )


def write_slots(slots_BT: jax.Array, new_BS: jax.Array, start: jax.Array) -> jax.Array:
    """`slots` with `new` written along axis 1 from `start` on; further axes are whole."""
    return jax.lax.dynamic_update_slice_in_dim(slots_BT, new_BS.astype(slots_BT.dtype), start, axis=1)
