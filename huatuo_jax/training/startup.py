"""How a run starts: what it trains on, which of five cases it is, and the state that training starts from.

1. fresh     no checkpoint and no `config.init`: random weights.
2. resume    the directory holds a checkpoint of this very run: go on after its step.
3. weights   no checkpoint yet, `config.init` names other weights (a run, a base, a Hugging Face folder): a new optimizer.
4. finished  the newest checkpoint is of the last step: it is verified, and nothing else is done.
5. refused   the directory holds another run: raises, listing what differs.

`trainer.py` calls, in this order: `open_run_data` and `choose_case`, which read facts only and raise before anything is compiled
or written; and, once the step is compiled, `load_state`. How checkpoints are written and verified: `saving.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from rich.console import Console

from huatuo_jax.config import RunConfig, config_to_dict, require
from huatuo_jax.config_files import MAY_DIFFER_ON_RESUME, differences, flatten
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError, DataError, HuatuoError
from huatuo_jax.io.files import sha256_json
from huatuo_jax.models.attention import resolve_attention
from huatuo_jax.training.saving import Checkpoints
from huatuo_jax.training.step import TrainState, TrainStep
from huatuo_jax.weights.open import StoredModel, check_vocabulary, open_stored_model

SAME_FUNCTION = ("name", "max_length", "initializer_range", "z_loss_weight")
"""Fields of a model that may differ from those of the weights it starts from: they do not change what the weights compute."""

# ---------------------------------------------------------------- what is trained on


@dataclass(frozen=True)
class RunData:
    """What a run trains on. `facts` identify it and go into every checkpoint: plan_hash, tokenizer, template, total_steps."""

    dataset: TokenDataset
    plan: Plan
    total_steps: int
    facts: dict[str, Any]


def open_run_data(config: RunConfig, console: Console) -> RunData:
    """Opens token dataset and plan and checks that they, the model and the config belong together.

    Raises:
      DataError: data or plan are missing or torn, or the plan is of other data.
      ConfigError: the plan was made with other settings or has too few rows; the tokenizer is larger than the model's vocabulary.
    """
    # The plan names the data it was made of and its own settings, so both are checked against what is here before they are used.
    dataset = TokenDataset.open(config.data.tokens)
    plan = Plan.load(config.data.plan)
    plan.check_matches(dataset, config.data)
    total_steps = count_steps(config, len(plan), console)
    tokenizer = dict(dataset.manifest["tokenizer"])
    remedy = f" (model.vocab_size is {config.model.vocab_size}); encode the data with the model's tokenizer, or raise it"
    check_vocabulary(tokenizer["path"], tokenizer["vocab_size"], config.model, remedy, warn=False)
    held, best = [source for source in dataset.sources if dataset.count(source, "holdout")], config.checkpoint.keep_best
    require(
        not best or (bool(held) and (best == "eval_loss" or best.removeprefix("eval_loss/") in held)),
        f"checkpoint.keep_best is {best}, but the token dataset {config.data.tokens} holds out records of "
        f"{', '.join(held) or 'no source'}; build it with --holdout, or choose one of these",
    )
    facts = {"plan_hash": plan.hash, "tokenizer": tokenizer, "template": dataset.manifest["template"], "total_steps": total_steps}
    return RunData(dataset, plan, total_steps, facts)


def count_steps(config: RunConfig, rows: int, console: Console) -> int:
    """Steps of the run: all whole batches of the plan, or `config.steps` of them. Prints how many rows are left over."""
    whole = rows // config.batch_size
    require(whole >= 1, f"batch_size is {config.batch_size} and the plan {config.data.plan} has {rows} rows; lower batch_size")
    require(
        config.steps <= whole,
        f"steps is {config.steps}; the plan {config.data.plan} has {rows} rows = {whole} steps of {config.batch_size}; "
        "lower steps, or plan more epochs",
    )
    if not config.steps and rows % config.batch_size:
        console.print(f"{rows % config.batch_size} of {rows} rows do not fill a batch of {config.batch_size} and are not used")
    return config.steps or whole


def run_summary(config: RunConfig, mesh: Mesh, total_steps: int) -> str:
    """One paragraph: what is trained, on what, how."""
    device = mesh.devices.flat[0]
    attention = resolve_attention(config.compute.attention, config.model, device.platform, config.data.packing == "first_fit")
    length = config.data.sequence_length
    shape = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return (
        f"{config.name}: {config.model.name} on {mesh.size} {device.device_kind} ({shape}), attention {attention}, "
        f"{config.compute.dtype}; {total_steps} steps of {config.batch_size} × {length} = {config.batch_size * length:,} tokens"
    )


MAY_DIFFER_BETWEEN_HOSTS = ("data.tokens", "data.plan", "data.threads", "data.prefetch")
"""Paths of copies whose content the plan's hash fixes, and how fast a host reads them."""


def what_must_agree(config: RunConfig, facts: Mapping[str, Any], start: "Start") -> dict[str, Any]:
    """Dotted name → value of all that decides what a host computes, and when it saves, evaluates and logs."""
    fields = {name: value for name, value in flatten(config_to_dict(config)).items() if name not in MAY_DIFFER_BETWEEN_HOSTS}
    libraries = {f"version of {name}": metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")}
    return {
        **fields,
        **libraries,
        "plan_hash": facts["plan_hash"],
        "tokenizer": facts["tokenizer"]["fingerprint"],
        "total_steps": facts["total_steps"],
        "code of huatuo_jax": _code_hash(),
        "start": f"{start.case}, step {start.step}",
    }


def _code_hash() -> str:
    """Of all source files of this package."""
    folder = Path(__file__).parents[1]
    files = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    return sha256_json(files)[:12]


# ---------------------------------------------------------------- which case it is


@dataclass(frozen=True)
class Start:
    """The case; for "resume" and "finished" the newest step, for "weights" the model whose weights are taken."""

    case: Literal["fresh", "resume", "weights", "finished"]
    step: int = 0
    weights: "StoredModel | None" = None


def choose_case(checkpoints: Checkpoints, config: RunConfig, facts: Mapping[str, Any]) -> Start:
    """Chooses the case before anything large is loaded.

    Args:
      checkpoints: of the run directory.
      config: of this command line.
      facts: of `RunData`.

    Raises:
      ConfigError: case 5, or the weights of `config.init` are of another model or tokenizer.
      HuatuoError: all checkpoints of the run are set aside as corrupt.
    """
    newest = _newest_readable(checkpoints)
    # Cases 1 and 3; a directory whose checkpoints were all set aside is neither.
    if newest is None:
        _refuse_if_all_corrupt(checkpoints)
        return Start("weights", weights=open_init(config, facts)) if config.init else Start("fresh")
    # Case 5, or 2 and 4. Fields that only change how the run is computed (mesh, logging, …) may differ.
    step, meta = newest
    changed = differences(_identity(meta["config"], meta), _identity(config_to_dict(config), facts), MAY_DIFFER_ON_RESUME)
    if changed:
        lines = "\n".join(f"  {one}" for one in changed)
        run = checkpoints.directory.parent
        raise ConfigError(f"{run} holds another run; choose another --run, or undo these changes (before → now):\n{lines}")
    return Start("finished" if step >= facts["total_steps"] else "resume", step)


def _identity(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run this run: its config, and the content of its data."""
    content = {name: facts[name] for name in ("plan_hash", "total_steps")}
    return {**config, **content, "tokenizer.fingerprint": facts["tokenizer"]["fingerprint"]}


def _newest_readable(checkpoints: Checkpoints) -> tuple[int, dict[str, Any]] | None:
    """Step and facts of the newest checkpoint whose facts can be read; None if the run has no checkpoint.

    All checkpoints of a run have the same config, so any will do to compare it. A torn newest one is set aside when it is
    restored.
    """
    steps = checkpoints.steps()
    for step in reversed(steps):
        try:
            return step, checkpoints.meta(step)
        except DataError as error:
            if step == steps[0]:
                message = f"no checkpoint in {checkpoints.directory} has readable facts ({error}); choose another --run"
                raise HuatuoError(message) from error
    return None


def _refuse_if_all_corrupt(checkpoints: Checkpoints) -> None:
    """A run that lost all its checkpoints must not silently begin again at step 0."""
    corrupt = sorted(path.name for path in checkpoints.directory.glob("corrupt-*")) if checkpoints.directory.exists() else []
    if corrupt:
        raise HuatuoError(
            f"no checkpoint in {checkpoints.directory} is usable ({', '.join(corrupt)} did not verify); to begin anew choose "
            f"another --run or remove {checkpoints.directory.parent}"
        )


def open_init(config: RunConfig, facts: Mapping[str, Any]) -> "StoredModel":
    """Opens `config.init` (a run, a checkpoint, a base or a Hugging Face folder) without reading its weights.

    Raises:
      ConfigError: its weights are of another model or tokenizer. DataError: there are none.
    """
    stored = open_stored_model(config.init, like=config.model)
    changed = differences(config_to_dict(stored.config), config_to_dict(config.model), SAME_FUNCTION)
    lines = [f"model.{one}" for one in changed]
    fingerprint, theirs = facts["tokenizer"]["fingerprint"], stored.tokenizer_fingerprints()
    if fingerprint not in theirs:
        lines.append(f"tokenizer: {' or '.join(f'{one[:12]}…' for one in theirs)} → {fingerprint[:12]}… of the token dataset")
    if lines:
        shown = "\n  ".join(lines)
        raise ConfigError(f"the weights of init={config.init} do not fit this run (theirs → the run's):\n  {shown}")
    return stored


# ---------------------------------------------------------------- the state


def load_state(
    start: Start,
    checkpoints: Checkpoints,
    train_step: TrainStep,
    config: RunConfig,
    mesh: Mesh,
    report: Callable[[str], None],
) -> tuple[TrainState, dict[str, Any]]:
    """The state to train from and the facts of its checkpoint ({} unless resumed)."""
    if start.case in ("resume", "finished"):
        # The abstract state has this run's shardings, so a checkpoint of another mesh is read right into the new one.
        abstract = train_step.abstract_state
        restored = checkpoints.restore_newest(abstract.params, without_params(abstract), report)
        if restored is None:
            _refuse_if_all_corrupt(checkpoints)
            lost = f"{checkpoints.directory} lost its checkpoints while this process started; is another process using it?"
            raise DataError(lost)
        return TrainState(params=restored.params, **restored.opt_state), restored.meta
    # The optimizer's state depends on the shapes of the parameters only, so it is made from random ones also in case 3.
    state = train_step.init(config.seed)
    if start.weights is not None:
        # The random weights go first: two copies of the parameters may not fit beside the optimizer's state.
        jax.tree.map(lambda x: x.delete(), state.params)
        state = dataclasses.replace(state, params=start.weights.params(mesh))
    return state, {}


def without_params(state: TrainState) -> dict[str, Any]:
    """What the checkpoint's item `opt_state` holds: optimizer state and counters."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "params"}
