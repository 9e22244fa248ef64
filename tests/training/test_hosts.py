"""Several hosts (processes with a boot id each): they disagree, one is lost, one cannot see the run directory."""

import signal
import time
from pathlib import Path

import pytest

from huatuo_jax.errors import ConfigError
from huatuo_jax.training.hosts import Peers, find_cluster
from tests.support.tiny_run import finish, logged_lines, wait_for


def test_hosts_of_another_learning_rate_are_refused_on_every_host_by_field_and_host(start_all, tmp_path: Path) -> None:
    ends = [finish(p) for p in start_all(0, 2, devices=4, others={1: ("--optimizer.learning-rate", "0.5")})]
    assert [code for code, _, _ in ends] == [2, 2], ends
    for _, _, err in ends:
        text = " ".join(err.split())
        assert "optimizer.learning_rate: 0.0001 on process 0" in text and "0.5 on process 1" in text, text
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_hosts_of_another_checkpoint_cadence_are_refused_instead_of_hanging(start_all) -> None:
    ends = [finish(p) for p in start_all(0, 2, devices=4, others={0: ("--checkpoint.every", "3")})]
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert all("checkpoint.every: 3 on process 0" in " ".join(err.split()) for _, _, err in ends), ends


def test_a_run_directory_that_is_not_shared_is_refused(start_all, tmp_path: Path) -> None:
    ends = [finish(p) for p in start_all(0, 2, devices=4, runs={1: "elsewhere"})]
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert all("process 1" in err and "does not see the run directory" in " ".join(err.split()) for _, _, err in ends), ends


def test_a_fault_of_one_host_before_the_first_step_ends_all_with_its_message(start_all) -> None:
    ends = [finish(p) for p in start_all(0, 2, devices=4, others={1: ("--data.plan", "/nowhere")})]
    codes = [code for code, _, _ in ends]
    assert codes[0] == codes[1] != 0, ends
    assert all("/nowhere" in err for _, _, err in ends), ends
    assert "process 1" in ends[0][2]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_host_ends_the_other_with_its_name_and_the_run_continues(
    start_all, finished_run: Path, tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    timeout = ("--peer-timeout", "20")
    processes = start_all(0.4, 2, devices=4, others={0: timeout, 1: timeout})
    wait_for(tmp_path / "run" / "checkpoints" / "4", processes[0])
    began = time.monotonic()
    processes[victim].send_signal(number)
    code, _, err = finish(processes[1 - victim])
    assert time.monotonic() - began < 60
    processes[victim].kill()
    assert code == 5, err
    assert f"process {victim} (" in err and "is lost" in err, err
    assert "Check failure stack trace" not in err
    ends = [finish(p) for p in start_all(0, 2, devices=4)]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "resume: step" in ends[0][1]
    assert [line["step"] for line in logged_lines(tmp_path / "run") if "loss" in line] == [3, 6, 9, 12, 14]


def test_sighup_saves_as_sigterm_does(start, tmp_path: Path) -> None:
    process = start(0.4)
    wait_for(tmp_path / "run" / "checkpoints" / "4", process)
    process.send_signal(signal.SIGHUP)
    code, _, err = finish(process)
    assert code == 4 and "stopped by SIGHUP" in err, err


def test_who_the_processes_are_comes_from_flags_or_environment(monkeypatch) -> None:
    for name, value in (("COORDINATOR_ADDRESS", "host-a:1234"), ("NUM_PROCESSES", "4"), ("PROCESS_ID", "3")):
        monkeypatch.setenv(f"JAX_{name}", value)
    assert find_cluster().process_id == 3 and find_cluster().coordinator == "host-a:1234"
    assert find_cluster(process_id=1).process_id == 1
    with pytest.raises(ConfigError, match="4 of 4 processes"):
        find_cluster(process_id=4)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        find_cluster("host-a")
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}")
    with pytest.raises(ConfigError, match="--coordinator HOST:PORT"):
        find_cluster()


def test_slurm_tells_who_the_processes_are(monkeypatch) -> None:
    slurm = {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_NODELIST": "gpu-[07-09]",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_NTASKS": "3",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    cluster = find_cluster()
    assert (cluster.num_processes, cluster.process_id) == (3, 2)
    assert cluster.coordinator.startswith("gpu-07:")


def test_one_process_needs_no_agreement() -> None:
    peers = Peers()
    peers.agree({"a": 1})
    assert peers.run_together(lambda: 3) == 3
    with peers.watched():
        pass
