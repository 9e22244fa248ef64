"""A whole run on a tiny model: how it starts, what it writes, what it refuses, how it goes on."""

import dataclasses
import errno
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from huatuo_jax.cli import main as huatuo
from huatuo_jax.cli.console import make_console
from huatuo_jax.config import CheckpointConfig, MeshConfig, OptimizerConfig, RunConfig, config_from_dict
from huatuo_jax.data.rows import HoldoutRows, PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.errors import ConfigError, DataError, DoesNotFitError, HuatuoError
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.saving import Checkpoints, alone_in
from huatuo_jax.training.startup import choose_case, load_state, open_init, open_run_data
from huatuo_jax.training.step import build_step
from huatuo_jax.training.trainer import out_of_memory_explained, train
from huatuo_jax.weights.checkpoint import named_leaves
from tests.support.tiny_run import logged_lines

# Orbax leaves a coroutine behind when a file of a checkpoint is torn.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def run_quietly(config: RunConfig, run: Path) -> dict:
    return train(config, run, make_console(quiet=True))


def copied(run: Path, to: Path, without: tuple[int, ...] = ()) -> Path:
    shutil.copytree(run, to / "run")
    for step in without:
        shutil.rmtree(to / "run" / "checkpoints" / str(step))
    return to / "run"


def tear(run: Path, step: int) -> None:
    for file in (run / "checkpoints" / str(step) / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:20])


def test_a_run_directory_holds_config_metrics_and_checkpoints(finished_run: Path, tiny_config: RunConfig) -> None:
    assert config_from_dict(RunConfig, json.loads((finished_run / "config.json").read_text())) == tiny_config
    assert sorted(p.name for p in (finished_run / "checkpoints").iterdir() if p.is_dir()) == ["12", "14", "8"]


def test_metrics_hold_every_logged_step_once_and_the_loss_falls(finished_run: Path) -> None:
    steps = [line for line in logged_lines(finished_run) if "loss" in line]
    assert [line["step"] for line in steps] == [3, 6, 9, 12, 14]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["loss/medical_books_cn"] > 0 and steps[0]["mfu"] is None and steps[0]["skipped"] == 0
    assert sum(line[f"target_tokens/{s}"] for line in steps for s in ("medical_books_cn", "sft")) == steps[-1]["target_tokens"]


def test_held_out_loss_is_measured_per_source(finished_run: Path) -> None:
    held = [line for line in logged_lines(finished_run) if "eval_loss" in line]
    assert [line["step"] for line in held] == [6, 12, 14]
    assert {"eval_loss/medical_books_cn", "eval_loss/sft"} <= held[0].keys()


def test_held_out_rows_are_padded_to_whole_batches(tiny_config: RunConfig) -> None:
    dataset = TokenDataset.open(tiny_config.data.tokens)
    rows = HoldoutRows(dataset, dataset.sources, tiny_config.data.sequence_length, tiny_config.logging.eval_rows, multiple=8)
    assert len(rows) % 8 == 0
    assert (rows[len(rows) - 1]["segment_ids"] == 0).all() and rows[0]["segment_ids"].max() > 0


def test_a_finished_run_says_so_and_changes_nothing(finished_run: Path, tiny_config: RunConfig) -> None:
    before = (finished_run / "metrics.jsonl").read_bytes()
    assert run_quietly(tiny_config, finished_run) == {"case": "finished", "steps": 14}
    assert (finished_run / "metrics.jsonl").read_bytes() == before


def test_another_run_in_the_directory_is_refused_listing_old_and_new(finished_run: Path, tiny_config: RunConfig) -> None:
    other = dataclasses.replace(tiny_config, seed=7, optimizer=OptimizerConfig(learning_rate=1e-3))
    with pytest.raises(ConfigError) as refused:
        run_quietly(other, finished_run)
    assert "seed: 0 → 7" in str(refused.value)
    assert "optimizer.learning_rate: 0.0001 → 0.001" in str(refused.value)


def test_resuming_gives_the_same_figures_bit_for_bit(finished_run: Path, tiny_config: RunConfig, tmp_path: Path) -> None:
    run = copied(finished_run, tmp_path, without=(12, 14))
    assert run_quietly(tiny_config, run)["case"] == "resume"
    assert logged_lines(run) == logged_lines(finished_run)


def test_resuming_on_another_mesh_differs_by_rounding_only(finished_run: Path, tiny_config: RunConfig, tmp_path: Path) -> None:
    run = copied(finished_run, tmp_path, without=(12, 14))
    changed = dataclasses.replace(tiny_config, mesh=MeshConfig(fsdp=2, tensor=2), accumulation=2)
    assert run_quietly(changed, run)["case"] == "resume"
    losses, expected = ([line["loss"] for line in logged_lines(r) if "loss" in line] for r in (run, finished_run))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_torn_newest_checkpoint_is_set_aside_and_the_one_before_used(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished_run, tmp_path, without=(14,))
    tear(run, 12)
    train(tiny_config, run, make_console())
    assert "corrupt-12" in capsys.readouterr().out.replace("\n", "")
    assert (run / "checkpoints" / "corrupt-12").is_dir()
    assert logged_lines(run) == logged_lines(finished_run)


def test_a_run_with_no_usable_checkpoint_never_starts_anew_by_itself(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path
) -> None:
    run = copied(finished_run, tmp_path, without=(12, 14))
    tear(run, 8)
    for _ in range(2):
        with pytest.raises(HuatuoError, match=r"corrupt-8.*choose another --run"):
            run_quietly(tiny_config, run)


def test_weights_of_another_run_are_taken_without_its_optimizer(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config, init=str(finished_run))
    report = run_quietly(config, tmp_path / "run")
    assert report["case"] == "weights"
    assert logged_lines(tmp_path / "run")[0]["loss"] < logged_lines(finished_run)[0]["loss"]


def test_weights_of_another_model_are_refused(finished_run: Path, tiny_config: RunConfig, tmp_path: Path) -> None:
    model = dataclasses.replace(tiny_config.model, ffn_size=128)
    with pytest.raises(ConfigError, match=r"model.ffn_size: 64 → 128"):
        run_quietly(dataclasses.replace(tiny_config, init=str(finished_run), model=model), tmp_path / "run")


def test_weights_trained_with_another_tokenizer_are_refused(finished_run: Path, tiny_config: RunConfig) -> None:
    config = dataclasses.replace(tiny_config, init=str(finished_run))
    with pytest.raises(ConfigError, match="tokenizer: "):
        open_init(config, {"tokenizer": {"fingerprint": "0" * 64}})


def test_a_tokenizer_larger_than_the_model_is_refused(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, vocab_size=100))
    with pytest.raises(ConfigError, match="vocab_size is 100"):
        run_quietly(config, tmp_path / "run")


def test_a_plan_of_other_data_is_refused(tiny_config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(tiny_config.data.tokens, tmp_path / "tokens")
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest | {"holdout": 99}))
    config = dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, tokens=str(tmp_path / "tokens")))
    with pytest.raises(DataError, match="other data"):
        run_quietly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mesh": MeshConfig(fsdp=16)}, DoesNotFitError, "needs 16 devices and there are 8"),
        ({"batch_size": 6}, ConfigError, "6 rows do not divide over 4 devices"),
        ({"batch_size": 4096}, ConfigError, "batch_size is 4096 and the plan"),
        ({"steps": 4096}, ConfigError, "steps is 4096"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tiny_config: RunConfig, tmp_path: Path, changes: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        run_quietly(dataclasses.replace(tiny_config, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_keeps_its_good_checkpoints_however_often_it_is_started(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished_run, tmp_path, without=(12, 14))

    class NotFinite(PlannedRows):
        def read_rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
            rows = super().read_rows(indices)
            return rows | {"tokens": np.full_like(rows["tokens"], 10**6)}  # beyond the vocabulary: NaN

    greedy = dataclasses.replace(tiny_config, checkpoint=CheckpointConfig(every=1, keep=1), max_skipped=3)
    with monkeypatch.context() as patch:
        patch.setattr("huatuo_jax.training.trainer.PlannedRows", NotFinite)
        for _ in range(3):
            with pytest.raises(HuatuoError, match=r"3 updates in a row, up to step 1[12], .* newest checkpoint is of step 8"):
                run_quietly(greedy, run)
            assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == ["8"]
    run_quietly(tiny_config, run)
    assert logged_lines(run) == logged_lines(finished_run)


@pytest.mark.parametrize(("item", "case"), [("params", "finished"), ("opt_state", "finished"), ("meta", "resume")])
def test_a_finished_run_whose_last_checkpoint_is_damaged_trains_its_last_steps_again(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path, item: str, case: str
) -> None:
    run = copied(finished_run, tmp_path)
    for file in (run / "checkpoints" / "14" / item).rglob("*"):
        if file.is_file() and (item == "meta" or file.parent.name == "d"):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    assert run_quietly(tiny_config, run)["case"] == case
    assert (run / "checkpoints" / "corrupt-14").is_dir() and (run / "checkpoints" / "14").is_dir()
    assert logged_lines(run) == logged_lines(finished_run)


@pytest.mark.parametrize("count", [20, pytest.param(250, marks=pytest.mark.slow)])
def test_no_damage_to_the_newest_checkpoint_is_ever_trained_from(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path, count: int
) -> None:
    """A flipped bit, or a cut, anywhere in its files: found and fallen back from, or without effect."""
    mesh = make_mesh(tiny_config.mesh)
    data = open_run_data(tiny_config, make_console(quiet=True))
    step = build_step(tiny_config, mesh, data.total_steps, data.dataset.sources)

    def resumed(run: Path) -> dict:
        checkpoints = Checkpoints(run / "checkpoints")
        start = choose_case(checkpoints, tiny_config, data.facts)
        state, meta = load_state(start, checkpoints, step, tiny_config, mesh, lambda message: None)
        assert int(state.step) == meta["step"]
        return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()} | {"metrics": str(meta["metrics"])}

    run = copied(finished_run, tmp_path, without=(8,))
    good, before = resumed(run), resumed(copied(finished_run, tmp_path / "older", without=(8, 14)))
    random = np.random.default_rng(count)
    files = sorted(path for path in (run / "checkpoints" / "14").rglob("*") if path.is_file() and path.stat().st_size)
    outcomes = Counter[str]()
    for number in range(count):
        shutil.rmtree(run)
        copied(finished_run, tmp_path, without=(8,))
        file = files[int(random.integers(len(files)))]
        content = bytearray(file.read_bytes())
        place = int(random.integers(len(content)))
        if number % 5 == 4:
            content = content[:place]
        else:
            content[place] ^= 1 << int(random.integers(8))
        file.write_bytes(content)
        found = resumed(run)
        fell_back = (run / "checkpoints" / "corrupt-14").exists()
        for name, value in (before if fell_back or int(found["step"]) == 12 else good).items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{file} {name}")
        outcomes["fallen back" if int(found["step"]) == 12 else "without effect"] += 1
    print(outcomes)
    assert outcomes["fallen back"] >= count // 4


def test_a_renamed_checkpoint_is_not_used(finished_run: Path, tiny_config: RunConfig, tmp_path: Path) -> None:
    run = copied(finished_run, tmp_path, without=(14,))
    (run / "checkpoints" / "8").rename(run / "checkpoints" / "13")
    run_quietly(tiny_config, run)
    assert (run / "checkpoints" / "corrupt-13").is_dir()
    assert logged_lines(run) == logged_lines(finished_run)


def test_the_checkpoint_with_the_lowest_held_out_loss_stays(tiny_config: RunConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(
        tiny_config,
        checkpoint=CheckpointConfig(every=2, keep=1, keep_best="eval_loss/sft"),
        logging=dataclasses.replace(tiny_config.logging, eval_every=2),
    )
    run_quietly(config, tmp_path / "run")
    losses = {line["step"]: line["eval_loss/sft"] for line in logged_lines(tmp_path / "run") if "eval_loss/sft" in line}
    best = min(losses, key=lambda step: losses[step])
    found = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.is_dir()}
    assert found == {str(best), "14"}


def test_keep_best_of_a_source_without_held_out_records_is_refused(tiny_config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep_best is eval_loss/none, but .* holds out records of medical_books_cn, sft"):
        run_quietly(
            dataclasses.replace(
                tiny_config,
                checkpoint=CheckpointConfig(every=2, keep_best="eval_loss/none"),
                logging=dataclasses.replace(tiny_config.logging, eval_every=2),
            ),
            tmp_path / "run",
        )
    with pytest.raises(ConfigError, match=r"checkpoint.every \(3\) must be a multiple of logging.eval_every \(2\)"):
        dataclasses.replace(
            tiny_config,
            checkpoint=CheckpointConfig(every=3, keep_best="eval_loss"),
            logging=dataclasses.replace(tiny_config.logging, eval_every=2),
        )


def test_checkpoints_are_listed_verified_and_pruned(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(finished_run, tmp_path)
    assert huatuo(["checkpoints", str(run)]) == 0
    assert capsys.readouterr().out.count("not verified") == 3
    assert huatuo(["checkpoints", str(run), "--verify"]) == 0
    assert capsys.readouterr().out.count("whole") == 3
    tear(run, 14)
    assert huatuo(["checkpoints", str(run), "--verify", "--json", str(tmp_path / "report.json")]) == 1
    report = json.loads((tmp_path / "report.json").read_text())["checkpoints"]
    assert [(one["name"], one["state"] == "whole") for one in report] == [("8", True), ("12", True), ("14", False)]
    assert huatuo(["checkpoints", str(run), "--prune", "1"]) == 0
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == ["12"]
    with alone_in(run):
        assert huatuo(["checkpoints", str(run), "--prune", "1"]) == 1
    assert "another process is training in" in capsys.readouterr().err
    assert huatuo(["checkpoints", str(tmp_path)]) == 1
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_full_disk_ends_the_run_and_the_older_checkpoint_continues_it(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished_run, tmp_path, without=(12, 14))

    async def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint._src.serialization.jax_array_handlers.ArrayHandler.serialize", full)
        with pytest.raises(HuatuoError, match=r"No space left on device.*step 8 stays usable"):
            run_quietly(tiny_config, run)
    run_quietly(dataclasses.replace(tiny_config, checkpoint=CheckpointConfig(every=5, keep=1)), run)
    assert logged_lines(run) == logged_lines(finished_run)


def test_two_processes_cannot_train_in_one_directory(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with (
        alone_in(tmp_path),
        pytest.raises(HuatuoError, match="another process is training in"),
        alone_in(tmp_path),
    ):
        pass


def test_out_of_memory_gives_advice(tiny_config: RunConfig) -> None:
    with pytest.raises(DoesNotFitError, match=r"--accumulation 2"), out_of_memory_explained(tiny_config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
