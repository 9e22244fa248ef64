"""The layout of a run changes its speed, not its losses."""

import json
import os
import socket
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from tests.support.another_host import can_be_another_host, on_another_host
from tests.support.two_processes import ten_losses

pytestmark = pytest.mark.usefixtures("compiled_fast")

TOLERANCE = 2e-5


@cache
def serial_losses(kind: str = "global") -> tuple[float, ...]:
    return tuple(ten_losses((1, 1, 1), 1, devices=1, loss=kind))


FSDP, ALL_AXES = (1, 8, 1), (2, 2, 2)


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [
        (FSDP, 1),
        (FSDP, 4),
        (ALL_AXES, 1),
        (ALL_AXES, 4),
    ],
)
def test_eight_devices(mesh, accumulation):
    losses = ten_losses(mesh, accumulation, devices=8)
    np.testing.assert_allclose(losses, serial_losses(), rtol=TOLERANCE)
    assert losses[-1] < losses[0] - 0.1


def test_accumulation_on_one_device():
    np.testing.assert_allclose(ten_losses((1, 1, 1), 4, devices=1), serial_losses(), rtol=TOLERANCE)


def test_mean_of_means_does_not_depend_on_the_layout():
    losses = ten_losses((2, 2, 2), 4, devices=8, loss="mean_of_means")
    np.testing.assert_allclose(losses, serial_losses("mean_of_means"), rtol=TOLERANCE)
    assert np.abs(np.array(losses) - serial_losses()).max() > 1e-4


@pytest.fixture(scope="module")
def losses_of_two_hosts(repository):
    """Accumulation → losses: both in the same pair of processes, which takes longer to start than to train."""
    if not can_be_another_host():
        pytest.skip("a process cannot get a boot id of its own here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = repository / "tests" / "support" / "two_processes.py"
    environment = {**os.environ, "PYTHONPATH": str(repository), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    workers = [
        subprocess.Popen(
            on_another_host([sys.executable, str(script), str(port), str(process), "1", "4"], process),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.mark.parametrize("accumulation", ["1", "4"])
def test_two_hosts(accumulation, losses_of_two_hosts):
    np.testing.assert_allclose(losses_of_two_hosts[accumulation], serial_losses(), rtol=TOLERANCE)
