"""Planning: a token dataset and a data config come in, a row plan with its statistics goes out. Sizes are enough for it."""

from typing import Any

import numpy as np

from huatuo_jax.config import DataConfig, require
from huatuo_jax.data.dialogue import IGNORED
from huatuo_jax.data.packing import pack
from huatuo_jax.data.plan import Plan, settings
from huatuo_jax.data.priority import draw_order
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError, DataError

CUT_WARNING = 0.01
"""Share of a source's tokens beyond the sequence length from which on the user is warned."""

_READ_AT_ONCE = 1024


def make_plan(dataset: TokenDataset, data: DataConfig) -> Plan:
    """Draws the order and packs the rows.

    Records are cut at the sequence length. What then has no target left teaches nothing: first-fit packing leaves it out,
    faithful packing keeps it, because the original does. Empty records are left out in both.

    Raises:
      ConfigError: no mixture, a source that the dataset does not have, or a sequence length that leaves no target at all.
      DataError: the mixture draws no record.
    """
    require(bool(data.mixture), f"the mixture is empty; name sources with priorities. The data has {', '.join(dataset.sources)}")
    counts = {source: dataset.count(source) for source in dataset.sources}
    order = draw_order(counts, data.mixture, data.seed)
    if not len(order):
        raise DataError(
            f"the mixture draws no record (records: {_listed(counts, data)}); "
            "import data for its sources, raise their epochs, or hold out less"
        )
    lengths = np.concatenate([dataset.lengths(source) for source in dataset.sources])
    first_targets = np.concatenate([dataset.first_targets(source) for source in dataset.sources])
    cut_lengths = np.minimum(lengths, data.sequence_length)
    has_target = first_targets < cut_lengths
    if not has_target[order].any():
        raise ConfigError(
            f"data.sequence_length is {data.sequence_length}: no record has a target before that cut (the earliest target is at "
            f"position {int(first_targets.min())}); plan longer rows, above all longer than a prompt's prefix"
        )
    draws = np.bincount(order, minlength=len(lengths))
    kept = has_target if data.packing == "first_fit" else cut_lengths > 0
    docs = order[kept[order]]
    del order
    row_starts, members = pack(cut_lengths[docs], data.sequence_length, data.packing)
    sources = _source_statistics(dataset, data, draws, kept, has_target)
    tokens = sum(facts["tokens"] for facts in sources.values())
    facts = {
        "token_manifest_hash": dataset.manifest_hash,
        **settings(data),
        "sources": list(dataset.sources),
        "offsets": dataset.offsets("train").tolist(),
        "statistics": {
            "fill": tokens / ((len(row_starts) - 1) * data.sequence_length),
            "tokens": tokens,
            "target_tokens": sum(facts["target_tokens"] for facts in sources.values()),
            "dropped": sum(facts["dropped"] for facts in sources.values()),
            "left_out_sources": [source for source in dataset.sources if source not in data.mixture],
            "sources": sources,
        },
    }
    return Plan.of(row_starts, docs[members], facts)


def _source_statistics(
    dataset: TokenDataset, data: DataConfig, draws: np.ndarray, kept: np.ndarray, has_target: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Per drawn source; `draws` (how often each document is drawn), `kept` and `has_target` are [documents].

    records: in the dataset. draws: int(records·epochs). dropped: draws left out. without_target: draws that have none after
    the cut, dropped or not. cut: kept draws that were cut; cut_tokens: what they lost; cut_share: of the tokens before the cut.
    tokens, target_tokens: what is left, over all kept draws.
    """
    length, out = data.sequence_length, {}
    offsets = dataset.offsets("train")
    for source, start, stop in zip(dataset.sources, offsets[:-1], offsets[1:], strict=True):
        if source not in data.mixture:
            continue
        drawn = draws[start:stop]
        times = np.where(kept[start:stop], drawn, 0)
        lengths = dataset.lengths(source)
        lost = int(np.dot(times, np.maximum(lengths - length, 0)))
        tokens = int(np.dot(times, np.minimum(lengths, length)))
        out[source] = {
            "records": dataset.count(source),
            "draws": int(drawn.sum()),
            "dropped": int(drawn.sum() - times.sum()),
            "without_target": int(drawn[~has_target[start:stop]].sum()),
            "cut": int(times[lengths > length].sum()),
            "cut_tokens": lost,
            "cut_share": lost / max(tokens + lost, 1),
            "tokens": tokens,
            "target_tokens": int(np.dot(times, _targets_before(dataset, source, int(start), length, times))),
        }
    return out


def _targets_before(dataset: TokenDataset, source: str, offset: int, length: int, times: np.ndarray) -> np.ndarray:
    """Targets of each record at positions 1 … length − 1: int64 [records].

    Of a record whose targets run without a gap to its end (one question, one answer) the sizes tell. Only longer records with
    several turns must be read.
    """
    lengths = dataset.lengths(source)
    first = dataset.first_targets(source)
    targets = np.array(dataset.target_counts(source), np.int64)
    is_cut = lengths > length
    gapless = targets == lengths - first
    targets = np.where(is_cut & gapless, np.maximum(length - first, 0), targets)
    unknown = np.flatnonzero(is_cut & ~gapless & (times > 0))
    for i in range(0, len(unknown), _READ_AT_ONCE):
        records = unknown[i : i + _READ_AT_ONCE]
        examples = dataset.read(records + offset)
        targets[records] = [np.count_nonzero(unshifted[1:length] != IGNORED) for _, unshifted in examples]
    return targets


def _listed(counts: dict[str, int], data: DataConfig) -> str:
    return ", ".join(f"{source} {counts[source]}" for source in data.mixture)
