"""The run configuration: frozen dataclasses whose impossible values are refused before anything is loaded.

A config file is Python with a function `config() -> RunConfig` (recipes: `configs/`; reading and writing: `config_files.py`).
Every field can be overridden on the command line by its dotted name (`--optimizer.learning-rate 5e-5`). The resolved config is
saved beside every output it made. What must hold: a config that can be made can be run, as far as its own values tell, and the
message of one that cannot says which field to change. Next to read: named architectures in `models/presets.py`, mixtures of
sources in `mixtures.py`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from huatuo_jax.errors import ConfigError

DType = Literal["float32", "bfloat16"]
T = TypeVar("T")
Family = Literal["baichuan", "llama", "qwen2", "qwen3"]


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition`."""
    if not condition:
        raise ConfigError(message)


def _require_at_least(minimum: float, config: object, group: str, *names: str) -> None:
    """Raises ConfigError if one of these fields, whose dotted names begin with `group`, is smaller."""
    for name in names:
        value = getattr(config, name)
        require(value >= minimum, f"{group}{name} is {value}; it must be at least {minimum}")


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3's frequency-dependent RoPE scaling (the fields of `rope_scaling` with type "llama3")."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_length: int


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a decoder; Baichuan, Llama, Yi and Qwen are values of it (`models/presets.py`).

    Attributes:
      family: whose Hugging Face layout the model has (names of tensors, config.json).
      positions: "rope" (half-split layout) or "alibi" (exact fp32 bias).
      head: "linear", or "norm" = logits with L2-normalised rows of the output matrix (Baichuan2's NormHead).
      z_loss_weight: weight of mean((max logit)²) in the loss; 0 in practice.
      max_length: longest sequence that the base model was trained for; a longer plan is refused.
    """

    name: str
    family: Family
    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    positions: Literal["rope", "alibi"] = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    head: Literal["linear", "norm"] = "linear"
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-6
    max_length: int = 4096
    z_loss_weight: float = 0.0
    initializer_range: float = 0.02

    # Sizes have no defaults, so that a forgotten one cannot silently be another model's.

    def __post_init__(self) -> None:
        _require_at_least(1, self, "model.", "vocab_size", "num_layers", "hidden_size", "num_heads", "num_kv_heads")
        _require_at_least(1, self, "model.", "head_dim", "ffn_size", "max_length")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads ({self.num_heads}) is not a multiple of model.num_kv_heads ({self.num_kv_heads})",
        )
        require(
            self.positions == "alibi" or self.head_dim % 2 == 0,
            f"model.head_dim is {self.head_dim}; RoPE rotates pairs, so it must be even",
        )
        require(
            not (self.head == "norm" and self.tied_embeddings),
            "model.head 'norm' with tied_embeddings: no released model has both; set one of them",
        )


@dataclass(frozen=True)
class SourceMix:
    """How one source enters the run: its sampling priority π > 0 and how many times its records are drawn."""

    priority: float = 1.0
    epochs: float = 1.0

    def __post_init__(self) -> None:
        for name in ("priority", "epochs"):
            value = getattr(self, name)
            # A mixture may come from a JSON file, where true is a number to Python and Infinity one to its parser.
            require(not isinstance(value, bool) and math.isfinite(value), f"{name} is {value}; it must be a finite number")
        require(self.priority > 0, f"priority is {self.priority}; it must be above 0 (leave a source out to not draw it)")
        require(self.epochs > 0, f"epochs is {self.epochs}; it must be above 0 (leave a source out to not draw it)")


@dataclass(frozen=True)
class DataConfig:
    """What is trained on and in which order.

    Attributes:
      tokens: token dataset folder (`huatuo-data build`).
      plan: plan folder (`huatuo-data plan`); its manifest must agree with the fields below.
      mixture: source name → priority and epochs. Equal priorities = plain shuffling.
      sequence_length: tokens a row; longer records are cut (and counted) by the plan.
      packing: "first_fit" (segments do not see each other) or "faithful" (the original's: no mask between examples).
      seed: of the order.
      threads: reader threads; prefetch: batches read ahead.
    """

    tokens: str = ""
    plan: str = ""
    mixture: Mapping[str, SourceMix] = field(default_factory=dict)
    sequence_length: int = 4096
    packing: Literal["first_fit", "faithful"] = "first_fit"
    seed: int = 42
    threads: int = 8
    prefetch: int = 4

    def __post_init__(self) -> None:
        # Targets are the next token, so a row of one token would teach nothing.
        _require_at_least(2, self, "data.", "sequence_length")
        _require_at_least(1, self, "data.", "threads", "prefetch")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
      schedule: "huatuo" (the original's) = linear warm-up, then half a cosine that reaches 0 beyond the end of the run, at
        step N = S·(E + 0.35)/E of S; "cosine" = warm-up, then cosine to `floor` at the last step; "constant" after warm-up.
      schedule_epochs: E of the "huatuo" schedule.
      warmup: fraction of N (or of the run) over which the rate rises from 0; the first update has rate 0.
      floor: final rate of "cosine" as a fraction of `learning_rate`.
      weight_decay: applied to every parameter, as the original does.
      state_dtype: in which Adam's first moment is stored; second_moment_dtype: its second.
    """

    # The recipe of the original (arXiv 2311.09774), but for `floor`, which only "cosine" reads.
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    schedule: Literal["huatuo", "cosine", "constant"] = "huatuo"
    schedule_epochs: float = 1.0
    warmup: float = 0.01
    floor: float = 0.1
    state_dtype: DType = "float32"
    second_moment_dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "clip_norm", "schedule_epochs"):
            require(getattr(self, name) > 0, f"optimizer.{name} is {getattr(self, name)}; it must be above 0")
        require(0 <= self.warmup < 1, f"optimizer.warmup is {self.warmup}; it is a fraction in [0, 1)")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name} is {getattr(self, name)}; it must be in [0, 1)")
        _require_at_least(0, self, "optimizer.", "weight_decay")
        require(0 <= self.floor <= 1, f"optimizer.floor is {self.floor}; it is a fraction in [0, 1]")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 (at most once) = all devices that are left.

    `data` replicates the parameters (use it across slices), `fsdp` shards parameters and rows, `tensor` shards heads and FFN.
    """

    # By default parameters are sharded over all devices: a model that fits no single device is the case to expect.
    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        require(all(s >= 1 or s == -1 for s in sizes), f"mesh sizes are {sizes}; each is at least 1, or -1 for all that is left")
        require(sizes.count(-1) <= 1, f"mesh sizes are {sizes}; only one may be -1")


@dataclass(frozen=True)
class ComputeConfig:
    """How the step is computed, not what: changes nothing but rounding.

    Attributes:
      dtype: of activations and matrix products; parameters, norms, softmax and loss stay fp32.
      attention: a backend of the registry, or "auto" = the first capable one for this platform (printed at start).
      remat: what the backward pass recomputes: "none", "dots" (keeps matrix products) or "full" (keeps layer inputs only).
      loss_chunks: the loss is computed in this many pieces of the sequence, so [batch, sequence, vocabulary] never exists.
        1 = all at once, faster where vocabulary and batch are small.
      unroll: layers that one iteration of the scan over layers runs. On a CPU, a small model is a fifth faster without the loop
        (unroll = number of layers), which copies every layer's parameters and activations in and out; compiling takes longer.
    """

    dtype: DType = "bfloat16"
    attention: str = "auto"
    remat: Literal["none", "dots", "full"] = "full"
    loss_chunks: int = 8
    unroll: int = 1

    def __post_init__(self) -> None:
        _require_at_least(1, self, "compute.", "loss_chunks", "unroll")


@dataclass(frozen=True)
class CheckpointConfig:
    """One checkpoint `every` steps; the newest `keep` stay, and those whose step is a multiple of `keep_every` (0 = none)."""

    every: int = 500
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, self, "checkpoint.", "every", "keep")
        _require_at_least(0, self, "checkpoint.", "keep_every")


@dataclass(frozen=True)
class LoggingConfig:
    """Metrics every `every` steps; held-out loss per source every `eval_every` steps (0 = only at the end) on at most
    `eval_rows` rows a source; TensorBoard event files beside `metrics.jsonl`."""

    every: int = 10
    eval_every: int = 0
    eval_rows: int = 32
    tensorboard: bool = True

    def __post_init__(self) -> None:
        _require_at_least(1, self, "logging.", "every", "eval_rows")
        _require_at_least(0, self, "logging.", "eval_every")


@dataclass(frozen=True)
class Question:
    """Asked at the end of a run; `expected` is the answer that the training data holds, "" if there is none."""

    prompt: str
    expected: str = ""
    source: str = ""


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
      batch_size: rows a step, over all devices and micro-batches.
      accumulation: micro-batches a step; batch_size is divided by it.
      loss: "global" = Σ losses / Σ target tokens of the step; "mean_of_means" = the original's mean over groups of
        `rows_per_mean` consecutive rows of the mean over their target tokens.
      steps: stop after so many steps; 0 = all whole batches of the plan.
      max_skipped: so many non-finite updates in a row stop the run with a checkpoint.
      init: start from these weights: a run directory, checkpoint or base (`huatuo convert from-hf`) of ours, or a Hugging Face
        folder as it is ("" = random initialisation).
      seed: of the random initialisation.
    """

    name: str
    model: ModelConfig
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    # 128 rows are the original's 8 GPUs × 4 rows × accumulation 4.
    batch_size: int = 128
    accumulation: int = 1
    loss: Literal["global", "mean_of_means"] = "global"
    rows_per_mean: int = 4
    steps: int = 0
    max_skipped: int = 10
    init: str = ""
    seed: int = 0
    questions: tuple[Question, ...] = ()

    def __post_init__(self) -> None:
        _require_at_least(1, self, "", "batch_size", "accumulation", "rows_per_mean", "max_skipped")
        _require_at_least(0, self, "", "steps")
        require(
            self.batch_size % self.accumulation == 0,
            f"batch_size ({self.batch_size}) is not a multiple of accumulation ({self.accumulation})",
        )
        # A group of the mean must not be cut by the end of the batch.
        require(
            self.loss == "global" or self.batch_size % self.rows_per_mean == 0,
            f"batch_size ({self.batch_size}) is not a multiple of rows_per_mean ({self.rows_per_mean})",
        )
        # Chunks of unequal length would each need a program of their own.
        require(
            self.data.sequence_length % self.compute.loss_chunks == 0,
            f"data.sequence_length ({self.data.sequence_length}) is not a multiple of compute.loss_chunks "
            f"({self.compute.loss_chunks}); change one of them",
        )
        require(
            self.data.sequence_length <= self.model.max_length,
            f"data.sequence_length ({self.data.sequence_length}) is above model.max_length ({self.model.max_length}) "
            f"of {self.model.name}; plan shorter rows, or raise model.max_length knowingly",
        )


# ---------------------------------------------------------------- configs as plain values, in run directories and checkpoints


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def config_from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `config_to_dict`; unknown fields are refused by name."""
    # Refused, not ignored: a field of another version may change what the config means.
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    require(not unknown, f"unknown fields of {kind.__name__}: {', '.join(unknown)}")
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    # JSON has one kind of object and one of list; the type hint says which dataclass, mapping or tuple a value was.
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _typed(args[0], value)
    if dataclasses.is_dataclass(hint):
        return config_from_dict(typing.cast(type, hint), value)
    if origin is tuple:
        return tuple(_typed(args[0], v) for v in value)
    if origin is Mapping:
        return {k: _typed(args[1], v) for k, v in value.items()}
    return value
