"""Passages and a ledger in, all answers in the ledger and then the file of pairs out; interrupted and continued at will.

  1. survey    reads everything once: unusable rows, the number of passages, the forecast;
  2. call_all  workers take passages in order, replay them from the ledger and ask the endpoint for what is missing;
  3. write_all reads everything again, replays it from the ledger alone and writes pairs and rejects in input order.

Memory does not grow with the corpus: a worker holds one passage.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.records.importing import Progress, RejectedLog, check_share
from data_tools.unify.forecast import Forecast
from data_tools.unify.pairs import PairWriter, check_paths, pair_writer, rejected_path
from data_tools.unify.passages import Passage, read_passages
from data_tools.unify.rewriting import UNFINISHED, Outcome, Rewriting, rewrite
from huatuo_jax.chat_client.calls import Failed
from huatuo_jax.chat_client.client import ChatClient, ClientCounts
from huatuo_jax.chat_client.ledger import Ledger
from huatuo_jax.errors import ConfigError, DataError, HuatuoError
from huatuo_jax.io.files import written_aside

ROUND, FINISHED = "round", "finished"
"""Marks in the ledger: rounds of tries begun, and whether the last one's pairs are written."""
FAILED_IN_A_ROW = 20
"""Calls that fail after all their retries, without one success between, before the run stops."""


@dataclass(frozen=True)
class Job:
    """What to rewrite, and how."""

    paths: Sequence[Path]
    out: Path
    how: Rewriting
    model: str
    source: str | None = None
    max_rejected: float = 0.01


@dataclass
class RunCounts:
    """How far a run is, for the live line and the report."""

    total: int = 0
    done: int = 0
    replayed: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    failures_in_a_row: int = 0
    started: float = field(default_factory=time.monotonic)


def survey(job: Job, forecast: Forecast, on_read: Progress | None = None) -> None:
    """Adds every passage to the forecast, before any money is spent.

    Raises:
      ConfigError: a file is missing or given twice, or is the output.
      DataError: nothing to read, torn files, or too many rows are no passages; they are listed beside the output then.
    """
    check_paths(job.paths, job.out)
    rejected = _add_all(job, forecast, Path(os.devnull), on_read)
    listed = rejected_path(job.out)
    try:
        check_share(rejected, forecast.passages.total(), job.max_rejected, listed)
    except DataError:
        with written_aside(listed) as aside:
            _add_all(job, None, aside)
        raise


def _add_all(job: Job, forecast: Forecast | None, listed: Path, on_read: Progress | None = None) -> RejectedLog:
    """Reads every row: passages go to the forecast, the others to the list."""
    with open(listed, "w", encoding="utf-8") as file:
        rejected = RejectedLog(file)
        for row in read_passages(job.paths, job.source, on_read):
            if row.passage is None:
                row.reject(rejected)
            elif forecast is not None:
                forecast.add(row.passage)
    return rejected


def begin_round(ledger: Ledger, how: Rewriting, retry_rejected: bool) -> Rewriting:
    """The rewriting with as many rounds as the ledger has seen; one more if rejects are to be tried again.

    A round that was begun and not finished is continued, so that an interrupted `--retry-rejected` is not granted twice.

    Raises:
      ConfigError: there is no finished run whose rejects could be tried again.
    """
    begun = ledger.mark(ROUND)
    if retry_rejected and not begun:
        raise ConfigError(f"--retry-rejected: {ledger.path} holds no run yet; start without it")
    if not begun or (retry_rejected and ledger.mark(FINISHED)):
        begun += 1
        ledger.set_mark(FINISHED, 0)
        ledger.set_mark(ROUND, begun)
    return replace(how, rounds=begun)


async def call_all(job: Job, ledger: Ledger, client: ChatClient, counts: RunCounts) -> None:
    """Makes every call whose answer is not durable yet.

    Raises:
      HuatuoError: the run stopped early; all requests in flight were awaited and their answers kept.
    """
    rows = read_passages(job.paths, job.source)
    in_flight: set[tuple[str, str, str, str]] = set()

    async def work() -> None:
        for row in rows:
            passage = row.passage
            if client.pacer.stopping:
                return
            if passage is None:
                continue
            identity = (passage.source, passage.id, passage.title, passage.text)
            if identity in in_flight:  # the very same row again: one set of answers serves both
                counts.done += 1
                continue
            in_flight.add(identity)
            try:
                await _rewrite_one(job, passage, ledger, client, counts)
            finally:
                in_flight.discard(identity)
            counts.done += 1

    async def guarded() -> None:
        try:
            await work()
        except HuatuoError as error:
            client.pacer.stop(error)
        except Exception as error:
            client.pacer.stop(HuatuoError(f"internal error ({type(error).__name__}); every answer so far is kept"))
            raise

    workers = [asyncio.create_task(guarded()) for _ in range(client.settings.concurrency)]
    results = await asyncio.gather(*workers, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    client.pacer.check()


async def _rewrite_one(job: Job, passage: Passage, ledger: Ledger, client: ChatClient, counts: RunCounts) -> None:
    """Drives one passage to its outcome, its answers durable; a call that fails for good leaves it unfinished."""
    steps = rewrite(passage, job.how)
    asked = False
    try:
        call = next(steps)
        while True:
            answer = ledger.find(call, job.model)
            if answer is None:
                asked = True
                answer = await client.answer(call, call.identity(job.model))
                await ledger.put(call, job.model, answer)
                counts.failures_in_a_row = 0
            call = steps.send(answer)
    except StopIteration as end:
        _count(end.value, counts)
    except Failed as failed:
        counts.rejects[UNFINISHED] += 1
        counts.failures_in_a_row += 1
        if counts.failures_in_a_row >= FAILED_IN_A_ROW:
            raise HuatuoError(
                f"{counts.failures_in_a_row} calls in a row failed after all their tries, the last because {failed.message}; "
                "every answer so far is kept: mend it and give the same command again"
            ) from None
    if not asked:
        counts.replayed += 1
        await asyncio.sleep(0)


def _count(outcome: Outcome, counts: RunCounts) -> None:
    for one in outcome.tries:
        if one.reason:
            counts.tries[f"{one.step}:{one.reason}"] += 1
    if outcome.pair is None:
        counts.rejects[outcome.reason or ""] += 1


def write_all(job: Job, ledger: Ledger, on_read: Progress | None = None) -> tuple[PairWriter, RunCounts]:
    """Writes pairs and rejects from the ledger alone, in input order, each passage exactly once.

    Raises:
      DataError: not one passage has a pair; the list of rejects is written then.
    """
    counts = RunCounts()
    with pair_writer(job.out, lambda writer: _check_any(writer, counts, rejected_path(job.out))) as writer:
        for row in read_passages(job.paths, job.source, on_read):
            if row.passage is None:
                row.reject(writer.rejected)
                continue
            outcome = _replay(row.passage, job, ledger)
            _count(outcome, counts)
            counts.done += 1
            if outcome.pair is not None:
                writer.pair(row.passage, *outcome.pair)
            else:
                writer.reject(_reject_row(row.path, row.line, row.passage, outcome))
    return writer, counts


def _check_any(writer: PairWriter, counts: RunCounts, listed: Path) -> None:
    if not writer.sources:
        reasons = ", ".join(f"{name} {count:,}" for name, count in counts.rejects.most_common(5))
        raise DataError(f"not one of {counts.done:,} passages has a pair ({reasons}); their texts are in {listed}")


def _replay(passage: Passage, job: Job, ledger: Ledger) -> Outcome:
    """The outcome of a passage by what the ledger holds."""
    steps = rewrite(passage, job.how)
    try:
        call = next(steps)
        while (answer := ledger.find(call, job.model)) is not None:
            call = steps.send(answer)
        return Outcome(None, UNFINISHED)
    except StopIteration as end:
        return end.value


def _reject_row(path: Path, line: int | None, passage: Passage, outcome: Outcome) -> dict[str, Any]:
    tries = [{"step": one.step, "text": one.text, "reason": one.reason} for one in outcome.tries]
    texts = {"id": passage.id, "source": passage.source, "title": passage.title, "text": passage.text, "tries": tries}
    return {"file": str(path), "line": line, "reason": outcome.reason} | texts


def report(
    job: Job, writer: PairWriter, written: RunCounts, ledger: Ledger, client: ClientCounts | None, cost: float | None
) -> dict[str, Any]:
    """The figures of a finished run as JSON values; spent tokens are those of all runs of the ledger."""
    totals = ledger.totals()
    return {
        "records": writer.sources.total(),
        "sources": dict(writer.sources),
        "rejected": writer.rejected.count + written.rejects.total(),
        "rows_without_passage": writer.rejected.count,
        "rejected_passages": dict(written.rejects.most_common()),
        "rejected_tries": dict(written.tries.most_common()),
        "coverage": writer.coverage.report(),
        "model": job.model,
        "prompts": job.how.prompts.to_json(),
        "filters": sorted(job.how.filters.enabled),
        "limits": asdict(job.how.filters.limits),
        "language": job.how.spoken,
        "tries": job.how.tries,
        "spent": {"prompt_tokens": totals.get("prompt_tokens", 0), "output_tokens": totals.get("output_tokens", 0), "cost": cost},
        "client": client.report() if client else None,
        "out": str(job.out),
    }
