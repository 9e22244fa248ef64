"""Rate, efficiency and memory of unify's client with its durable ledger, against a stub endpoint in a process of its own.

    python -m benchmarks.unify_client               # the two rates; wall clock, so needs an otherwise idle machine
    python -m benchmarks.unify_client --memory 100000

The client's process is pinned to one core, the stub to another. Every call goes the whole way: budget, request, check of the
answer, commit to the ledger. CPU seconds per call say how many calls one core can make, whatever else the machine does. What must
hold: the stub is never what the client waits for. Next to
read: `huatuo_jax/chat_client/client.py`.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PASSAGE = "Aspirin inhibits platelet aggregation. It is given at low dose after a myocardial infarction. " * 8


def serve(latency: float) -> None:
    """The stub: reads a request, waits, answers; prints its port."""
    answer = {"role": "assistant", "content": PASSAGE}
    choice = {"index": 0, "message": answer, "finish_reason": "stop"}
    usage = {"prompt_tokens": 400, "completion_tokens": 200}
    body = json.dumps({"model": "stub", "choices": [choice], "usage": usage}).encode()
    # By hand and not by a server library: the stub must never be what the client waits for.
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    class Connection(asyncio.Protocol):
        """One keep-alive connection; requests come one after the other on it."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.waiting = transport, b""

        def data_received(self, data: bytes) -> None:
            self.waiting += data
            end = self.waiting.find(b"\r\n\r\n")
            if end < 0:
                return
            fields = self.waiting[:end].lower()
            length = int(fields.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.waiting) >= end + 4 + length:
                self.waiting = b""
                loop.call_later(latency, self.transport.write, head + body)  # type: ignore[attr-defined]

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Connection, "127.0.0.1", 0, backlog=4096))
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.run_forever()


async def make_calls(
    url: str, folder: Path, calls: int, in_flight: int, on_sample: list[tuple[int, float]] | None = None
) -> None:
    """Makes so many calls, so many at a time; samples the resident memory (MiB) twenty times."""
    from data_tools.unify.prompting import Prompts
    from huatuo_jax.chat_client.budget import Caps
    from huatuo_jax.chat_client.calls import Call
    from huatuo_jax.chat_client.client import ChatClient, ClientSettings
    from huatuo_jax.chat_client.ledger import Ledger
    from huatuo_jax.io.api_key import ApiKey

    prompts, numbers = Prompts(), iter(range(calls))
    settings = ClientSettings(url, "stub", concurrency=in_flight, timeout=60)
    with Ledger(folder / "ledger.sqlite") as ledger:
        async with ChatClient(settings, Caps(), ApiKey("none"), ledger) as client:

            async def work() -> None:
                for number in numbers:
                    call = Call(f"books/{number}", "question", 0, 0, prompts.question("en", PASSAGE))
                    if ledger.find(call, "stub") is None:
                        await client.ask(call)
                    if on_sample is not None and number % max(1, calls // 20) == 0:
                        on_sample.append((number, resident()))

            await asyncio.gather(*(work() for _ in range(in_flight)))
            print(f"  {client.counts.report()}, {ledger.commits:,} commits")


def resident() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(calls: int, in_flight: int, latency: float, memory: bool = False) -> None:
    """Runs one measurement and prints its figures; opening the connections counts, importing the client does not."""
    import huatuo_jax.chat_client.client  # noqa: F401 (seconds of a loaded machine, outside the measurement)

    cores = sorted(os.sched_getaffinity(0))
    stub = subprocess.Popen([sys.executable, "-m", "benchmarks.unify_client", "--serve", str(latency)], stdout=subprocess.PIPE)
    assert stub.stdout is not None
    url = f"http://127.0.0.1:{int(stub.stdout.readline())}/v1"
    # A core for each, or the stub's work would be counted as the client's waiting.
    os.sched_setaffinity(stub.pid, {cores[-1]})
    os.sched_setaffinity(0, {cores[0]})
    try:
        with tempfile.TemporaryDirectory() as folder:
            samples: list[tuple[int, float]] = []
            wall, processor = time.perf_counter(), time.process_time()
            asyncio.run(make_calls(url, Path(folder), calls, in_flight, samples if memory else None))
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
    finally:
        os.sched_setaffinity(0, set(cores))
        stub.kill()
        stub.wait()
    ideal = in_flight / latency
    print(
        f"{calls:,} calls, {in_flight:,} in flight, {latency:g} s latency: {calls / wall:,.0f} calls/s by the wall "
        f"({calls / wall / ideal:.1%} of ideal), {calls / processor:,.0f} calls per CPU second, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    if memory:
        # The first tenth opens connections and fills caches; memory that grows after it is a leak.
        steady = [size for number, size in samples if number >= calls // 10]
        print("  resident MiB: " + ", ".join(f"{number:,}: {size:.0f}" for number, size in samples))
        print(f"  after the first tenth: {steady[0]:.1f} to {steady[-1]:.1f} MiB, most {max(steady):.1f}")


def main() -> None:
    """Runs what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=float, metavar="LATENCY", help="be the stub")
    parser.add_argument("--memory", type=int, metavar="CALLS", help="only the memory over so many calls")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve)
    elif arguments.memory:
        measure(arguments.memory, 200, 0.05, memory=True)
    else:
        measure(10_000, 1_000, 0.2)
        measure(2_000, 100, 2.0)


if __name__ == "__main__":
    main()
