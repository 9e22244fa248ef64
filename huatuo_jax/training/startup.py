"""How a run starts: its directory, config and data in; the numbered case and the training state out.

1. fresh     no checkpoint and no `config.init`: random weights.
2. resume    the directory holds a checkpoint of this very run: go on after its step.
3. weights   no checkpoint yet, `config.init` names other weights (a run, a base, a Hugging Face folder): a new optimizer.
4. finished  the newest checkpoint is of the last step: nothing to do.
5. refused   the directory holds another run: raises, listing what differs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
from etils import epath
from jax.sharding import Mesh

from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import MAY_DIFFER_ON_RESUME, Difference, config_to_dict, differences
from huatuo_jax.errors import ConfigError, DataError, HuatuoError
from huatuo_jax.io.files import PathLike
from huatuo_jax.training.saving import Checkpoints
from huatuo_jax.training.step import TrainState, TrainStep
from huatuo_jax.weights.open import StoredModel, open_stored_model

SAME_FUNCTION = ("name", "max_length", "initializer_range", "z_loss_weight")
"""Fields of a model that may differ from those of the weights it starts from: they do not change what the weights compute."""


@dataclass(frozen=True)
class Start:
    """The case; for "resume" and "finished" the newest step and its facts."""

    case: Literal["fresh", "resume", "weights", "finished"]
    step: int = 0
    meta: Mapping[str, Any] | None = None


def decide(run: PathLike, checkpoints: Checkpoints, config: RunConfig, facts: Mapping[str, Any]) -> Start:
    """Chooses the case before anything large is loaded.

    Args:
      run: the run directory.
      config: of this command line.
      facts: what the content of the data says: `plan_hash`, `tokenizer` (with its `fingerprint`), `total_steps`.

    Raises:
      ConfigError: case 5.
      HuatuoError: all checkpoints of the run are set aside as corrupt.
    """
    newest = _newest_readable(checkpoints)
    if newest is None:
        _refuse_if_all_corrupt(run)
        return Start("weights" if config.init else "fresh")
    step, meta = newest
    _refuse_another_run(run, meta, config, facts)
    return Start("finished" if step >= facts["total_steps"] else "resume", step, meta)


def load_state(
    start: Start,
    run: PathLike,
    checkpoints: Checkpoints,
    train_step: TrainStep,
    config: RunConfig,
    mesh: Mesh,
    facts: Mapping[str, Any],
    report: Callable[[str], None],
) -> tuple[TrainState, dict[str, Any]]:
    """The state to train from and the facts of its checkpoint ({} unless resumed)."""
    if start.case == "resume":
        abstract = train_step.abstract_state
        restored = checkpoints.restore_newest(abstract.params, without_params(abstract), report)
        if restored is None:
            _refuse_if_all_corrupt(run)
            raise DataError(f"{run} lost its checkpoints while this process started; is another process using it?")
        return TrainState(params=restored.params, **restored.opt_state), restored.meta
    state = train_step.init(config.seed)
    if start.case == "weights":
        jax.tree.map(lambda x: x.delete(), state.params)
        state = dataclasses.replace(state, params=load_weights(config, mesh, facts))
    return state, {}


def load_weights(config: RunConfig, mesh: Mesh, facts: Mapping[str, Any]) -> Any:
    """Case 3: the parameters of the run, checkpoint, base or Hugging Face folder `config.init`, in fp32."""
    return open_init(config, facts).params(mesh)


def open_init(config: RunConfig, facts: Mapping[str, Any]) -> StoredModel:
    """Opens `config.init`; raises ConfigError if its weights are of another model or tokenizer, DataError if there are none."""
    stored = open_stored_model(config.init, like=config.model)
    theirs, their_tokenizers = config_to_dict(stored.config), stored.tokenizer_fingerprints()
    ours = config_to_dict(config.model)
    lines = [
        f"model.{name}: {theirs.get(name)!r} there, {ours[name]!r} here"
        for name in ours
        if ours[name] != theirs.get(name) and name not in SAME_FUNCTION
    ]
    if facts["tokenizer"]["fingerprint"] not in their_tokenizers:
        there = " or ".join(f"{fingerprint[:12]}…" for fingerprint in their_tokenizers)
        lines.append(f"tokenizer: {there} there, {facts['tokenizer']['fingerprint'][:12]}… in the token dataset")
    if lines:
        raise ConfigError(f"the weights of init={config.init} do not fit this run:\n  " + "\n  ".join(lines))
    return stored


def without_params(state: TrainState) -> dict[str, Any]:
    """What the checkpoint's item `opt_state` holds: optimizer state and counters."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "params"}


def _newest_readable(checkpoints: Checkpoints) -> tuple[int, dict[str, Any]] | None:
    """A torn newest checkpoint is dealt with when it is restored; to compare configs any of the run will do."""
    steps = checkpoints.steps()
    for step in reversed(steps):
        try:
            return step, checkpoints.meta(step)
        except DataError as error:
            if step == steps[0]:
                message = f"no checkpoint in {checkpoints.directory} has readable facts ({error}); choose another --run"
                raise HuatuoError(message) from error
    return None


def _refuse_another_run(run: PathLike, meta: Mapping[str, Any], config: RunConfig, facts: Mapping[str, Any]) -> None:
    changed = differences(meta["config"], config_to_dict(config), MAY_DIFFER_ON_RESUME)
    for name in ("plan_hash", "total_steps"):
        if meta[name] != facts[name]:
            changed.append(Difference(name, meta[name], facts[name]))
    if meta["tokenizer"]["fingerprint"] != facts["tokenizer"]["fingerprint"]:
        changed.append(Difference("tokenizer.fingerprint", meta["tokenizer"]["fingerprint"], facts["tokenizer"]["fingerprint"]))
    if changed:
        lines = "\n".join(f"  {one}" for one in changed)
        raise ConfigError(f"{run} holds another run; choose another --run, or undo these changes (before → now):\n{lines}")


def _refuse_if_all_corrupt(run: PathLike) -> None:
    directory = epath.Path(run) / "checkpoints"
    corrupt = sorted(p.name for p in directory.glob("corrupt-*")) if directory.exists() else []
    if corrupt:
        raise HuatuoError(
            f"no checkpoint in {directory} is usable ({', '.join(corrupt)} did not verify); to begin anew choose another --run "
            f"or remove {run}"
        )
