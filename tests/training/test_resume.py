"""A run is killed, stopped, continued: real processes, the same command line each time."""

import json
import signal
import subprocess
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


def test_a_signal_saves_and_ends_with_its_own_exit_code(start, finished_run: Path, tmp_path: Path) -> None:
    """One run is stopped by SIGTERM, continued, stopped by SIGINT and continued to its end."""
    run = tmp_path / "run"
    for number, reached in ((signal.SIGTERM, run / "checkpoints" / "4"), (signal.SIGINT, tmp_path / "seen-SIGINT.jsonl")):
        process = start(0.4, seen=number.name)
        wait_for(reached, process)
        process.send_signal(number)
        code, _, err = finish(process)
        assert code == 4, err
        assert f"stopped by {number.name} after step" in err
        newest = max(int(p.name) for p in (run / "checkpoints").iterdir() if p.is_dir())
        assert f"after step {newest} of 14" in " ".join(err.split())
    assert finish(start(0))[0] == 0
    assert logged_lines(run) == logged_lines(finished_run)


def stop(processes: list[subprocess.Popen], reached: Path) -> list[str]:
    """The last lines on stderr, once a signal to the last process, sent when `reached` is there, has ended all of them."""
    wait_for(reached, processes[0])
    processes[-1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in processes]
    assert [code for code, _, _ in ends] == [4] * len(processes), ends
    return [err.splitlines()[-1] for _, _, err in ends]


# Slow until a hang is understood: once in four runs of the whole suite, process 1 of two did not end after SIGTERM had reached it
# and process 0 had left; alone the test passes in 40 seconds.
@pytest.mark.slow
def test_another_number_of_processes_continues_with_the_same_batches(
    start_all, finished_run: Path, tiny_config, tmp_path: Path
) -> None:
    """Two processes, then one, then two: a signal to one stops both after the same step, batches are bit for bit those of the
    plan, losses within 1e-3 of the run that was not interrupted."""
    last_lines = stop(start_all(0.4, 2, seen="first"), tmp_path / "run" / "checkpoints" / "4")
    assert last_lines[0].split("after")[1] == last_lines[1].split("after")[1]
    stop(start_all(0.4, 1, seen="second"), tmp_path / "seen-second.jsonl")
    ends = [finish(process) for process in start_all(0, 2, seen="third")]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "resume: step" in ends[0][1]
    assert [line["step"] for line in logged_lines(tmp_path / "run") if "loss" in line] == [3, 6, 9, 12, 14]

    rows, size = PlannedRows(Plan.load(tiny_config.data.plan), TokenDataset.open(tiny_config.data.tokens)), tiny_config.batch_size
    seen: dict[str, set[int]] = {}
    for part in ("first", "second", "third"):
        held: dict[int, dict[str, str]] = {}
        for file in tmp_path.glob(f"seen-{part}*.jsonl"):
            for step, batch in map(json.loads, file.read_text().splitlines()):
                held.setdefault(step, {}).update(batch)
        for step, batch in held.items():
            assert batch == {str(place): row_hash(rows[step * size + place]) for place in range(size)}, (part, step)
        seen[part] = set(held)
    assert set.union(*seen.values()) == set(range(14))
    assert seen["second"] == set(range(min(seen["second"]), max(seen["second"]) + 1)) and min(seen["second"]) >= 4
    assert seen["third"] == set(range(min(seen["third"]), 14)) and min(seen["third"]) > min(seen["second"])

    losses, uninterrupted = (
        [line["loss"] for line in logged_lines(run) if "loss" in line] for run in (tmp_path / "run", finished_run)
    )
    np.testing.assert_allclose(losses, uninterrupted, rtol=1e-3)
