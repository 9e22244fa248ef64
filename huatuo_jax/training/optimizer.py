"""AdamW with clipping, and the learning rate over the run, made from an `OptimizerConfig` for the step (`step.py`).

The schedule depends on the number of updates, not of batches: a skipped batch does not move it. All optimizer state is a tree of
optax, sharded like the parameters it belongs to.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from huatuo_jax.config import OptimizerConfig


def build_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far.

    "huatuo" (HuatuoGPT-II's recipe): with S = `total_steps` and E = `schedule_epochs`, N = S·(E + 0.35)/E; linear from 0 over
    int(warmup·N) updates, then half a cosine that would reach 0 at N, after the end of the run. For E = 1 the last update has
    0.16 of the peak. "cosine": warm-up over int(warmup·S), then a cosine that reaches `floor` at the last update. "constant":
    flat after the warm-up. The first update has rate 0 if there is a warm-up at all (if int(…) is at least 1).
    """
    if config.schedule == "huatuo":
        horizon, floor = total_steps * (config.schedule_epochs + 0.35) / config.schedule_epochs, 0.0
        end = horizon
    else:
        horizon, floor = float(total_steps), config.floor if config.schedule == "cosine" else 1.0
        end = horizon - 1
    warmup = int(config.warmup * horizon)

    def schedule(count: ArrayLike) -> Array:
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - warmup) / max(end - warmup, 1.0), 0.0, 1.0)
        decay = floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return config.learning_rate * jnp.where(count < warmup, count / max(warmup, 1), decay)

    return schedule


def build_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; weight decay on every parameter, as the original does, or on matrices alone.

    The first moment is stored as `state_dtype`, the second as `second_moment_dtype`; parameters and arithmetic are fp32.
    """
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon, mu_dtype=jnp.dtype(config.state_dtype))
    if config.second_moment_dtype == "bfloat16":
        adam = _with_bfloat16_second_moment(adam)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        adam,
        optax.add_decayed_weights(config.weight_decay, mask=None if config.decay == "all" else are_matrices),
        optax.scale_by_learning_rate(schedule),
    )


def are_matrices(params: optax.Params) -> optax.Params:
    """Tree of bool: whether each parameter is a matrix, and no scale of a norm or bias.

    Told by the names, for the layers of the decoder are stacked: a bias of one layer is a matrix of all.
    """

    def is_matrix(path: Any, _: Array) -> bool:
        return not jax.tree_util.keystr(path, simple=True).endswith(("norm", "bias"))

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _with_bfloat16_second_moment(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adam whose second moment is stored in bf16, rounded stochastically.

    An update with β₂ = 0.999 changes it by about a thousandth, less than half of bf16's spacing (1/256): rounded to the nearest
    value it would never move again.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        state = adam.init(params)
        assert isinstance(state, optax.ScaleByAdamState)
        return state._replace(nu=optax.tree.cast(state.nu, jnp.bfloat16))

    def update(
        gradients: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        directions, new = adam.update(gradients, state._replace(nu=optax.tree.cast(state.nu, jnp.float32)), params)
        return directions, new._replace(nu=jax.tree.map(lambda v: round_stochastically(v, new.count), new.nu))

    return optax.GradientTransformation(init, update)


def round_stochastically(x: Array, count: Array) -> Array:
    """Rounds finite fp32 `x` to one of its two bf16 neighbours, with the probability that makes the mean right.

    The noise is a hash of the value's bits and `count`: no random state, nothing to store, the same on every mesh.

    Example: bf16 keeps the upper 16 of the 32 bits. For lower bits of 0x4000, a quarter of the step to the next bf16 number,
    adding noise from 0 … 0xFFFF carries into the upper bits for a quarter of all noise; then the lower bits are cut off.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = bits ^ (count.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        noise = (noise ^ (noise >> shift)) * jnp.uint32(factor)
    bits = (bits + ((noise ^ (noise >> 16)) & jnp.uint32(0xFFFF))) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)
