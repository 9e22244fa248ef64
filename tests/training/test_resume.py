"""A run is killed, stopped, continued: real processes, the same command line each time."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TIMES = ("time", "tokens_per_second", "step_seconds", "input_wait_seconds")
SCRIPT = Path(__file__).with_name("tiny_run.py")


@pytest.fixture
def start(tiny_config_file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, repository: Path):
    """Starts `huatuo train` on the tiny config with so many seconds a batch; kills what is left at the end."""
    processes: list[subprocess.Popen] = []
    cache = tmp_path_factory.getbasetemp() / "compiled-by-processes"

    def start(seconds: float, *words: str, devices: int = 8) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(repository),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, SCRIPT, str(seconds), str(tiny_config_file), "--run", str(tmp_path / "run"), *words]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(start, tmp_path: Path) -> None:
    def both(seconds: float) -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = ("--coordinator", address, "--num-processes", "2")
        return [start(seconds, *flags, "--process-id", str(i), devices=2) for i in range(2)]

    processes = both(0.4)
    wait_for(tmp_path / "run" / "checkpoints" / "4", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in processes]
    assert [code for code, _, _ in ends] == [4, 4], ends
    assert ends[0][2].splitlines()[-1].split("after")[1] == ends[1][2].splitlines()[-1].split("after")[1]
    ends = [finish(process) for process in both(0)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert [line["step"] for line in lines_of(tmp_path / "run") if "loss" in line] == [3, 6, 9, 12, 14]
