"""A job and its settings in, a finished report out: survey, forecast, calls with a live line, output; signals stop it cleanly."""

import asyncio
import contextlib
import glob
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.records.importing import Progress
from data_tools.unify.coverage import CoverageStatistics
from data_tools.unify.forecast import Forecast
from data_tools.unify.live import line, show
from data_tools.unify.pairs import rejected_path
from data_tools.unify.pipeline import FINISHED, Job, RunCounts, begin_round, call_all, report, survey, write_all
from huatuo_jax.chat_client.budget import Budget, Caps, Prices, Usage
from huatuo_jax.chat_client.client import ChatClient, ClientCounts, ClientSettings
from huatuo_jax.chat_client.ledger import Ledger
from huatuo_jax.chat_client.pacing import Pacer
from huatuo_jax.errors import StoppedError
from huatuo_jax.io.api_key import ApiKey


@dataclass(frozen=True)
class Session:
    """Everything that a run needs besides its passages.

    Attributes:
      retry_rejected: grant rejected passages another round of tries.
      finished_only: make no call; write what the ledger finishes, the rest is rejected as unfinished.
      backoff_scale: multiplies the waiting times between retries.
    """

    settings: ClientSettings
    caps: Caps
    ledger: Path
    requests_per_minute: float | None = None
    retry_rejected: bool = False
    finished_only: bool = False
    backoff_scale: float = 1.0


def estimate(job: Job, session: Session, on_read: Progress | None = None) -> dict[str, Any]:
    """The forecast alone; makes no call and no ledger."""
    forecast = Forecast(job.how, session.settings.max_output_tokens)
    survey(job, forecast, on_read)
    totals: dict[str, int] = {}
    if session.ledger.exists():
        with Ledger(session.ledger) as ledger:
            totals = ledger.totals()
    return forecast.report(totals, session.caps.prices, session.caps, session.requests_per_minute)


def run_session(
    job: Job, session: Session, key: ApiKey, console: Console, on_forecast: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], CoverageStatistics]:
    """Rewrites all passages and writes the pairs.

    Args:
      on_forecast: told what the run will take, before the first call.

    Returns:
      the report, and how much of the passages survives.

    Raises:
      StoppedError: a signal or the budget stopped it; the same command continues.
      HuatuoError: see `call_all`, `survey` and `write_all`.
    """
    forecast = Forecast(job.how, session.settings.max_output_tokens)
    survey(job, forecast)
    with Ledger(session.ledger) as ledger:
        _remove_remains(job.out)
        totals, prices = ledger.totals(), session.caps.prices
        on_forecast(forecast.report(totals, prices, session.caps, session.requests_per_minute))
        job = replace(job, how=begin_round(ledger, job.how, session.retry_rejected))
        client_counts: ClientCounts | None = None
        if not session.finished_only:
            client_counts = asyncio.run(_calls(job, session, key, console, ledger, forecast.passages.total()))
        writer, written = write_all(job, ledger)
        if not session.finished_only:
            ledger.set_mark(FINISHED, 1)
        totals = ledger.totals()
        cost = prices.cost(totals.get("prompt_tokens", 0), totals.get("output_tokens", 0)) if prices != Prices() else None
        return report(job, writer, written, ledger, client_counts, cost), writer.coverage


def _remove_remains(out: Path) -> None:
    """Removes what a killed run was about to write; the ledger's lock says that no other run is writing it."""
    for path in (out, rejected_path(out)):
        for aside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            aside.unlink(missing_ok=True)


async def _calls(job: Job, session: Session, key: ApiKey, console: Console, ledger: Ledger, total: int) -> ClientCounts:
    totals = ledger.totals()
    pacer = Pacer(session.requests_per_minute, session.backoff_scale)
    budget = Budget(session.caps, Usage(totals.get("prompt_tokens", 0), totals.get("output_tokens", 0)))
    counts = RunCounts(total)
    client = ChatClient(
        session.settings,
        key,
        pacer,
        budget,
        on_failure=lambda call, reason, used: ledger.add_failure(call, reason, used.prompt, used.output),
        answered_before=totals.get("question_calls", 0) > 0,
    )
    async with client:
        with _signals(pacer):
            shown = asyncio.create_task(show(console, lambda: line(counts, client)))
            try:
                await call_all(job, ledger, client, counts)
            finally:
                shown.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await shown
                console.print(line(counts, client))
    return client.counts


@contextlib.contextmanager
def _signals(pacer: Pacer) -> Any:
    """The first SIGINT or SIGTERM lets the requests in flight finish; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopping = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        pacer.stop(StoppedError("stopped by a signal; every answer is kept: the same command continues"))
        for number in stopping:
            loop.remove_signal_handler(number)

    for number in stopping:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in stopping:
            loop.remove_signal_handler(number)
