"""A run's counts in, one line out, over and over: done, rate, cost, time left, rejects by reason."""

import asyncio
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_tools.unify.pipeline import RunCounts
from huatuo_jax.chat_client.client import ChatClient

REFRESH, PLAIN_INTERVAL = 0.5, 30.0
"""Seconds between two lines: on a terminal, and in a file or pipe."""


def line(counts: RunCounts, client: ChatClient, now: float | None = None) -> str:
    """The state of a run in one line."""
    seconds = max(1e-9, (time.monotonic() if now is None else now) - counts.started)
    asked = counts.done - counts.replayed
    share = counts.done / max(1, counts.total)
    parts = [f"{counts.done:,}/{counts.total:,} passages ({share:.1%})", f"{client.counts.answers / seconds:,.1f} calls/s"]
    spent = client.budget.spent
    parts.append(f"{spent.prompt + spent.output:,} tokens")
    if client.budget.cost:
        parts.append(f"cost {client.budget.cost:,.2f}")
    if asked and counts.total > counts.done:
        parts.append(f"ETA {_duration((counts.total - counts.done) * seconds / asked)}")
    if client.pacer.paused_for > 1:
        parts.append(f"paused by the endpoint for {client.pacer.paused_for:.0f} s")
    if counts.rejects:
        parts.append("rejects: " + _named(counts.rejects.most_common(4)))
    if client.counts.failures:
        parts.append("failed requests: " + _named(client.counts.failures.most_common(4)))
    return " · ".join(parts)


async def show(console: Console, text: Callable[[], str]) -> None:
    """Shows the line until cancelled: renewed in place on a terminal, appended now and then elsewhere."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(PLAIN_INTERVAL)
            console.print(text())
    with Live(Text(text()), console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(text()), refresh=True)
            await asyncio.sleep(REFRESH)


def _named(counts: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
