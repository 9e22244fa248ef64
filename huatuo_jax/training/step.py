"""The training step: one pure function of (state, batch), with its state and all shardings, made from a `RunConfig` and a mesh.

This is the heart of training: micro-batches, loss (`loss.py`), gradients, optimizer (`optimizer.py`), metrics (`metrics.py`).
`build_step` allocates no parameter and runs nothing: everything follows from the config and abstract shapes, so the step can be
lowered and compiled for any mesh, also one whose devices are not here (`benchmarks/pods.py`). The loop that calls it:
`trainer.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from huatuo_jax.config import RunConfig
from huatuo_jax.models.attention import resolve_attention
from huatuo_jax.models.decoder import Decoder, Params, abstract_params, init_params, split_decoder
from huatuo_jax.sharding import batch_sharding, check_batch, param_shardings, with_shardings
from huatuo_jax.training.loss import position_weights, sums_by_source, token_weights, weighted_loss
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

    params: Params
    opt_state: optax.OptState
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
      batch_sharding: of every field of a batch: rows over devices.
      abstract_batch: the batch as ShapeDtypeStructs with shardings.
    """

    init: Callable[[int], TrainState]
    step: jax.stages.Wrapped
    abstract_state: TrainState
    batch_sharding: NamedSharding
    abstract_batch: dict[str, jax.ShapeDtypeStruct]

    def lower(self) -> jax.stages.Lowered:
        """The step lowered for its mesh; nothing is allocated."""
        return self.step.lower(self.abstract_state, self.abstract_batch)


def build_step(config: RunConfig, mesh: Mesh, total_steps: int, sources: tuple[str, ...]) -> TrainStep:
    """The training step of `config` for `mesh`; nothing is allocated or compiled yet.

    Args:
      config: the run.
      mesh: of devices that are here, or of a topology that is only described.
      total_steps: steps of the whole run; the schedule's length.
      sources: names in the order of the batches' source ids.

    Raises:
      ConfigError: rows, sequence or parameters do not divide over micro-batches, chunks or mesh; or no attention backend fits.
    """
    model, micro_rows = config.model, config.batch_size // config.accumulation
    check_batch(micro_rows, mesh)
    schedule = build_schedule(config.optimizer, total_steps)
    optimizer = build_optimizer(config.optimizer, schedule)
    loss_of = _build_loss(config, mesh, needs_segments=config.data.packing == "first_fit")

    def init(seed: Array) -> TrainState:
        params = init_params(model, jax.random.key(seed))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(params, optimizer.init(params), step=zero, updates=zero, skipped_total=zero, skipped_in_a_row=zero)

    def micro_loss(params: Params, rows: Batch) -> tuple[Array, Array]:
        loss, token_losses = loss_of(params, rows)
        return loss, sums_by_source(token_losses, rows["source_ids"], len(sources))

    def loss_and_gradients(params: Params, rows: Batch) -> tuple[tuple[Array, Array], Params]:
        (loss, source_losses), gradients = jax.value_and_grad(micro_loss, has_aux=True)(params, rows)
        # Each micro-batch leaves its gradients sharded like the parameters: summed over the devices here, once, and held as
        # parts.
        return (loss, source_losses), jax.lax.with_sharding_constraint(gradients, shardings.params)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The weights come from the whole batch, before it is split: then losses and gradients of its parts are simply added.
        targets, held = batch["targets"], batch["segment_ids"] > 0
        batch = batch | {"weights": token_weights(targets, config.loss, config.rows_per_mean)}
        if model.z_loss_weight:
            batch["square_weights"] = model.z_loss_weight * position_weights(batch["segment_ids"])
        micro_batches = jax.tree.map(lambda x: split_rows(x, config.accumulation), batch)
        (loss, source_losses), gradients = _sum_over(lambda rows: loss_and_gradients(state.params, rows), micro_batches)
        # A batch with a gradient that is not finite leaves parameters and moments as they were, and counts as skipped. The
        # optimizer runs all the same: a branch would keep both states alive and save nothing in the usual case.
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        made, before = (optax.apply_updates(state.params, updates), opt_state), (state.params, state.opt_state)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), made, before)
        skipped = 1 - finite.astype(jnp.int32)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": schedule(state.updates),
            "tokens": held.sum(),
            "target_tokens": (targets >= 0).sum(),
            "skipped": skipped,
            "source_loss_sum": source_losses,
            "source_target_tokens": sums_by_source((targets >= 0).astype(jnp.float32), batch["source_ids"], len(sources)),
        }
        new = TrainState(
            params=params,
            opt_state=opt_state,
            step=state.step + 1,
            updates=state.updates + 1 - skipped,
            skipped_total=state.skipped_total + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
        )
        return new, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)

    everywhere, rows = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    abstract_state = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.int32))
    of_params = param_shardings(abstract_params(model), mesh)
    of_opt_state = optax.tree.map_params(
        optimizer, lambda _, s: s, abstract_state.opt_state, of_params, transform_non_params=lambda _: everywhere
    )
    shardings: Any = TrainState(of_params, of_opt_state, *(everywhere,) * 4)  # type: ignore[arg-type]
    row_shape = (config.batch_size, config.data.sequence_length)
    return TrainStep(
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            _on_mesh(step, mesh), in_shardings=(shardings, rows), out_shardings=(shardings, everywhere), donate_argnums=0
        ),
        abstract_state=with_shardings(abstract_state, shardings),
        batch_sharding=rows,
        abstract_batch={name: jax.ShapeDtypeStruct(row_shape, jnp.int32, sharding=rows) for name in BATCH_FIELDS},
    )


def build_eval(config: RunConfig, mesh: Mesh, sources: tuple[str, ...]) -> jax.stages.Wrapped:
    """The same loss without gradients, for held-out rows.

    A function (params, batch) → {"source_loss_sum", "source_target_tokens"}, each [num_sources] fp32.

    Sums, not means: add them over batches and divide once. The rows of a batch must divide over the mesh.
    """
    # Held-out rows are packed first-fit whatever the plan's packing is, so their segments always count.
    loss_of = _build_loss(config, mesh, needs_segments=True)

    def evaluate(params: Params, batch: Batch) -> Metrics:
        is_target = (batch["targets"] >= 0).astype(jnp.float32)
        _, losses = loss_of(params, batch | {"weights": is_target})
        return {
            "source_loss_sum": sums_by_source(losses, batch["source_ids"], len(sources)),
            "source_target_tokens": sums_by_source(is_target, batch["source_ids"], len(sources)),
        }

    shardings = param_shardings(abstract_params(config.model), mesh), batch_sharding(mesh)
    return jax.jit(_on_mesh(evaluate, mesh), in_shardings=shardings, out_shardings=NamedSharding(mesh, PartitionSpec()))


def split_rows(x: Array, parts: int) -> Array:
    """[rows, …] → [parts, rows / parts, …], part p holding rows p, p + parts, …

    Consecutive rows go to different parts, so that with rows sharded over devices each device splits its own and none moves.
    Example: 8 rows, 2 parts, 4 devices. Device 0 holds rows 0 and 1, device 1 rows 2 and 3, …; part 0 is rows 0 2 4 6, one of
    each device. Halves (rows 0 to 3, then 4 to 7) would leave two devices idle in each part, or move their rows.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def _build_loss(config: RunConfig, mesh: Mesh, needs_segments: bool) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """The function (params, rows with their weights) → (loss, cross-entropy of every token), of training and held-out rows."""
    compute = config.compute
    attention = resolve_attention(compute.attention, config.model, mesh.devices.flat[0].platform, needs_segments)
    graphdef = split_decoder(config.model)

    def loss(params: Params, rows: Batch) -> tuple[Array, Array]:
        decoder: Decoder = nnx.merge(graphdef, params)
        hidden = decoder(
            rows["tokens"],
            rows["positions"],
            rows["segment_ids"],
            dtype=jnp.dtype(compute.dtype),
            attention=attention,
            remat=compute.remat,
            unroll=min(compute.unroll, config.model.num_layers),
        )
        return weighted_loss(
            hidden,
            decoder.output_weights(),
            rows["targets"],
            rows["weights"],
            rows.get("square_weights"),
            chunks=compute.loss_chunks,
        )

    return loss


def _sum_over(function: Callable[[Batch], Any], micro_batches: Batch) -> Any:
    """Σ function(micro-batch) over the leading axis, one at a time; of one micro-batch, no sum is kept beside it."""
    first = jax.tree.map(lambda x: x[0], micro_batches)
    if len(micro_batches["tokens"]) == 1:
        return function(first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))
    return jax.lax.scan(lambda total, rows: (jax.tree.map(jnp.add, total, function(rows)), None), zeros, micro_batches)[0]


def _on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function` traced with `mesh` in scope, which the model's layout hints look up; the caller needs no context."""

    def traced(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced
