"""Mixtures of sources: the paper's (arXiv 2311.09774, table of data sources), two baselines of it, and the curve that one draws.

A mixture gives each source a priority and epochs; `data/priority.py` decides in which order its records are drawn. A baseline is
derived from a one-stage config, so that everything else stays the same. Random mixing draws every record with equal priority.
Classic adaptation has two stages: next-token training on the raw passages (records with `text`), then an SFT run that starts from
its weights.

Read by `configs/`, by `data_tools/planning` (`--mixture paper`, the curve of a plan) and by the report of a run. What must hold:
a baseline differs from its one-stage config in the mixture, the data and where it starts, never in the recipe. Next to read:
`data/priority.py`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from huatuo_jax.config import RunConfig, SourceMix

PAPER = {
    "medical_web_corpus_cn": SourceMix(priority=32),
    "medical_web_corpus_en": SourceMix(priority=32),
    "medical_literature_cn": SourceMix(priority=16),
    "medical_literature_en": SourceMix(priority=16),
    "medical_encyclopedia_cn": SourceMix(priority=8),
    "medical_encyclopedia_en": SourceMix(priority=8),
    "medical_books_cn": SourceMix(priority=4),
    "medical_books_en": SourceMix(priority=4),
    "sft": SourceMix(priority=1, epochs=3),
}
"""Priority sampling: domain data first, SFT last. SFT records are drawn three times."""

PAPER_RECORDS = {
    "medical_web_corpus_cn": 640_621,
    "medical_web_corpus_en": 394_490,
    "medical_literature_cn": 177_261,
    "medical_literature_en": 878_241,
    "medical_encyclopedia_cn": 411_183,
    "medical_encyclopedia_en": 147_059,
    "medical_books_cn": 1_802_517,
    "medical_books_en": 801_522,
    "sft": 142_248,
}
"""Records per source in the original run: what `huatuo-data mix --mixture paper` draws without any data at hand."""

# With its sizes, so that a curve can be drawn before there is any data.
MIXTURES = {"paper": (PAPER, PAPER_RECORDS)}


def equal_priorities(mixture: dict[str, SourceMix]) -> dict[str, SourceMix]:
    """The same sources and epochs in plain random order: the baseline of the paper's ablation."""
    return {source: SourceMix(priority=1, epochs=mix.epochs) for source, mix in mixture.items()}


SFT = "sft"
"""The one source of dialogues; all others are passages of the domain."""


def random_mixing(one_stage: RunConfig, plan: str) -> RunConfig:
    """The same records, epochs and recipe in plain random order."""
    data = dataclasses.replace(one_stage.data, plan=plan, mixture=equal_priorities(dict(one_stage.data.mixture)))
    return dataclasses.replace(one_stage, name=f"{one_stage.name}_random", data=data)


def stage_one(one_stage: RunConfig, tokens: str, plan: str) -> RunConfig:
    """Continued pre-training: every token of the raw passages is a target, plain random order, as many epochs as one-stage."""
    # Without the questions: a model that saw no dialogue has learned no format to be asked in.
    mixture = {name: SourceMix(epochs=mix.epochs) for name, mix in one_stage.data.mixture.items() if name != SFT}
    data = dataclasses.replace(one_stage.data, tokens=tokens, plan=plan, mixture=mixture)
    return dataclasses.replace(one_stage, name=f"{one_stage.name}_stage1", data=data, questions=())


def stage_two(one_stage: RunConfig, plan: str, stage_one_run: str) -> RunConfig:
    """SFT alone, from the weights of stage one, as many epochs as one-stage."""
    mixture = {SFT: SourceMix(epochs=one_stage.data.mixture[SFT].epochs)}
    data = dataclasses.replace(one_stage.data, plan=plan, mixture=mixture)
    return dataclasses.replace(one_stage, name=f"{one_stage.name}_stage2", data=data, init=stage_one_run)


def in_mixture_order(sources: Iterable[str], mixture: Mapping[str, Mapping[str, float]]) -> list[str]:
    """`sources` by falling priority, then by name: the order in which a run draws them. `mixture` is that of a saved config."""
    return sorted(sources, key=lambda name: (-mixture.get(name, {"priority": 0})["priority"], name))


Curve = dict[str, np.ndarray]
"""Source → float64 [windows]: its share of the draws in each window; shares of a window add up to 1."""


def mixing_curve(records: np.ndarray, offsets: np.ndarray, sources: Sequence[str], windows: int) -> Curve:
    """Which source the draws come from, in each of `windows` equal parts of a run.

    Args:
      records: int64 [draws], ids of the drawn records in the order of training; at least as many as windows.
      offsets: int64 [sources + 1], first record id of each source, and one past the last.
      sources: names, in the order of ids.
    """
    bounds = np.linspace(0, len(records), windows + 1).astype(np.int64)
    shares = np.empty((windows, len(sources)))
    for i in range(windows):
        # "right" − 1: with offsets 0 5 9, records 0 to 4 belong to source 0 and record 5, the first of the next, to source 1.
        drawn_from = np.searchsorted(offsets, records[bounds[i] : bounds[i + 1]], side="right") - 1
        shares[i] = np.bincount(drawn_from, minlength=len(sources)) / len(drawn_from)
    return {source: shares[:, i] for i, source in enumerate(sources)}
