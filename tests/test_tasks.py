"""The pool: every task once whatever the engine, errors and interruptions end it, and no worker outlives its parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.tasks import advance, run_tasks
from tests.support.long_task import hold


class Writer:
    """A task function that holds something large, which goes to each worker once."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text = folder, text

    def write(self, number: int) -> None:
        advance(2)
        (self.folder / str(number)).write_text(self.text)
        advance(3)


@pytest.mark.parametrize("workers", [1, 3])
def test_each_task_runs_once_and_reports_its_progress(tmp_path, workers):
    done, progress, meanwhile = [], [], []
    writer = Writer(tmp_path, "x" * 100_000)
    run_tasks(
        writer.write, range(7), workers, on_done=done.append, on_progress=progress.append, meanwhile=lambda: meanwhile.append(1)
    )
    assert sorted(done) == list(range(7)) and {path.name for path in tmp_path.iterdir()} == set("0123456")
    assert progress == sorted(progress) and progress[-1] == 35 and meanwhile == [1]


def fail_at_two(folder_and_number):
    folder, number = folder_and_number
    if number == 2:
        raise DataError("task 2 cannot be done")
    time.sleep(0.01)
    (folder / str(number)).touch()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_ends_the_run_and_what_is_done_stays(tmp_path, workers):
    with pytest.raises(DataError, match="task 2 cannot be done"):
        run_tasks(fail_at_two, [(tmp_path, number) for number in range(200)], workers)
    done = {int(path.name) for path in tmp_path.iterdir()}
    assert 0 in done and 2 not in done and len(done) < 100


@pytest.mark.parametrize("threads", [1, 2], ids=["forked", "spawned"])
def test_an_error_in_the_parent_interrupts_the_tasks_that_run(tmp_path, monkeypatch, threads):
    context = multiprocessing.get_context("fork" if threads == 1 else "spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)

    def give_up():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        raise ConfigError("the template does not work")

    began = time.monotonic()
    with pytest.raises(ConfigError, match="the template does not work"):
        run_tasks(hold, [tmp_path] * 8, 2, meanwhile=give_up)
    assert time.monotonic() - began < 30
    assert not list(tmp_path.iterdir()), "a task that is interrupted removes what it wrote aside"


HOLDS = """
import sys
from pathlib import Path
from huatuo_jax.io.tasks import run_tasks
from tests.support.long_task import hold
if __name__ == "__main__":
    run_tasks(hold, [Path(sys.argv[1])] * 4, 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_no_worker_outlives_its_parent(tmp_path, repository, number):
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], cwd=repository, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    workers = [int(path.stem) for path in tmp_path.iterdir()]
    process.send_signal(number)
    process.wait(30)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def die_once(folder):
    """A task that kills its own worker the first time."""
    if folder.name == "2" and not (folder.parent / "died").exists():
        (folder.parent / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    folder.touch()


def die_always(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_lost_worker_is_replaced_and_its_task_done_again(tmp_path):
    done = []
    run_tasks(die_once, [tmp_path / str(i) for i in range(6)], workers=2, on_done=done.append)
    assert sorted(done) == list(range(6)) and all((tmp_path / str(i)).exists() for i in range(6))
    with pytest.raises(DataError, match="worker processes died 4 times"):
        run_tasks(die_always, [tmp_path / "a", tmp_path / "b"], workers=2)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="no engine is called 'slurm'; the engines are processes, ray"):
        run_tasks(die_always, [], engine="slurm")
