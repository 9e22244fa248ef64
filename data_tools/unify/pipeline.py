"""A run of `unify` with a language model, from the passages to the file of pairs; interrupted and continued at will.

  1. survey     reads everything once: unusable rows, the number of passages, the forecast;
  2. call_all   workers take passages in order, replay them from the ledger and ask the endpoint for what is missing;
  3. write_all  reads everything again, replays it from the ledger alone and writes pairs and rejects in input order.

What must hold: the same command after a kill repeats no call whose reply is durable, and writes the same bytes as a run that
nothing interrupted; memory does not grow with the corpus, for a worker holds one passage.
Next to read: `rewriting.py` (what is asked), `huatuo_jax/chat_client/client.py` (how), `pairs.py` (the output).
"""

import asyncio
import contextlib
import glob
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_tools.records.importing import RejectedLog, check_share
from data_tools.unify.filters import RecallStatistics
from data_tools.unify.forecast import Forecast
from data_tools.unify.pairs import PairWriter, check_paths, pair_writer, rejected_path
from data_tools.unify.passages import Passage, read_passages
from data_tools.unify.rewriting import UNFINISHED, Outcome, Rewriting, fault_of, rewrite
from huatuo_jax.chat_client.budget import Caps, Prices
from huatuo_jax.chat_client.calls import Call, Failed, Reply
from huatuo_jax.chat_client.client import ChatClient, ClientCounts, ClientSettings
from huatuo_jax.chat_client.ledger import EARLIER, Ledger
from huatuo_jax.chat_client.pacing import Pacer
from huatuo_jax.errors import ConfigError, DataError, HuatuoError, StoppedError
from huatuo_jax.io.api_key import ApiKey
from huatuo_jax.io.jsonl import write_lines

ROUND, FINISHED = "round", "finished"
"""Marks in the ledger: rounds of tries begun, and whether the last one's pairs are written."""
REFRESH, PLAIN_INTERVAL = 0.5, 30.0
"""Seconds between two lines about a run's state: on a terminal, and in a file or pipe."""


@dataclass(frozen=True)
class Job:
    """What to rewrite, how, by which endpoint, and for how much.

    Attributes:
      ledger: the file of replies.
      retry_rejected: grant rejected passages another round of tries.
      finished_only: make no call; write what the ledger finishes, the rest is rejected as unfinished.
    """

    paths: Sequence[Path]
    out: Path
    rewriting: Rewriting
    client: ClientSettings
    caps: Caps
    ledger: Path
    source: str | None = None
    max_rejected: float = 0.01
    retry_rejected: bool = False
    finished_only: bool = False


@dataclass
class RunCounts:
    """How far a run is, for the live line and the report.

    Attributes:
      replayed: passages for which nothing had to be asked.
      rejects: passages by the reason that ended them; tries: rejected texts by step and reason.
    """

    total: int = 0
    done: int = 0
    replayed: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """Counts what became of a passage."""
        self.tries.update(f"{one.step}:{one.reason}" for one in outcome.tries if one.reason)
        if outcome.pair is None:
            self.rejects[outcome.reason or ""] += 1


def estimate(job: Job) -> dict[str, Any]:
    """The forecast alone; makes no call and no ledger."""
    forecast, totals = survey(job), Counter[str]()
    if job.ledger.exists():
        with Ledger(job.ledger) as ledger:
            totals = ledger.totals()
    return forecast.report(totals, job.caps, job.client.requests_per_minute)


def run(
    job: Job, key: ApiKey, console: Console, on_forecast: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], RecallStatistics]:
    """Rewrites all passages and writes the pairs.

    Args:
      on_forecast: called with what the run will take, before the first call.

    Returns:
      the report, and how much of the passages survives.

    Raises:
      StoppedError: a signal or the budget stopped it; the same command continues.
      HuatuoError: see `call_all`, `survey` and `write_all`.
    """
    forecast = survey(job)
    # From here to the end no other process can work on this ledger, so the output is this process's alone too.
    with Ledger(job.ledger) as ledger:
        _remove_remains(job.out)
        on_forecast(forecast.report(ledger.totals(), job.caps, job.client.requests_per_minute))
        job = replace(job, rewriting=replace(job.rewriting, rounds=begin_round(ledger, job.retry_rejected)))
        if ledger.mark(EARLIER):
            console.print(earlier_replies(job, ledger, forecast.passages))
        client_counts = None if job.finished_only else asyncio.run(_calls(job, key, console, ledger, forecast.passages))
        try:
            writer, written = write_all(job, ledger)
        except DataError:  # not one pair: the round is finished all the same, and `--retry-rejected` begins the next one
            _end_round(job, ledger)
            raise
        _end_round(job, ledger)
        return report(job, writer, written, ledger, client_counts), writer.recalls


def survey(job: Job) -> Forecast:
    """Reads every passage and forecasts the run, before any money is spent.

    Raises:
      ConfigError: a file is missing or given twice, or is the output.
      DataError: nothing to read, torn files, or too many rows are no passages; they are listed beside the output then.
    """
    check_paths(job.paths, job.out)
    forecast, rejected, listed = Forecast(job.rewriting, job.client.max_new_tokens), RejectedLog(), rejected_path(job.out)
    for passage in read_passages(job.paths, job.source, rejected):
        forecast.add(passage)
    try:
        check_share(rejected, forecast.passages, job.max_rejected, listed)
    except DataError:
        # The list of an earlier run stays until there is something to complain of.
        with write_lines(listed) as lines:
            for _ in read_passages(job.paths, job.source, RejectedLog(lines)):
                pass
        raise
    return forecast


def _remove_remains(out: Path) -> None:
    """Removes what a killed run was about to write; the caller holds the ledger, so no other run is writing it."""
    for path in (out, rejected_path(out)):
        for aside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            aside.unlink(missing_ok=True)


def begin_round(ledger: Ledger, retry_rejected: bool) -> int:
    """The rounds of tries that passages have in this run; `--retry-rejected` adds one.

    A round that did not finish is continued, so that an interrupted `--retry-rejected` is not granted twice.

    Raises:
      ConfigError: there is no finished run whose rejects could be tried again.
    """
    # Marks after …        the first run: round 1, finished 1;  --retry-rejected, killed: round 2, finished 0;
    # the same line again: round 2 goes on (finished is 0);     a third time: round 3.
    rounds = ledger.mark(ROUND)
    if retry_rejected and not rounds:
        raise ConfigError(f"--retry-rejected: {ledger.path} holds no run yet; start without it")
    if not rounds or (retry_rejected and ledger.mark(FINISHED)):
        rounds += 1
        ledger.set_mark(FINISHED, 0)
        ledger.set_mark(ROUND, rounds)
    return rounds


def _end_round(job: Job, ledger: Ledger) -> None:
    if not job.finished_only:
        ledger.set_mark(FINISHED, 1)
        ledger.set_mark(EARLIER, 0)


def earlier_replies(job: Job, ledger: Ledger, passages: int) -> str:
    """What is bought although a ledger of an earlier version is there: texts are read better today, so some prompts differ."""
    needed = sum(
        isinstance(_begun(job, passage, ledger)[1], Call) for passage in read_passages(job.paths, job.source, RejectedLog())
    )
    return (
        f"{job.ledger} holds {ledger.mark(EARLIER):,} replies of an earlier version, which noted no sampling settings: they "
        f"count for any. With them {passages - needed:,} of {passages:,} passages need no call; {needed:,} need one or more"
    )


async def _calls(job: Job, key: ApiKey, console: Console, ledger: Ledger, total: int) -> ClientCounts:
    """`call_all` with a line that shows its state, and signals that stop it."""
    counts = RunCounts(total)
    judge = lambda call, reply: fault_of(reply, call.step, job.rewriting, job.client.max_new_tokens)
    async with ChatClient(job.client, job.caps, key, ledger, judge) as client:
        with _signals_stop(client.pacer):
            shown = asyncio.create_task(_show(console, lambda: state_line(counts, client)))
            # The last line is printed however the run ends: it says what a stopped run has done.
            try:
                await call_all(job, ledger, client, counts)
            finally:
                shown.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await shown
                console.print(state_line(counts, client))
    return client.counts


async def call_all(job: Job, ledger: Ledger, client: ChatClient, counts: RunCounts) -> None:
    """Makes every call whose reply is not durable yet.

    Raises:
      HuatuoError: the run stopped early; all requests in flight were awaited and their replies kept.
    """
    # All workers take from one reader, so passages are begun in order. Rows that are no passages were counted by the survey.
    passages = read_passages(job.paths, job.source, RejectedLog())

    async def work() -> None:
        for passage in passages:
            if client.pacer.stopping:
                return
            await _rewrite_one(job, passage, ledger, client, counts)
            counts.done += 1

    async def worker() -> None:
        # An error ends the run and not the other workers, so that no reply is lost that is paid for already.
        try:
            await work()
        except HuatuoError as error:
            client.pacer.stop(error)
        except Exception as error:
            client.pacer.stop(HuatuoError(f"internal error ({type(error).__name__}); every answer so far is kept"))
            raise

    # No task group: that would cancel the requests in flight when one worker fails.
    results = await asyncio.gather(*(worker() for _ in range(job.client.concurrency)), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    client.pacer.check()


async def _rewrite_one(job: Job, passage: Passage, ledger: Ledger, client: ChatClient, counts: RunCounts) -> None:
    """Drives one passage to its outcome, its replies durable; a call that fails for good leaves it unfinished."""
    steps, step = _begun(job, passage, ledger)
    if not isinstance(step, Call):
        counts.replayed += 1
        await asyncio.sleep(0)  # lets the live line and signals have their turn: a replayed passage waits for nothing itself
    # From here on every reply comes from the endpoint, but for calls that a passage with the same text has made meanwhile.
    try:
        while isinstance(step, Call):
            step = _replay(steps, job, ledger, await client.ask(step))
        counts.add(step)
    except Failed:
        counts.rejects[UNFINISHED] += 1


Steps = Generator[Call, Reply, Outcome]


def _begun(job: Job, passage: Passage, ledger: Ledger) -> tuple[Steps, Call | Outcome]:
    """A passage's steps, and how far the ledger brings them: to the outcome, or to the first call that it lacks."""
    steps = rewrite(passage, job.rewriting)
    step = _replay(steps, job, ledger)
    # What is lacking may be a text that was cut under a smaller limit. Where a later try gave a pair all the same, it stands.
    if isinstance(step, Call) and ledger.find(step, job.client.generation, cut=True):
        outcome = _replay(rewrite(passage, job.rewriting), job, ledger, cut=True)
        step = outcome if isinstance(outcome, Outcome) and outcome.pair else step
    return steps, step


def _replay(steps: Steps, job: Job, ledger: Ledger, reply: Reply | None = None, cut: bool = False) -> Call | Outcome:
    """Goes on from `reply` (None: from the start) with what the ledger holds: to the outcome, or a call that it lacks."""
    generation = job.client.generation
    try:
        call = next(steps) if reply is None else steps.send(reply)
        while (reply := ledger.find(call, generation, cut)) is not None:
            call = steps.send(reply)
        return call
    except StopIteration as end:
        return end.value


def write_all(job: Job, ledger: Ledger) -> tuple[PairWriter, RunCounts]:
    """Writes pairs and rejects from the ledger alone, in input order, each passage exactly once.

    Raises:
      DataError: not one passage has a pair; the list of rejects is written then.
    """
    counts = RunCounts()

    def check(writer: PairWriter) -> None:
        if not writer.sources:
            reasons = ", ".join(f"{name} {count:,}" for name, count in counts.rejects.most_common(5))
            listed = rejected_path(job.out)
            remedy = "correct the cause, or let --retry-rejected ask for other texts"
            raise DataError(f"not one of {counts.done:,} passages has a pair ({reasons}); their texts are in {listed}: {remedy}")

    with pair_writer(job.out, check) as writer:
        for passage in read_passages(job.paths, job.source, writer.rejected):
            outcome = _begun(job, passage, ledger)[1]
            if isinstance(outcome, Call):  # a call that failed for good, or `--finished-only`
                outcome = Outcome(None, UNFINISHED)
            counts.add(outcome)
            counts.done += 1
            if outcome.pair:
                writer.pair(passage, *outcome.pair)
            else:
                writer.reject(passage, outcome.reason, [asdict(one) for one in outcome.tries])
    return writer, counts


def report(job: Job, writer: PairWriter, written: RunCounts, ledger: Ledger, client: ClientCounts | None) -> dict[str, Any]:
    """The figures of a finished run as JSON values; spent tokens are those of all runs of the ledger."""
    # Whoever finds the pairs in a year can see from this how they were made.
    spent, prices, filters = ledger.spent(), job.caps.prices, job.rewriting.filters
    cost = prices.cost(spent) if prices != Prices() else None
    return {
        "rows": written.done + writer.rejected.count,
        "records": writer.sources.total(),
        "sources": dict(writer.sources),
        "rejected": writer.rejected.count + written.rejects.total(),
        "rows_without_passage": writer.rejected.count,
        "rejected_passages": dict(written.rejects.most_common()),
        "rejected_tries": dict(written.tries.most_common()),
        "coverage": writer.recalls.report(),
        "model": job.client.model,
        "generation": {"max_new_tokens": job.client.max_new_tokens, **json.loads(job.client.generation.settings)},
        "prompts": job.rewriting.prompts.to_json(),
        "filters": sorted(filters.enabled),
        "limits": asdict(filters.limits),
        "accept_finish": sorted(job.rewriting.accept_finish),
        "language": job.rewriting.language,
        "tries": job.rewriting.tries,
        "spent": {"prompt_tokens": spent.prompt, "output_tokens": spent.output, "cost": cost},
        "client": client.report() if client else None,
        "out": str(job.out),
    }


@contextlib.contextmanager
def _signals_stop(pacer: Pacer) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets the requests in flight finish; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as handlers:

        def stop() -> None:
            pacer.stop(StoppedError("stopped by a signal; every answer is kept: the same command continues"))
            handlers.close()  # gives a second signal its usual meaning back

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
            handlers.callback(loop.remove_signal_handler, number)
        yield


def state_line(counts: RunCounts, client: ChatClient, now: float | None = None) -> str:
    """The state of a run in one line: done, rate, cost, time left, rejects by reason."""
    seconds = max(1e-9, (time.monotonic() if now is None else now) - counts.started)
    asked, left = counts.done - counts.replayed, counts.total - counts.done
    share = counts.done / max(1, counts.total)
    parts = [
        f"{counts.done:,}/{counts.total:,} passages ({share:.1%})",
        f"{client.counts.replies / seconds:,.1f} calls/s",
        f"{client.budget.spent.total:,} tokens",
    ]
    if client.budget.cost:
        parts.append(f"cost {client.budget.cost:,.2f}")
    if asked and left > 0:
        # Passages that were replayed took no time, those that are left will.
        hours, rest = divmod(round(left * seconds / asked), 3600)
        parts.append(f"ETA {hours}:{rest // 60:02}:{rest % 60:02}")
    if client.pacer.paused_for > 1:
        parts.append(f"paused by the endpoint for {client.pacer.paused_for:.0f} s")
    for name, numbers in (("rejects", counts.rejects), ("failed requests", client.counts.failures)):
        if numbers:
            parts.append(f"{name}: " + ", ".join(f"{reason} {number:,}" for reason, number in numbers.most_common(4)))
    return " · ".join(parts)


async def _show(console: Console, text: Callable[[], str]) -> None:
    """Shows the line until cancelled: renewed in place on a terminal, appended now and then elsewhere."""
    if not console.is_terminal:
        # Two lines a second would fill a log file; a run may take days.
        while True:
            await asyncio.sleep(PLAIN_INTERVAL)
            console.print(text())
    with Live(Text(text()), console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(text()), refresh=True)
            await asyncio.sleep(REFRESH)
