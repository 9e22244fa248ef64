"""Whole corpora and SFT dialogues through the data side: no token appears from nowhere, none is lost.

The quickstart's with the golden tokenizer; and all real ones with Baichuan2's, where they are there.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data_tools.cli import main as huatuo_data
from data_tools.records.unified import UnifiedDataset
from huatuo_jax.config import DataConfig
from huatuo_jax.data.dialogue import encode_records
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.mixtures import PAPER
from tests.support.quickstart_data import EXAMPLES

MIXTURE = {name: dataclasses.replace(mix, epochs=1) for name, mix in PAPER.items()}
"""One pass, so that every record is drawn once and tokens can be balanced."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What goes in, and how long rows are."""

    passages: list[Path]
    dialogues: Path
    tokenizer: Path
    held_out: int
    length: int
    fill: float


@pytest.fixture(scope="module", params=["quickstart", "real"])
def case(request, tokenizer_named) -> Case:
    if request.param == "quickstart":
        passages = sorted((EXAMPLES / "corpus").glob("*.jsonl"))
        return Case(passages, EXAMPLES / "sft.jsonl", tokenizer_named("golden"), held_out=1, length=1024, fill=0.9)
    data = request.getfixturevalue("shared_data")
    passages = sorted((data / "corpus").glob("*.jsonl.xz"))
    dialogues = data / "sft" / "sft_zh.jsonl.xz"
    return Case(passages, dialogues, tokenizer_named("baichuan2"), held_out=64, length=4096, fill=0.98)


def run(*words) -> None:
    assert huatuo_data([*map(str, words), "--quiet"]) == 0


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    run("unify", "--template", *case.passages, "--out", folder / "pairs.jsonl")
    run("import", folder / "pairs.jsonl", "--out", folder / "domain")
    run("import", case.dialogues, "--source", "sft", "--out", folder / "sft")
    build = ["build", folder / "domain", folder / "sft", "--tokenizer", case.tokenizer]
    run(*build, "--out", folder / "tokens", "--holdout", case.held_out)
    (folder / "mixture.json").write_text(json.dumps({name: dataclasses.asdict(mix) for name, mix in MIXTURE.items()}))
    plan = ["plan", folder / "tokens", "--mixture-file", folder / "mixture.json", "--sequence-length", case.length]
    run(*plan, "--out", folder / "plan", "--json", folder / "plan.json")
    return folder


@pytest.fixture(scope="module")
def tokens_in(folder, case) -> dict[str, int]:
    """Tokens per source, counted on their own: every unified record encoded again."""
    tokenizer, template = load_tokenizer(case.tokenizer), get_format("huatuo")
    counts: dict[str, int] = dict.fromkeys(PAPER, 0)
    for part in ("domain", "sft"):
        records = list(UnifiedDataset(folder / part))
        for start in range(0, len(records), 256):
            batch = records[start : start + 256]
            for record, length in zip(batch, encode_records(batch, tokenizer, template)[0].lengths, strict=True):
                counts[record.source] += int(length)
    return counts


def test_tokens_in_are_tokens_in_rows_cut_and_held_out(folder, case, tokens_in):
    dataset, plan = TokenDataset.open(folder / "tokens"), Plan.load(folder / "plan")
    in_rows = dict.fromkeys(dataset.sources, 0)
    rows = PlannedRows(plan, dataset)
    for i in range(len(plan)):
        source_ids = rows[i]["source_ids"]
        for source, count in enumerate(np.bincount(source_ids[source_ids >= 0], minlength=len(dataset.sources))):
            in_rows[dataset.sources[source]] += int(count)
    for source in dataset.sources:
        facts, about = plan.manifest["statistics"]["sources"][source], dataset.manifest["sources"][source]
        assert about["rejected"] == 0 and facts["dropped"] == 0
        held_out = int(dataset.lengths(source, "holdout").sum())
        assert tokens_in[source] == in_rows[source] + facts["cut_tokens"] + held_out, source
        assert facts["tokens"] == in_rows[source]
        assert dataset.count(source, "holdout") == case.held_out


def test_rows_are_full_and_hold_every_record_once(folder, case):
    dataset, plan = TokenDataset.open(folder / "tokens"), Plan.load(folder / "plan")
    assert plan.manifest["statistics"]["fill"] >= case.fill
    assert np.array_equal(np.sort(plan.row_docs), np.arange(sum(dataset.count(s) for s in dataset.sources)))
    assert plan.manifest["mixture"] == {n: {"priority": m.priority, "epochs": 1} for n, m in MIXTURE.items()}


def test_no_token_of_a_row_is_changed(folder, case):
    dataset, plan = TokenDataset.open(folder / "tokens"), Plan.load(folder / "plan")
    rows = PlannedRows(plan, dataset)
    for i in np.random.default_rng(0).integers(len(plan), size=20):
        row, documents = rows[i], dataset.read(np.asarray(plan.docs(i)))
        expected = np.concatenate([tokens[: case.length] for tokens, _ in documents])
        assert np.array_equal(row["tokens"][: len(expected)], expected)
        assert not row["segment_ids"][len(expected) :].any()


@pytest.mark.slow
def test_a_tiny_model_takes_fifty_steps_or_all_there_are(folder, case, tmp_path):
    from huatuo_jax.cli.console import make_console
    from huatuo_jax.config import ComputeConfig, LoggingConfig, MeshConfig, OptimizerConfig, RunConfig
    from huatuo_jax.models.presets import preset
    from huatuo_jax.training.trainer import train

    steps = min(50, len(Plan.load(folder / "plan")))
    assert steps >= 20
    config = RunConfig(
        name="real",
        model=preset("tiny-baichuan2-7b", vocab_size=load_tokenizer(case.tokenizer).vocab_size, max_length=case.length),
        data=DataConfig(tokens=str(folder / "tokens"), plan=str(folder / "plan"), mixture=MIXTURE, sequence_length=case.length),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant"),
        mesh=MeshConfig(fsdp=1),
        compute=ComputeConfig(dtype="float32", loss_chunks=16),
        logging=LoggingConfig(every=1, eval_rows=1),
        batch_size=1,
        steps=steps,
    )
    train(config, tmp_path / "run", make_console())
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == steps and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
