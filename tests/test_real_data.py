"""All of the real corpora and SFT dialogues through the whole data side: no token appears from nowhere, none is lost."""

import dataclasses
import json

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

L = 4096
MIXTURE = {name: dataclasses.replace(mix, epochs=1) for name, mix in PAPER.items()}
"""One pass, so that every record is drawn once and tokens can be balanced."""


def run(*words) -> None:
    assert huatuo_data([*map(str, words), "--quiet"]) == 0


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    run("unify", "--template", *sorted((shared_data / "corpus").glob("*.jsonl.xz")), "--out", folder / "pairs.jsonl")
    run("import", folder / "pairs.jsonl", "--out", folder / "domain")
    run("import", shared_data / "sft" / "sft_zh.jsonl.xz", "--source", "sft", "--out", folder / "sft")
    tokenizer = shared_data / "tokenizers" / "baichuan2.model"
    run("build", folder / "domain", folder / "sft", "--tokenizer", tokenizer, "--out", folder / "tokens", "--holdout", 64)
    (folder / "mixture.json").write_text(json.dumps({name: dataclasses.asdict(mix) for name, mix in MIXTURE.items()}))
    plan = ["plan", folder / "tokens", "--mixture-file", folder / "mixture.json", "--sequence-length", L]
    run(*plan, "--out", folder / "plan", "--json", folder / "plan.json")
    return folder


@pytest.fixture(scope="module")
def tokens_in(folder, shared_data) -> dict[str, int]:
    """Tokens per source, counted on their own: every unified record encoded again."""
    tokenizer, template = load_tokenizer(shared_data / "tokenizers" / "baichuan2.model"), get_format("huatuo")
    counts: dict[str, int] = dict.fromkeys(PAPER, 0)
    for part in ("domain", "sft"):
        records = list(UnifiedDataset(folder / part))
        for start in range(0, len(records), 256):
            batch = records[start : start + 256]
            for record, length in zip(batch, encode_records(batch, tokenizer, template)[0].lengths, strict=True):
                counts[record.source] += int(length)
    return counts


def test_tokens_in_are_tokens_in_rows_cut_and_held_out(folder, tokens_in):
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
        assert dataset.count(source, "holdout") == 64


def test_rows_are_full_and_hold_every_record_once(folder):
    dataset, plan = TokenDataset.open(folder / "tokens"), Plan.load(folder / "plan")
    assert plan.manifest["statistics"]["fill"] >= 0.98
    assert np.array_equal(np.sort(plan.row_docs), np.arange(sum(dataset.count(s) for s in dataset.sources)))
    assert plan.manifest["mixture"] == {n: {"priority": m.priority, "epochs": 1} for n, m in MIXTURE.items()}


def test_no_token_of_a_row_is_changed(folder):
    dataset, plan = TokenDataset.open(folder / "tokens"), Plan.load(folder / "plan")
    rows = PlannedRows(plan, dataset)
    for i in np.random.default_rng(0).integers(len(plan), size=20):
        row, documents = rows[i], dataset.read(np.asarray(plan.docs(i)))
        expected = np.concatenate([tokens[:L] for tokens, _ in documents])
        assert np.array_equal(row["tokens"][: len(expected)], expected)
        assert not row["segment_ids"][len(expected) :].any()


@pytest.mark.slow
def test_a_tiny_model_takes_fifty_steps(folder, tmp_path):
    from huatuo_jax.cli.console import make_console
    from huatuo_jax.config import ComputeConfig, LoggingConfig, MeshConfig, OptimizerConfig, RunConfig
    from huatuo_jax.models.presets import preset
    from huatuo_jax.training.trainer import train

    config = RunConfig(
        name="real",
        model=preset("tiny-baichuan2-7b", vocab_size=125_696, max_length=L),
        data=DataConfig(tokens=str(folder / "tokens"), plan=str(folder / "plan"), mixture=MIXTURE, sequence_length=L),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant"),
        mesh=MeshConfig(fsdp=1),
        compute=ComputeConfig(dtype="float32", loss_chunks=16),
        logging=LoggingConfig(every=1, eval_rows=1),
        batch_size=1,
        steps=50,
    )
    train(config, tmp_path / "run", make_console())
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 50 and np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
