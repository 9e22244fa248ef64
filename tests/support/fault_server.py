"""A test endpoint over real HTTP: replies with parts of the passage in the prompt, or fails in a chosen way; logs every request.

As a context manager it runs in a thread; `python fault_server.py LOG FAULTS LATENCY STALL` runs it as a process, which prints its
port and fails a share of the requests. Which ones depends on a request's key and on how often it came, so two runs with the same
calls meet the same faults.
"""

import asyncio
import contextlib
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

KEY = "sk-test-1f6f0c8e5b7d4a3921"
"""What tests send as the API key: no file and no message may hold it."""

PASSAGES = {
    "heart": "The human heart has four chambers. Blood returns to the right atrium. The left ventricle is the strongest.",
    "liver": "The liver stores glycogen and makes bile. It breaks down many drugs. Hepatitis is an inflammation of the liver.",
    "iron": "Iron deficiency is the most common cause of anaemia. Ferritin falls first. Oral iron is given for three months.",
    "心": "心动周期由收缩期和舒张期组成。成人安静时心率为每分钟六十至一百次。心率加快时舒张期缩短得更多。",
    "肝": "肝脏合成白蛋白和多种凝血因子。肝硬化时白蛋白下降，凝血酶原时间延长。腹水是失代偿的标志。",
}
"""A small corpus in both languages."""

FAULTS = ("429", "500", "502 html", "reset", "silence", "truncated", "empty", "stall", "wrong model")
HTML = "<!DOCTYPE html><html><head><title>Welcome</title></head><body>It works</body></html>"


@dataclass(frozen=True)
class Arrival:
    """A request: its Idempotency-Key, how often the key came before, step, language and the passage in the prompt."""

    key: str
    nth: int
    step: str
    language: str
    passage: str
    prompt: str
    authorization: str
    at: float


def sentences(passage: str) -> str:
    """An answer that keeps all of a passage but its last sentence."""
    mark = "。" if "。" in passage else ". "
    kept = passage.rstrip("。. \n").split(mark)
    return mark.join(kept[:-1] or kept) + mark.strip()


def plain_text(arrival: Arrival) -> str:
    """A question or an answer that no filter rejects."""
    if arrival.step == "answer":
        return sentences(arrival.passage)
    start = arrival.passage.split("\n")[-1]
    return (
        f"{start[:12]}具体是怎样的情况？" if arrival.language == "zh" else f"What do we know of {' '.join(start.split()[:6])} …?"
    )


class FaultServer:
    """Attributes: url; arrivals; fault, text: what to do with a request and what to answer, to be replaced by a test."""

    def __init__(self, log: Path | None = None, latency: float = 0.0, stall: float = 30.0, model: str = "tiny") -> None:
        self.latency, self.stall, self.model = latency, stall, model
        self.fault: Callable[[Arrival], str | None] = lambda arrival: None
        self.text: Callable[[Arrival], str] = plain_text
        self.arrivals: list[Arrival] = []
        self.seen: Counter[str] = Counter()
        self.headers = {"Retry-After": "0.2"}
        self.finish = "stop"
        self.in_flight = self.most_in_flight = 0
        self._log = open(log, "a") if log else None  # noqa: SIM115 (as long as the server)

    def __enter__(self) -> "FaultServer":
        started = threading.Event()

        def serve() -> None:
            self._loop = asyncio.new_event_loop()
            self.port = self._loop.run_until_complete(self.start())
            started.set()
            self._loop.run_forever()
            self._loop.run_until_complete(self._runner.cleanup())
            self._loop.close()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        assert started.wait(30)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def start(self) -> int:
        """Listens on a free port of this machine and returns it."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one request, or fails it."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._handle(request)
        finally:
            self.in_flight -= 1

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        arrival = self._arrival(request, await request.json())
        fault = self.fault(arrival)
        if self._log:
            self._log.write(json.dumps({"key": arrival.key, "fault": fault}) + "\n")
            self._log.flush()
        self.arrivals.append(arrival)
        await asyncio.sleep(self.latency)
        body = json.dumps(self._completion(arrival, fault)).encode()
        if fault == "silence":
            await asyncio.sleep(self.stall)
        elif fault == "reset":
            if request.transport is not None:  # the client may be dead already
                request.transport.abort()
        elif fault == "truncated":
            body = body[: len(body) // 2]
        elif fault == "html":
            return web.Response(text=HTML, content_type="text/html")
        elif fault == "502 html":
            return web.Response(status=502, text=HTML, content_type="text/html")
        elif fault == "stall":
            response = web.StreamResponse(headers={"Content-Length": str(len(body)), "Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(body[:20])
            await asyncio.sleep(self.stall)
            with contextlib.suppress(ConnectionError):
                await response.write(body[20:])
            return response
        elif fault and fault.isdigit():
            message = {"error": {"message": f"no, you sent {arrival.authorization}", "code": fault}}
            return web.json_response(message, status=int(fault), headers=self.headers if fault == "429" else {})
        return web.Response(body=body, content_type="application/json")

    def _arrival(self, request: web.Request, body: dict) -> Arrival:
        system, user = (message["content"] for message in body["messages"])
        prompt = f"{system}\n{user}"
        headings = {
            "资料": ("question", "zh"),
            "知识": ("answer", "zh"),
            "Material": ("question", "en"),
            "Knowledge": ("answer", "en"),
        }
        heading = next(h for h in headings if f"\n{h}：\n" in prompt or f"\n{h}:\n" in prompt)
        step, language = headings[heading]
        rest = prompt.split(f"\n{heading}{'：' if language == 'zh' else ':'}\n")[1]
        passage = rest.rsplit("\n\n问题：\n" if language == "zh" else "\n\nQuestion:\n", 1)[0] if step == "answer" else rest
        key = request.headers["Idempotency-Key"]
        nth = self.seen[key]
        self.seen[key] += 1
        return Arrival(key, nth, step, language, passage, prompt, request.headers.get("Authorization", ""), time.monotonic())

    def _completion(self, arrival: Arrival, fault: str | None) -> dict:
        text = "" if fault == "empty" else self.text(arrival)
        return {
            "id": "x",
            "object": "chat.completion",
            "model": "another-model" if fault == "wrong model" else self.model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": self.finish}],
            "usage": {"prompt_tokens": len(arrival.prompt) // 4, "completion_tokens": len(text) // 4},
        }


def drawn(*parts: object) -> float:
    """A number from 0 to 1 that depends on the parts only."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") / 2**64


def naughty_text(arrival: Arrival) -> str:
    """One text in five is of the kind that a filter rejects."""
    bad = ("According to the text above, that is so.", "I'm sorry, but I cannot help with that.", "这是中文。", "x" * 200 + "?")
    draw = drawn("text", arrival.key)
    return bad[int(draw * 20)] if draw < 0.2 else plain_text(arrival)


def main() -> None:
    """Serves until killed."""
    log, share, latency, stall = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    server = FaultServer(log, latency, stall)
    server.text = naughty_text

    def fault(arrival: Arrival) -> str | None:
        draw = drawn("fault", arrival.key, arrival.nth)
        return FAULTS[int(draw / share * len(FAULTS))] if draw < share else None

    server.fault = fault
    loop = asyncio.new_event_loop()
    print(loop.run_until_complete(server.start()), flush=True)
    loop.run_forever()


if __name__ == "__main__":
    main()
