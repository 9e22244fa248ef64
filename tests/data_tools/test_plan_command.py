import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.cli import main
from data_tools.planning.planner import make_plan
from huatuo_jax.config import DataConfig, SourceMix
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError, DataError
from tests.support.token_folder import dialogue, write_tokens

MIXTURE = {"books": SourceMix(priority=8), "sft": SourceMix(priority=1, epochs=3)}


@pytest.fixture
def tokens(tmp_path):
    """books: 7, 32 and 10 tokens, the last without a target before position 9; sft: 5 tokens; web: 4 tokens."""
    train = {
        "books": [dialogue(3, 4), dialogue(2, 30), dialogue(9, 1)],
        "sft": [dialogue(2, 3)],
        "web": [dialogue(1, 3)],
    }
    return write_tokens(tmp_path / "tokens", train)


@pytest.fixture
def mixture_file(tmp_path):
    path = tmp_path / "mixture.json"
    path.write_text('{"books": {"priority": 8}, "sft": {"priority": 1, "epochs": 3}}')
    return path


def run_plan(tokens, tmp_path, *flags):
    code = main(["plan", str(tokens), "--out", str(tmp_path / "plan"), "--json", str(tmp_path / "report.json"), *map(str, flags)])
    return code, json.loads((tmp_path / "report.json").read_text()) if code == 0 else None


def test_statistics_of_a_plan_that_cuts_and_drops(tokens, mixture_file, tmp_path):
    code, report = run_plan(tokens, tmp_path, "--mixture-file", mixture_file, "--sequence-length", 8, "--batch-size", 2)
    assert code == 0
    books, sft = report["statistics"]["sources"]["books"], report["statistics"]["sources"]["sft"]
    assert (books["records"], books["draws"], books["dropped"], books["cut"]) == (3, 3, 1, 1)
    assert (books["tokens"], books["target_tokens"], books["cut_tokens"]) == (7 + 8, 4 + 6, 24)
    assert books["cut_share"] == pytest.approx(24 / 39)
    assert (sft["draws"], sft["tokens"], sft["target_tokens"]) == (3, 15, 9)
    assert report["records"] == 5
    assert report["rows"] == 5
    assert report["steps"] == 2
    assert report["statistics"]["fill"] == pytest.approx(30 / 40)
    assert report["hash"] == Plan.load(tmp_path / "plan").hash


def test_what_the_user_must_know_is_printed(tokens, mixture_file, tmp_path, capsys):
    run_plan(tokens, tmp_path, "--mixture-file", mixture_file, "--sequence-length", 8)
    printed = capsys.readouterr().out
    assert "in the data but not in the mixture, so not drawn: web" in printed
    assert "61.5% of the tokens of books lie beyond 8 and are cut" in printed
    assert "1 draws of books have no target before 8 (dropped)" in printed
    assert "too few rows for one step" in printed
    assert "24 (61.5%)" in printed


def test_faithful_packing_keeps_records_without_target_as_the_original_does(tokens, mixture_file, tmp_path):
    flags = ("--mixture-file", mixture_file, "--sequence-length", 8, "--packing", "faithful")
    _, report = run_plan(tokens, tmp_path, *flags)
    books = report["statistics"]["sources"]["books"]
    assert (books["dropped"], books["without_target"], report["records"]) == (0, 1, 6)


def test_targets_of_cut_dialogues_with_several_turns_are_counted_exactly(tmp_path):
    example = np.tile(np.arange(10, dtype=np.int32), 2), np.array([-100, -100, 2, 3, -100, 5, 6, -100, -100, -100] * 2, np.int32)
    tokens = write_tokens(tmp_path / "tokens", {"sft": [dialogue(5, 5), example]})
    data = DataConfig(mixture={"sft": SourceMix(epochs=2)}, sequence_length=14)
    facts = make_plan(TokenDataset.open(tokens), data).manifest["statistics"]["sources"]["sft"]
    assert facts["target_tokens"] == 2 * (5 + 6)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"sft": [dialogue(2, n) for n in range(1, 40)]})
    data = DataConfig(mixture={"sft": SourceMix()}, sequence_length=64)
    dataset = TokenDataset.open(tokens)
    assert make_plan(dataset, data).hash == make_plan(dataset, data).hash
    assert make_plan(dataset, data).hash != make_plan(dataset, dataclasses.replace(data, seed=1)).hash


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=20),
    epochs=st.sampled_from([1, 1.5, 3]),
    packing=st.sampled_from(["first_fit", "faithful"]),
)
def test_no_kept_draw_is_lost_or_doubled(tmp_path_factory, sizes, epochs, packing):
    tokens = write_tokens(tmp_path_factory.mktemp("t"), {"a": [dialogue(q, a) for q, a in sizes], "b": [dialogue(1, 1)]})
    data = DataConfig(mixture={"a": SourceMix(2, epochs), "b": SourceMix()}, sequence_length=10, packing=packing)
    plan = make_plan(TokenDataset.open(tokens), data)
    times = np.bincount(plan.row_docs, minlength=len(sizes) + 1)
    kept = np.array([q < 10 or packing == "faithful" for q, _ in sizes])
    assert (times[:-1][~kept] == 0).all()
    assert (times[:-1][kept] >= int(epochs)).all()
    assert times[-1] == 1
    assert len(plan.row_docs) == plan.manifest["records"]


def test_a_config_file_is_the_home_of_the_settings_and_flags_override(tokens, tmp_path):
    config = tmp_path / "configs" / "small.py"
    config.parent.mkdir()
    config.write_text(
        "from huatuo_jax.config import DataConfig, ModelConfig, RunConfig, SourceMix\n"
        "def config():\n"
        "    model = ModelConfig('m', 'llama', 100, 1, 8, 2, 2, 4, 8)\n"
        f"    data = DataConfig(tokens={str(tokens)!r}, plan={str(tmp_path / 'there')!r}, sequence_length=16, seed=5,\n"
        "                      mixture={'books': SourceMix(8), 'sft': SourceMix()})\n"
        "    return RunConfig('small', model, data, batch_size=2)\n"
    )
    assert main(["plan", "--config", str(config), "--quiet"]) == 0
    manifest = Plan.load(tmp_path / "there").manifest
    assert (manifest["sequence_length"], manifest["seed"], sorted(manifest["mixture"])) == (16, 5, ["books", "sft"])
    _, report = run_plan(tokens, tmp_path, "--config", config, "--seed", 6)
    assert (report["seed"], report["sequence_length"], report["batch_size"]) == (6, 16, 2)


def test_equal_priorities_keep_the_epochs(tokens, mixture_file, tmp_path):
    _, report = run_plan(tokens, tmp_path, "--mixture-file", mixture_file, "--equal-priorities")
    assert report["mixture"] == {"books": {"priority": 1.0, "epochs": 1.0}, "sft": {"priority": 1.0, "epochs": 3.0}}


def test_an_unknown_source_is_named_beside_the_known_ones(tokens, tmp_path, capsys):
    code, _ = run_plan(tokens, tmp_path, "--mixture", "paper")
    assert code == 2
    message = capsys.readouterr().err
    assert "medical_web_corpus_cn" in message
    assert "it has books, sft, web" in message
    assert not (tmp_path / "plan").exists()


def test_no_mixture_is_an_error_not_a_default(tokens, tmp_path, capsys):
    assert run_plan(tokens, tmp_path)[0] == 2
    assert "--mixture" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", '{"sft": 3}', '{"sft": {"priority": "high"}}', "nonsense"])
def test_a_malformed_mixture_file_is_refused(tokens, tmp_path, text, capsys):
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert run_plan(tokens, tmp_path, "--mixture-file", path)[0] == 2
    assert "bad.json" in capsys.readouterr().err


def test_rows_shorter_than_every_prefix_are_refused(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"sft": [dialogue(6, 9), dialogue(5, 9)]})
    data = DataConfig(mixture={"sft": SourceMix()}, sequence_length=5)
    with pytest.raises(ConfigError, match=r"sequence_length is 5: no record has a target .* earliest target is at position 5"):
        make_plan(TokenDataset.open(tokens), data)


@pytest.mark.parametrize(("train", "epochs"), [({"sft": []}, 1), ({"sft": [dialogue(2, 3)]}, 0.5)])
def test_an_empty_draw_is_refused(tmp_path, train, epochs):
    tokens = write_tokens(tmp_path / "tokens", train)
    with pytest.raises(DataError, match="draws no record"):
        make_plan(TokenDataset.open(tokens), DataConfig(mixture={"sft": SourceMix(epochs=epochs)}))


def test_the_command_starts_without_jax():
    import subprocess
    import sys

    code = (
        "import sys, data_tools.planning.planner, data_tools.planning.mixing, huatuo_jax.data.rows, huatuo_jax.data.plan\n"
        "sys.exit('jax' in sys.modules or 'grain' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
