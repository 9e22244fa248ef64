"""Directories written aside: gone on an error, whole on success, and no leftovers of killed processes."""

import os
import subprocess

import pytest

from huatuo_jax.io.files import directory_aside


def test_a_directory_aside_is_renamed_or_removed(tmp_path):
    with directory_aside(tmp_path / "out") as aside:
        (aside / "a").write_text("1")
        aside.rename(tmp_path / "out")
    with pytest.raises(RuntimeError), directory_aside(tmp_path / "out"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".out.{pid}.tmp").mkdir()
    with directory_aside(tmp_path / "out"):
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {f".out.{pid}.tmp" for pid in (os.getpid(), os.getppid())}
