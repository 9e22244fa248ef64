"""From the sizes of a token dataset and a mixture to a row plan, and what the user must know about it.

On the way: after `huatuo-data build`, before `huatuo train`. The order of the draws comes from `huatuo_jax/data/priority.py`, the
rows from `packing.py`, and the folder that holds both is `plan.py` there: read them next. What must hold: sizes are enough (the
texts are never read, but for cut dialogues of several turns), and the same settings give the same plan on every machine.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from huatuo_jax.config import DataConfig, SourceMix, config_from_dict, require
from huatuo_jax.config_files import load_config
from huatuo_jax.data.dialogue import IGNORED
from huatuo_jax.data.packing import pack
from huatuo_jax.data.plan import Plan, settings
from huatuo_jax.data.priority import draw_order
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, read_json
from huatuo_jax.mixtures import MIXTURES, equal_priorities

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_BATCH_SIZE = 128
CUT_WARNING = 0.01
"""Share of a source's tokens beyond the sequence length from which on the user is warned."""

# Records that are read together to count the targets of cut dialogues.
_READ_AT_ONCE = 1024


def data_config(
    config_file: str | None, batch_size: int | None, mixture: dict[str, SourceMix] | None, equal: bool, **fields: Any
) -> tuple[DataConfig, int]:
    """The data config to plan for, and the batch size that steps are counted with.

    Args:
      config_file: a run config, whose `data` and batch size are taken; None = the defaults.
      batch_size, mixture: take the place of the config's, if given.
      equal: every priority is 1, epochs stay.
      fields: further fields of `DataConfig` that take the place of the config's where they are not None.

    Raises:
      ConfigError: no mixture, or impossible values.
    """
    config = load_config(config_file) if config_file else None
    if batch_size is None:
        batch_size = config.batch_size if config else DEFAULT_BATCH_SIZE
    require(batch_size >= 1, f"--batch-size is {batch_size}; it must be at least 1")
    given = {name: value for name, value in {**fields, "mixture": mixture}.items() if value is not None}
    data = dataclasses.replace(config.data if config else DataConfig(), **given)
    require(bool(data.mixture), "no mixture: give --config, --mixture or --mixture-file")
    return dataclasses.replace(data, mixture=equal_priorities(dict(data.mixture))) if equal else data, batch_size


def load_mixture(name: str | None, file: PathLike | None) -> dict[str, SourceMix] | None:
    """A mixture of `huatuo_jax/mixtures.py` by name, or of a JSON file `{"SOURCE": {"priority": 8, "epochs": 1}, …}`, or None.

    Raises:
      ConfigError: unknown name, unreadable file, or impossible values.
    """
    if file is None:
        require(name is None or name in MIXTURES, f"no mixture {name!r}; there are {', '.join(MIXTURES)}, or give --mixture-file")
        return dict(MIXTURES[name][0]) if name else None
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not a readable JSON file ({error})") from error
    shape = 'it must look like {"sft": {"priority": 1, "epochs": 3}, …}'
    require(isinstance(values, dict) and all(isinstance(mix, dict) for mix in values.values()), f"{file}: {shape}")
    for source, mix in values.items():
        # Before the dataclass: a text compares with no number, and its TypeError would name neither file nor source.
        numbers = all(isinstance(value, int | float) for value in mix.values())
        require(numbers, f"{file}: priority and epochs of {source} must be numbers; {shape}")
    return {source: config_from_dict(SourceMix, mix) for source, mix in values.items()}


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
            f"the mixture draws no record (records: {', '.join(f'{source} {counts[source]}' for source in data.mixture)}); "
            "import data for its sources, raise their epochs, or hold out less"
        )
    lengths = np.concatenate([dataset.lengths(source) for source in dataset.sources])
    first_targets = np.concatenate([dataset.first_targets(source) for source in dataset.sources])
    cut_lengths = np.minimum(lengths, data.sequence_length)
    # A record teaches something if its first target lies before the cut.
    has_target = first_targets < cut_lengths
    if not has_target[order].any():
        raise ConfigError(
            f"data.sequence_length is {data.sequence_length}: no record has a target before that cut (the earliest target is at "
            f"position {int(first_targets.min())}); plan longer rows, above all longer than a prompt's prefix"
        )
    # Two ways to count: `draws` says how often each document is drawn, `docs` lists what is kept of the draws, in their order.
    draws = np.bincount(order, minlength=len(lengths))
    kept = has_target if data.packing == "first_fit" else cut_lengths > 0
    docs = order[kept[order]]
    del order  # 8 bytes a draw, and packing needs memory of its own
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
            "cut_share": _cut_share(tokens, lost),
            "tokens": tokens,
            "target_tokens": int(np.dot(times, _targets_before(dataset, source, int(start), length, times))),
        }
    return out


def _cut_share(kept: int, cut: int) -> float:
    return cut / max(kept + cut, 1)


def _targets_before(dataset: TokenDataset, source: str, offset: int, length: int, times: np.ndarray) -> np.ndarray:
    """Targets of each record at positions 1 … length − 1: int64 [records]."""
    # Where the targets of a record run without a gap to its end (one question, one answer), its sizes are enough. Cut at 6:
    #
    #     - - - 4 5 6 7    7 tokens, first target at 3, 4 targets: no gap, so 6 - 3 = 3 targets are left
    #     - 2 - - 5 6 7    7 tokens, first target at 1, 4 targets: how many of them lie before the cut, only the record tells
    lengths = dataset.lengths(source)
    first = dataset.first_targets(source)
    targets = np.array(dataset.target_counts(source), np.int64)
    is_cut = lengths > length
    gapless = targets == lengths - first
    targets = np.where(is_cut & gapless, np.maximum(length - first, 0), targets)
    unknown = np.flatnonzero(is_cut & ~gapless & (times > 0))
    for i in range(0, len(unknown), _READ_AT_ONCE):
        records = unknown[i : i + _READ_AT_ONCE]
        targets[records] = [np.count_nonzero(t[1:length] != IGNORED) for _, t in dataset.read(records + offset)]
    return targets


def source_table(plan: Plan) -> "Table":
    """One line per drawn source, and the total."""
    from rich.table import Table

    columns = ("records", "priority", "epochs", "draws", "dropped", "cut", "tokens cut", "tokens", "targets")
    table = Table("source")
    for column in columns:
        table.add_column(column, justify="right")
    sources, mixture = plan.manifest["statistics"]["sources"], plan.manifest["mixture"]
    for source, facts in sources.items():
        table.add_row(source, *_cells(facts, f"{mixture[source]['priority']:g}", f"{mixture[source]['epochs']:g}"))
    names = ("records", "draws", "dropped", "cut", "cut_tokens", "tokens", "target_tokens")
    total = {name: sum(facts[name] for facts in sources.values()) for name in names}
    table.add_section()
    table.add_row("all", *_cells({**total, "cut_share": _cut_share(total["tokens"], total["cut_tokens"])}, "", ""))
    return table


def _cells(facts: Mapping[str, Any], priority: str, epochs: str) -> list[str]:
    records, draws, dropped, cut = (f"{facts[name]:,}" for name in ("records", "draws", "dropped", "cut"))
    cut_tokens = f"{facts['cut_tokens']:,} ({facts['cut_share']:.1%})"
    return [records, priority, epochs, draws, dropped, cut, cut_tokens, f"{facts['tokens']:,}", f"{facts['target_tokens']:,}"]


def warnings(plan: Plan, steps: int) -> list[str]:
    """What the user should know before training `steps` steps on the plan."""
    length, statistics = plan.manifest["sequence_length"], plan.manifest["statistics"]
    messages = []
    if statistics["left_out_sources"]:
        messages.append(f"in the data but not in the mixture, so not drawn: {', '.join(statistics['left_out_sources'])}")
    for source, facts in statistics["sources"].items():
        if facts["draws"] == 0:
            messages.append(f"{source} is in the mixture but gives no draw ({facts['records']:,} records)")
        if facts["cut_share"] > CUT_WARNING:
            share = f"{facts['cut_share']:.1%} of the tokens of {source} lie beyond {length:,}"
            messages.append(f"{share} and are cut; segment its documents into shorter passages, or plan longer rows")
        if facts["without_target"]:
            fate = "dropped" if facts["dropped"] else "kept, as the original does"
            messages.append(f"{facts['without_target']:,} draws of {source} have no target before {length:,} ({fate})")
    if not steps:
        messages.append("there are too few rows for one step; lower the batch size")
    return messages
