"""Nothing is half-written: directories and files appear whole, a log survives a kill, and a lock ends with its process."""

import gzip
import json
import os
import subprocess
import sys
import time

import pytest

from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import JsonLog, directory_aside, locked, read_log
from huatuo_jax.io.jsonl import iterate_json, write_lines


def test_a_directory_aside_appears_whole_or_not_at_all(tmp_path):
    with directory_aside(tmp_path / "out") as aside:
        (aside / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError), directory_aside(tmp_path / "out"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_is_replaced_only_on_request_and_only_by_a_whole_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(OSError, match="not empty"), directory_aside(tmp_path / "out"):
        pass
    with pytest.raises(RuntimeError), directory_aside(tmp_path / "out", replace=True):
        raise RuntimeError
    assert (tmp_path / "out" / "old").exists()
    with directory_aside(tmp_path / "out", replace=True) as aside:
        (aside / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".out.{pid}.tmp").mkdir()
    with directory_aside(tmp_path / "out"):
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {f".out.{pid}.tmp" for pid in (os.getpid(), os.getppid())}


HOLDS = """
import sys, time
from huatuo_jax.errors import ConfigError
from huatuo_jax.io.files import locked
with locked(sys.argv[1], ConfigError("busy")):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_other_processes_out_until_its_own_is_dead(tmp_path):
    busy = ConfigError("another process works in out")
    process = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    with pytest.raises(ConfigError, match="another process works in out"), locked(tmp_path / "lock", busy):
        pass
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with locked(tmp_path / "lock", busy):
                return
        except ConfigError:
            time.sleep(0.01)
    pytest.fail("the lock outlived its process")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_written_lines_are_read_again_and_appear_whole(tmp_path, name):
    rows = [{"text": "头痛"}, ["a", 1, None, 2.5], "passage"]
    with write_lines(tmp_path / name) as writer:
        for row in rows:
            writer.write(row)
        assert not (tmp_path / name).exists()
    assert [value for _, value in iterate_json(tmp_path / name)] == rows and writer.rows == 3
    with pytest.raises(RuntimeError), write_lines(tmp_path / name):
        raise RuntimeError
    assert [value for _, value in iterate_json(tmp_path / name)] == rows
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_lone_surrogate_is_written_as_an_escape(tmp_path):
    with write_lines(tmp_path / "a.jsonl", compact=True) as writer:
        writer.write({"a": "头", "b": 1})
        writer.write({"a": "\ud800"})
    assert (tmp_path / "a.jsonl").read_bytes() == '{"a":"头","b":1}\n{"a":"\\ud800"}\n'.encode()


def test_a_log_continues_after_its_last_whole_line(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    for number, torn in enumerate([b'{"step": 9, "lo', b'{"step": "\xe5', b""]):
        log = JsonLog(path)
        assert [row["step"] for row in log.rows] == list(range(number))
        log.append({"step": number})
        log.close()
        path.write_bytes(path.read_bytes() + torn)
        assert [row["step"] for row in read_log(path)] == list(range(number + 1))
    path.write_text('{"step": 0}')  # a whole object is a whole line
    log = JsonLog(path, durable=True)
    log.append({"step": 1})
    log.close()
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_a_log_is_cut_at_the_first_row_that_is_repeated(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)))
    log = JsonLog(path, until=lambda row: row["step"] > 2)
    log.append({"step": 3, "again": True})
    log.close()
    assert read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_foreign_line_in_a_log_is_refused_by_its_number(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"line 2.*hello"):
        read_log(tmp_path / "log.jsonl")
    with pytest.raises(DataError, match=r"line 2.*hello"):
        JsonLog(tmp_path / "log.jsonl")
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 3


def test_gzip_torn_in_its_header_is_torn(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"a": 1}\n')[:12])
    with pytest.raises(DataError, match="torn"):
        list(iterate_json(tmp_path / "a.jsonl"))


def test_a_log_takes_a_lone_surrogate_as_other_files_of_lines_do(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    log.append({"a": "\ud800", "b": "药"})
    log.close()
    assert JsonLog(tmp_path / "log.jsonl").rows == [{"a": "\ud800", "b": "药"}]
