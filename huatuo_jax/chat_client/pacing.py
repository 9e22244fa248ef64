"""When the next request may go out: requests per minute, pauses that the endpoint asks for, backoff, and an order to stop."""

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping

from huatuo_jax.errors import HuatuoError

FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0
LONGEST_PAUSE = 3600.0
"""Seconds; an endpoint that asks for a longer pause ends the run."""


class Pacer:
    """Spaces the requests of all workers, and wakes them when the run stops.

    Attributes:
      stopping: the error to end with once no request is in flight; None while the run goes on.
      scale: multiplies the backoff (tests make it small).
    """

    def __init__(self, requests_per_minute: float | None = None, scale: float = 1.0) -> None:
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._paused_until = 0.0
        self._stop = asyncio.Event()
        self.stopping: HuatuoError | None = None
        self.scale = scale

    def stop(self, error: HuatuoError) -> None:
        """No request goes out any more; the first error given is the one that counts."""
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
            now = time.monotonic()
            at = max(self._next, now)
            self._next = at + self._interval
            if at > now:
                await self.sleep(at - now)
                if self.paused_for:
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
        return self.scale * min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(retry, 30)) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks to wait: `retry-after-ms`, else `Retry-After` in seconds or as a date; None if nothing."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        text = headers.get("retry-after")
        if not text:
            return None
        if text.strip().replace(".", "", 1).isdigit():
            return float(text)
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
