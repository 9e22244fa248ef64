"""Where every array lives: the mesh, and the rules that map the logical axes of parameters and activations to mesh axes.

What must hold: this is the only file that knows the mesh axes, and what does not divide is refused by name before anything is
compiled. `data` replicates parameters (use it across slices), `fsdp` shards parameters and rows,
`tensor` shards heads, FFN and vocabulary. The model names logical axes only ("embed", "heads", …): parameters when they are made
(`models/decoder.py`), activations by `constrain`. Next to read: `training/step.py`.

Example: on a mesh of fsdp 4 × tensor 2 a query projection [embed 4096, heads 32, head_dim 128] lies as 8 parts of
[1024, 16, 128], and a batch of 16 rows as 4 parts of 4 rows, each held by the two devices of a tensor group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from huatuo_jax.config import MeshConfig
from huatuo_jax.errors import ConfigError, DoesNotFitError

MESH_AXES = ("data", "fsdp", "tensor")

MeshAxes = str | tuple[str, ...] | None
Tree = TypeVar("Tree")


@dataclass(frozen=True)
class ShardingRules:
    """Logical axis → mesh axis (or axes); None = whole on every device. One instance per layout."""

    # "embed" over fsdp and the others over tensor: the two dimensions of every matrix are then split over different axes, and the
    # product that a tensor group computes needs one sum at its end.
    batch: MeshAxes = ("data", "fsdp")
    vocab: MeshAxes = "tensor"
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    ffn: MeshAxes = "tensor"
    layers: MeshAxes = None  # the scan slices this axis, and a slice of a sharded axis would be sent around at every layer
    norm: MeshAxes = None

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The partition of an array with these logical axes. Raises ConfigError if two of them claim one mesh axis."""
        spec = [None if axis is None else getattr(self, axis) for axis in axes]
        claimed = [name for entry in spec for name in _names(entry)]
        if len(claimed) != len(set(claimed)):
            raise ConfigError(
                f"sharding rules put one mesh axis on two dimensions of {tuple(axes)}: {spec}; change one of the rules"
            )
        return PartitionSpec(*spec)


RULES = ShardingRules()


class ParamSpec(jax.ShapeDtypeStruct):
    """A parameter's shape and dtype, as `jax.ShapeDtypeStruct`, and its logical axes."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, axes: tuple[str, ...]) -> None:
        super().__init__(shape, dtype)
        self.axes = axes


def _names(entry: MeshAxes) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _parts(mesh: Mesh | AbstractMesh, entry: MeshAxes) -> int:
    """Into how many parts a dimension is split."""
    return math.prod(mesh.shape[name] for name in _names(entry))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of the given sizes; -1 takes all devices that are left.

    A single process may leave devices idle by asking for a smaller mesh; several processes may not, for each must hold a part.

    Raises:
      DoesNotFitError: the mesh is larger than the devices, or does not divide them.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    written = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if fixed > len(devices):
        raise DoesNotFitError(f"mesh ({written}) needs {fixed} devices and there are {len(devices)}; lower a mesh size")
    # The axis with -1, if there is one, takes what the fixed sizes leave.
    open_axis = next((name for name, size in sizes.items() if size == -1), None)
    must_cover = open_axis is not None or jax.process_count() > 1
    if must_cover and (len(devices) % fixed or (open_axis is None and fixed != len(devices))):
        raise DoesNotFitError(
            f"mesh ({written}) does not cover {len(devices)} devices: its fixed sizes make {fixed}; "
            f"choose sizes whose product divides {len(devices)}, and -1 for the rest"
        )
    if open_axis is not None:
        sizes[open_axis] = len(devices) // fixed
    count = math.prod(sizes.values())
    # Auto: `jax.make_mesh` gives Explicit axes by default, with which flax's modules fail.
    shape, axis_types = tuple(sizes.values()), (AxisType.Auto,) * 3
    if len({getattr(device, "slice_index", 0) for device in devices[:count]}) > 1:
        return Mesh(_across_slices(devices[:count], shape), MESH_AXES, axis_types=axis_types)
    return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types, devices=devices[:count])


def _across_slices(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """Devices of several slices as an array of this shape; `jax.make_mesh` refuses them.

    A slice is what a fast network connects: a TPU slice; on GPUs and CPUs every host (by its boot id) is a slice of its own. With
    two hosts of four devices and shape (1, 8, 1), host 0 holds fsdp 0 to 3 and host 1 fsdp 4 to 7: rows, and with them batches,
    lie on hosts in the order of their numbers, and `tensor`, the innermost axis, stays within a host where it fits.
    """
    num_slices = len({device.slice_index for device in devices})
    if devices[0].platform != "tpu":
        # In an order that every process finds by itself, for each must build the same mesh.
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return np.array(ordered, dtype=object).reshape(shape)
    data, fsdp, tensor = shape
    if data % num_slices:
        raise DoesNotFitError(
            f"mesh.data is {data} and there are {num_slices} TPU slices; set mesh.data to a multiple of {num_slices}, for only "
            "`data` may cross the slow network between slices"
        )
    return mesh_utils.create_hybrid_device_mesh((data // num_slices, fsdp, tensor), (num_slices, 1, 1), devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over (data, fsdp), the rest whole: for arrays [batch, …]."""
    return NamedSharding(mesh, PartitionSpec(RULES.batch))


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError if the rows of a micro-batch do not divide over the mesh."""
    parts = _parts(mesh, RULES.batch)
    if batch_size % parts:
        raise ConfigError(
            f"{batch_size} rows do not divide over {parts} devices (mesh axes {', '.join(_names(RULES.batch))}); "
            f"choose a multiple of {parts} rows per micro-batch, or a smaller mesh"
        )


def param_shardings(abstract: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A tree of `NamedSharding` for the tree of `ParamSpec` that `abstract_params` returned.

    Raises:
      ConfigError: a dimension does not divide by the mesh axes that shard it; names parameter, dimension, axes and sizes.
    """

    def sharding(path: tuple[Any, ...], param: ParamSpec) -> NamedSharding:
        # Checked here and not left to jit, so that the message names the parameter and the axis.
        spec = RULES.spec(param.axes)
        for axis, size, entry in zip(param.axes, param.shape, spec, strict=True):
            parts = _parts(mesh, entry)
            if size % parts:
                name = "/".join(str(key.key) for key in path)
                raise ConfigError(
                    f"parameter {name}: dimension {axis} of size {size} does not divide by mesh axis "
                    f"{' × '.join(_names(entry))} of size {parts}; choose a size that divides {size}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract)


def shardings_of(abstract: dict[str, Any], placement: Mesh | Sharding | None) -> dict[str, Any]:
    """A tree of shardings for `abstract_params(…)`: by the rules of this module on a mesh, one sharding for all arrays, or the
    first device (None)."""
    if isinstance(placement, Mesh):
        return param_shardings(abstract, placement)
    single = placement or SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: single, abstract)


def with_shardings(abstract: Tree, shardings: Tree) -> Tree:
    """Shapes, dtypes and shardings in one tree of `jax.ShapeDtypeStruct`: what a restore or an AOT compile asks for."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def activation_spec(mesh: Mesh | AbstractMesh, *axes: str | None) -> PartitionSpec:
    """The partition of an activation with these logical axes over the mesh axes that `mesh` has."""
    spec = RULES.spec(axes)
    return PartitionSpec(*(tuple(name for name in _names(entry) if name in mesh.axis_names) or None for entry in spec))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` laid out by its logical axes on the mesh of the surrounding `jax.set_mesh`; does nothing without one.

    A dimension that does not divide stays open to the compiler: a hint about rows must not forbid a batch of one at inference.
    """
    # Traced outside of any mesh (tests, one device) or on one device there is nothing to lay out.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = [
        entry if size % _parts(mesh, entry) == 0 else PartitionSpec.UNCONSTRAINED
        for size, entry in zip(x.shape, activation_spec(mesh, *axes), strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
