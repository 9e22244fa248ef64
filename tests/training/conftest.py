"""One tiny token dataset with its plan, and one finished run on it, for all tests of this folder."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.another_host import can_be_another_host, on_another_host
from tests.support.environment import use_devices

SCRIPT = Path(__file__).parents[1] / "support" / "tiny_run.py"


@pytest.fixture(scope="session")
def tiny_config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file whose data and plan are there."""
    from tests.support.tiny_run import make_data

    return make_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_config(tiny_config_file: Path):
    """The config of `tiny_config_file`."""
    from huatuo_jax.config_files import load_config

    return load_config(tiny_config_file)


@pytest.fixture(scope="session")
def finished_run(tiny_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory after its 14 steps: checkpoints 8, 12, 14. Tests copy it before they touch it."""
    from huatuo_jax.cli.console import make_console
    from huatuo_jax.training.trainer import train

    run = tmp_path_factory.mktemp("finished") / "run"
    assert train(tiny_config, run, make_console(quiet=True))["case"] == "fresh"
    return run


@pytest.fixture
def start(tiny_config_file: Path, tmp_path: Path, repository: Path):
    """Starts `huatuo train` on the tiny config with so many seconds a batch; kills what is left at the end."""
    processes: list[subprocess.Popen] = []

    def start(seconds: float, *words: str, devices: int = 8, seen: str = "", host: int = 0, run: str = "run") -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(repository),
            "BATCHES_SEEN": str(tmp_path / f"seen-{seen}.jsonl") if seen else "",
        }
        use_devices(devices, environment)
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
