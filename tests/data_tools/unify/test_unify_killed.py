"""kill -9 at random moments against a server full of faults: nothing is lost, nothing durable is asked for twice.

The server runs in a process of its own and logs the key of every request; the ledger is read after each kill. Both together
prove what was repeated. The long test is the same on 299 real abstracts, with ten kills and stalls of 30 seconds.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from huatuo_jax.chat_client.calls import Call
from tests.support.fault_server import KEY

SERVER = Path(__file__).parents[2] / "support" / "fault_server.py"
PROGRAM = "import sys; from data_tools.cli import main; sys.exit(main(sys.argv[1:]))"


class Killing:
    """A corpus, a server in its own process, and runs of the command that can be killed."""

    def __init__(
        self, folder: Path, passages: list[str], concurrency: int, stall: float, timeout: float, faults: float = 0.3
    ) -> None:
        self.folder, self.concurrency, self.timeout = folder, concurrency, timeout
        self.corpus, self.log = folder / "corpus.json", folder / "server.log"
        self.corpus.write_text(json.dumps(passages, ensure_ascii=False), encoding="utf-8")
        self.log.touch()
        arguments = [sys.executable, str(SERVER), str(self.log), str(faults), "0.1", str(stall)]
        self.server = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        self.port = int(self.server.stdout.readline())

    def start(self, *options: str) -> subprocess.Popen:
        """Starts the command."""
        fixed = ["--provider", "openai", "--base-url", f"http://127.0.0.1:{self.port}/v1", "--model", "tiny"]
        limits = [
            "--concurrency",
            str(self.concurrency),
            "--timeout",
            str(self.timeout),
            "--backoff-scale",
            "0.05",
            "--retries",
            "20",
        ]
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            "unify",
            str(self.corpus),
            "--out",
            str(self.folder / "pairs.jsonl"),
            *fixed,
            *limits,
        ]
        environment = os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}
        self.output = open(self.folder / "output.txt", "a")  # noqa: SIM115 (the process writes on)
        return subprocess.Popen([*command, *options], env=environment, stdout=self.output, stderr=subprocess.STDOUT)

    def arrivals(self) -> list[str]:
        """The keys of all requests so far, in the order of their arrival."""
        return [json.loads(line)["key"] for line in self.log.read_text().splitlines()]

    def durable(self) -> set[str]:
        """The keys of all calls that the ledger has an answer to."""
        with sqlite3.connect(self.folder / "pairs.ledger.sqlite") as ledger:
            rows = ledger.execute("SELECT passage, step, round, attempt, prompt, model FROM calls").fetchall()
        calls = []
        for passage, step, number, attempt, prompt, model in rows:
            call = Call(passage, step, number, attempt, [])
            call.__dict__["prompt_hash"] = prompt
            calls.append(call.identity(model))
        return set(calls)

    def kill_after(self, arrivals: int) -> None:
        """Runs the command, kills it once so many more requests have arrived, and leaves no request in flight."""
        before, process = len(self.arrivals()), self.start()
        while len(self.arrivals()) < before + arrivals:
            assert process.poll() is None, "the run ended before it was to be killed"
            time.sleep(0.003)
        time.sleep(random.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        self.output.close()
        time.sleep(0.3)

    def finish(self) -> None:
        """Runs the command to its end."""
        assert self.start().wait(600) == 0, (self.folder / "output.txt").read_text()[-2000:]
        self.output.close()


def check(
    folder: Path, passages: list[str], kills: int, most_arrivals: int, concurrency: int, stall: float, timeout: float
) -> None:
    """Kills a run so many times, finishes it, and checks all that was promised."""
    run = Killing(folder, passages, concurrency, stall, timeout)
    try:
        durable_at: list[tuple[int, set[str]]] = []
        for _ in range(kills):
            run.kill_after(random.randint(3, most_arrivals))
            durable_at.append((len(run.arrivals()), run.durable()))
        run.finish()
        arrivals = run.arrivals()
    finally:
        run.server.kill()
        run.server.wait()

    begin, repeated = 0, []
    for end, durable in durable_at:
        assert not durable & set(arrivals[end:]), "a call was repeated although its answer was durable"
        again = (set(arrivals[begin:end]) - durable) & set(arrivals[end:])
        repeated.append(len(again))
        begin = end
    assert max(repeated) <= concurrency, "more was repeated than can have been in flight"
    assert max(repeated) > 0, "no kill hit a request in flight: the test has shown nothing"

    rows = {}
    for name in ("pairs.jsonl", "pairs.rejected.jsonl"):
        rows[name] = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    ids = Counter(row["id"] for part in rows.values() for row in part)
    assert len(ids) == len(passages)
    assert set(ids.values()) == {1}
    assert {row["reason"] for row in rows["pairs.rejected.jsonl"]} <= {
        "leak",
        "question_leak",
        "refusal",
        "language",
        "question_length",
        "coverage",
    }
    assert not list(folder.glob(".*.tmp"))
    written = [path for path in folder.iterdir() if KEY.encode() in path.read_bytes()]
    assert not written, f"the API key is in {written}"
    counts = {name: len(part) for name, part in rows.items()}
    print(f"{len(arrivals):,} requests, {len(run.durable()):,} durable calls, repeated after each kill: {repeated}; {counts}")


def test_three_kills_with_sixty_passages(tmp_path):
    sentences = "Drug {0} lowers marker {1} within {2} weeks. Its dose is {3} mg twice a day. The effect lasts for {4} months."
    passages = [sentences.format(f"alpha{i}", f"beta{i}", i, 10 * i, i + 1) for i in range(60)]
    check(tmp_path, passages, kills=3, most_arrivals=30, concurrency=8, stall=5, timeout=1)


@pytest.mark.slow
def test_a_kill_while_the_output_is_written_changes_nothing(tmp_path):
    sentences = "Drug {0} lowers marker {1} within {2} weeks. Its dose is {3} mg twice a day. The effect lasts for {4} months."
    run = Killing(tmp_path, [sentences.format(f"alpha{i}", f"beta{i}", i, 10 * i, i + 1) for i in range(20)], 8, 1, 0.5)
    try:
        run.finish()
        expected = {name: (tmp_path / name).read_bytes() for name in ("pairs.jsonl", "pairs.rejected.jsonl")}
        calls = len(run.arrivals())
        for name in expected:
            (tmp_path / name).unlink()
        process = run.start()
        while process.poll() is None and not list(tmp_path.glob(".pairs.jsonl.*.tmp")):
            time.sleep(0.0005)
        process.kill()
        process.wait()
        run.finish()
        assert {name: (tmp_path / name).read_bytes() for name in expected} == expected
        assert len(run.arrivals()) == calls
    finally:
        run.server.kill()
        run.server.wait()


@pytest.mark.slow
def test_a_signal_lets_the_requests_in_flight_finish_and_repeats_none(tmp_path):
    sentences = "Drug {0} lowers marker {1} within {2} weeks. Its dose is {3} mg twice a day. The effect lasts for {4} months."
    run = Killing(tmp_path, [sentences.format(f"alpha{i}", f"beta{i}", i, 10 * i, i + 1) for i in range(60)], 8, 1, 10, faults=0)
    try:
        process = run.start()
        while len(run.arrivals()) < 20:
            assert process.poll() is None
            time.sleep(0.003)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 4
        assert "stopped by a signal" in (tmp_path / "output.txt").read_text()
        assert run.durable() == set(run.arrivals())
        run.finish()
        assert max(Counter(run.arrivals()).values()) == 1
    finally:
        run.server.kill()
        run.server.wait()


@pytest.mark.slow
def test_ten_kills_with_real_abstracts(tmp_path, shared_data):
    passages = json.loads((shared_data / "corpus" / "pubmed_unify_sample.json").read_text(encoding="utf-8"))
    assert len(passages) == 299
    check(tmp_path, passages, kills=10, most_arrivals=75, concurrency=16, stall=30, timeout=5)
