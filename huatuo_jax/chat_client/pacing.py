"""When the next request may go out, and when the run had better stop: pauses, rates, backoff, and the first replies of a step.

The client asks `Pacer` before every request and wakes all who wait through it when the run ends; `Trial` lets few requests go out
until the endpoint has shown that its replies can be used. What must hold: once a run is to stop no request goes out, and
whoever sleeps wakes at once; a fault that every reply shows costs `HANDFUL` replies of a step, however many workers wait.
Next to read: `client.py`.
"""

import asyncio
import random
import time
from collections import Counter

from huatuo_jax.errors import HuatuoError

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
"""Seconds before the first retry, and the most between two."""
HANDFUL = 8
"""Requests in flight while no reply of a step was usable yet, and unusable ones after which the run stops."""


class Pacer:
    """Says when the next request may go out, and wakes all who wait when the run is to stop.

    Attributes:
      stopping: the error to end with once no request is in flight; None while the run goes on.
    """

    def __init__(self, requests_per_minute: float | None = None, backoff_scale: float = 1.0) -> None:
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._scale = backoff_scale
        self._next = self._paused_until = 0.0
        self._stop = asyncio.Event()  # what everybody who sleeps waits for
        self.stopping: HuatuoError | None = None

    def stop(self, error: HuatuoError) -> None:
        """Lets no request go out any more; of several errors the first one counts."""
        if self.stopping is None:
            self.stopping = error
            self._stop.set()

    def check(self) -> None:
        """Raises the error that the run ends with, if it is to end."""
        if self.stopping is not None:
            raise self.stopping

    def pause(self, seconds: float) -> None:
        """Holds every request back for so long (Retry-After)."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    @property
    def paused_for(self) -> float:
        """Seconds of pause that are left."""
        return max(0.0, self._paused_until - time.monotonic())

    async def turn(self) -> None:
        """Waits until this request may go out.

        Raises:
          HuatuoError: the run stops.
        """
        self.check()
        while pause := self.paused_for:
            await self.sleep(pause)
        if self._interval:
            # Each request takes the next free moment: at 600 a minute they go out 0.1 s apart, however many wait.
            now = time.monotonic()
            at = max(self._next, now)
            self._next = at + self._interval
            if at > now:
                await self.sleep(at - now)
                if self.paused_for:  # a pause that began meanwhile holds for this request too
                    await self.turn()

    async def sleep(self, seconds: float) -> None:
        """Sleeps; raises at once when the run stops."""
        self.check()
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return
        self.check()

    def backoff(self, retry: int) -> float:
        """Seconds before retry 0, 1, …: doubled each time up to a minute, the later half of it drawn at random."""
        # Without jitter, requests that an overloaded endpoint turned away together would come back together.
        return self._scale * min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(retry, 30)) * random.uniform(0.5, 1.0)


class Trial:
    """The first replies of each step of a run: a handful at a time until one can be used, an end if none can.

    64 workers want answers. 8 requests go out. One reply is good: the other 56 follow, and the trial is over.
    Or: all 8 are cut at the output limit. The run stops, 8 replies poorer, and says which limit to raise.
    """

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._places: dict[str, asyncio.Semaphore] = {}
        self._faults: dict[str, Counter[str]] = {}
        self._passed: set[str] = set()

    def passed(self, step: str) -> bool:
        """Whether a reply of this step could be used in this run."""
        return step in self._passed

    async def enter(self, step: str) -> bool:
        """Waits for a place among the first requests of a step; returns whether one is held, for `leave`."""
        if step in self._passed:
            return False
        places = self._places.setdefault(step, asyncio.Semaphore(HANDFUL))
        await places.acquire()
        if step in self._passed:
            places.release()  # wakes the next one who waited for the trial's end
            return False
        return True

    def leave(self, step: str) -> None:
        """Gives a place back."""
        self._places[step].release()

    def judge(self, step: str, fault: str, remedy: str) -> None:
        """Counts a reply by its fault ("" = it can be used); the last of a handful of unusable ones stops the run."""
        if step in self._passed:
            return
        if not fault:
            self._passed.add(step)
            return
        faults = self._faults.setdefault(step, Counter())
        faults[fault] += 1
        if faults.total() >= HANDFUL:
            counted = ", ".join(f"{name} {number}" for name, number in faults.most_common())
            self._pacer.stop(
                HuatuoError(
                    f"not one of the first {faults.total()} replies to the {step} step can be used ({counted}), so the run stops "
                    f"before it buys more: {remedy}; every reply is kept: then give the same command again"
                )
            )
