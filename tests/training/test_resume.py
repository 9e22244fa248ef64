"""A run is killed, stopped, continued: real processes, the same command line each time."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from huatuo_jax.data.plan import Plan
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from tests.support.tiny_run import finish, logged_lines, row_hash, wait_for


def test_after_kill_9_the_same_command_gives_the_figures_of_the_run_that_was_not_killed(
    start, finished_run: Path, tmp_path: Path
) -> None:
    process = start(0.4)
    wait_for(tmp_path / "run" / "checkpoints" / "4", process)
    time.sleep(1.0)
    process.kill()
    process.communicate()
    assert not (tmp_path / "run" / "checkpoints" / "14").exists()
    code, out, err = finish(start(0))
    assert code == 0, err
    assert "resume: step" in out
    assert logged_lines(tmp_path / "run") == logged_lines(finished_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_its_own_exit_code(
    start, finished_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(0.4)
    wait_for(tmp_path / "run" / "checkpoints" / "4", process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 4, err
    assert f"stopped by {number.name} after step" in err
    newest = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.is_dir())
    assert f"after step {newest} of 14" in " ".join(err.split())
    assert finish(start(0))[0] == 0
    assert logged_lines(tmp_path / "run") == logged_lines(finished_run)


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(start_all, tmp_path: Path) -> None:
    processes = start_all(0.4, 2, devices=4)
    wait_for(tmp_path / "run" / "checkpoints" / "4", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in processes]
    assert [code for code, _, _ in ends] == [4, 4], ends
    assert ends[0][2].splitlines()[-1].split("after")[1] == ends[1][2].splitlines()[-1].split("after")[1]
    ends = [finish(process) for process in start_all(0, 2, devices=4)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [line["step"] for line in logged_lines(tmp_path / "run") if "loss" in line] == [3, 6, 9, 12, 14]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_continues_with_the_same_batches(
    start_all, finished_run: Path, tiny_config, tmp_path: Path, before: int, after: int
) -> None:
    """Batches bit for bit those of the plan, losses within 1e-3 of the run that was not interrupted."""
    processes = start_all(0.4, before, seen="before")
    wait_for(tmp_path / "run" / "checkpoints" / "4", processes[0])
    processes[-1].send_signal(signal.SIGTERM)
    assert [finish(process)[0] for process in processes] == [4] * before
    ends = [finish(process) for process in start_all(0, after, seen="after")]
    assert [code for code, _, _ in ends] == [0] * after, ends
    assert "resume: step" in ends[0][1]

    rows, size = PlannedRows(Plan.load(tiny_config.data.plan), TokenDataset.open(tiny_config.data.tokens)), tiny_config.batch_size
    seen = {"before": set(), "after": set()}
    for part, steps in seen.items():
        held: dict[int, dict[str, str]] = {}
        for file in tmp_path.glob(f"seen-{part}*.jsonl"):
            for step, batch in map(json.loads, file.read_text().splitlines()):
                held.setdefault(step, {}).update(batch)
        for step, batch in held.items():
            assert batch == {str(place): row_hash(rows[step * size + place]) for place in range(size)}, (part, step)
        steps.update(held)
    assert seen["before"] | seen["after"] == set(range(14))
    assert seen["after"] == set(range(min(seen["after"]), 14)) and min(seen["after"]) >= 4

    losses, uninterrupted = (
        [line["loss"] for line in logged_lines(run) if "loss" in line] for run in (tmp_path / "run", finished_run)
    )
    np.testing.assert_allclose(losses, uninterrupted, rtol=1e-3)
