"""The two rivals of one-stage training, derived from a one-stage config so that everything else stays the same.

Random mixing draws every record with equal priority. Classic adaptation has two stages: next-token training on the raw
passages (records with `text`), then an SFT run that starts from its weights.
"""

import dataclasses

from configs.mixtures import equal_priorities
from huatuo_jax.config import RunConfig, SourceMix

SFT = "sft"


def random_mixing(one_stage: RunConfig, plan: str) -> RunConfig:
    """The same records, epochs and recipe in plain random order."""
    data = dataclasses.replace(one_stage.data, plan=plan, mixture=equal_priorities(dict(one_stage.data.mixture)))
    return dataclasses.replace(one_stage, name=f"{one_stage.name}_random", data=data)


def stage_one(one_stage: RunConfig, tokens: str, plan: str) -> RunConfig:
    """Continued pre-training: every token of the raw passages is a target, plain random order, as many epochs as one-stage."""
    mixture = {name: SourceMix(epochs=mix.epochs) for name, mix in one_stage.data.mixture.items() if name != SFT}
    data = dataclasses.replace(one_stage.data, tokens=tokens, plan=plan, mixture=mixture)
    return dataclasses.replace(one_stage, name=f"{one_stage.name}_stage1", data=data, questions=())


def stage_two(one_stage: RunConfig, plan: str, stage_one_run: str) -> RunConfig:
    """SFT alone, from the weights of stage one, as many epochs as one-stage."""
    mixture = {SFT: SourceMix(epochs=one_stage.data.mixture[SFT].epochs)}
    data = dataclasses.replace(one_stage.data, plan=plan, mixture=mixture)
    return dataclasses.replace(one_stage, name=f"{one_stage.name}_stage2", data=data, init=stage_one_run)
