"""A run is killed, stopped, continued: real processes, the same command line each time."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from huatuo_jax.data.plan import Plan
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from tests.support.another_host import can_be_another_host, on_another_host
from tests.support.tiny_run import row_hash

TIMES = ("time", "tokens_per_second", "step_seconds", "input_wait_seconds")
SCRIPT = Path(__file__).parents[1] / "support" / "tiny_run.py"


@pytest.fixture
def start(tiny_config_file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path):
    """Starts `huatuo train` on the tiny config with so many seconds a batch; kills what is left at the end."""
    processes: list[subprocess.Popen] = []
    cache = tmp_path_factory.getbasetemp() / "compiled-by-processes"

    def start(seconds: float, *words: str, devices: int = 8, seen: str = "", host: int = 0, run: str = "run") -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(repository),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "BATCHES_SEEN": str(tmp_path / f"seen-{seen}.jsonl") if seen else "",
        }
        command = [sys.executable, str(SCRIPT), str(seconds), str(tiny_config_file), "--run", str(tmp_path / run), *words]
        process = subprocess.Popen(
            on_another_host(command, host), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.1)
    raise AssertionError(f"{path} never appeared")


def lines_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture
def start_all(start):
    """Starts one run in so many processes, each a host of its own, that share eight devices, or so many, along `fsdp`."""
    hosts_differ = can_be_another_host()

    def start_all(
        seconds: float,
        processes: int,
        devices: int = 8,
        seen: str = "",
        others: Mapping[int, tuple[str, ...]] = {},
        runs: Mapping[int, str] = {},
    ) -> list[subprocess.Popen]:
        """`others`: process → words that it alone is given; `runs`: process → run directory of its own."""
        mesh = ("--mesh.fsdp", str(devices))
        if processes == 1:
            return [start(seconds, *mesh, devices=devices, seen=seen)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = ("--coordinator", address, "--num-processes", str(processes))
        return [
            start(
                seconds,
                *mesh,
                *flags,
                *others.get(i, ()),
                "--process-id",
                str(i),
                devices=devices // processes,
                seen=f"{seen}{i}" if seen else "",
                host=i if hosts_differ else 0,
                run=runs.get(i, "run"),
            )
            for i in range(processes)
        ]

    return start_all


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
    assert lines_of(tmp_path / "run") == lines_of(finished_run)


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
    assert lines_of(tmp_path / "run") == lines_of(finished_run)


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(start_all, tmp_path: Path) -> None:
    processes = start_all(0.4, 2, devices=4)
    wait_for(tmp_path / "run" / "checkpoints" / "4", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in processes]
    assert [code for code, _, _ in ends] == [4, 4], ends
    assert ends[0][2].splitlines()[-1].split("after")[1] == ends[1][2].splitlines()[-1].split("after")[1]
    ends = [finish(process) for process in start_all(0, 2, devices=4)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [line["step"] for line in lines_of(tmp_path / "run") if "loss" in line] == [3, 6, 9, 12, 14]


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
        [line["loss"] for line in lines_of(run) if "loss" in line] for run in (tmp_path / "run", finished_run)
    )
    np.testing.assert_allclose(losses, uninterrupted, rtol=1e-3)
