"""Keeps replies for good: an SQLite file whose every commit is on the disk before its call counts as made.

A run that stops anywhere is continued by asking the ledger first: what `find` returns is durable. Replies that arrive together
share one commit, written by a thread of its own: one wait for the disk a call would limit a run to some hundred calls a second.

    event loop      put(a) put(b) put(c)   waits   put(d)   waits
    writer thread         BEGIN a b c COMMIT             BEGIN d COMMIT

A reply stands under what the model saw: prompt, model and settings, and the round and attempt, for a text that a rule rejected is
asked for again. What it is about (`item`, `step`) is written beside it for whoever looks into the file, and identifies nothing.
Besides the replies the file holds sums over all runs (`totals`), from which the budget starts, and marks that runs leave for
later ones. Its tables and keys are a contract with files that users have: a change needs a new SCHEMA, and a way from the last.
Next to read: `calls.py` (what a key is), `client.py` (who puts replies here).
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huatuo_jax.chat_client.calls import CUT, WHOLE, Call, Generation, Reply, Usage
from huatuo_jax.config import require
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import locked

APPLICATION, SCHEMA = 0x68756174, 2  # "huat" in ASCII, so that SQLite files of other programs are told apart
# Replies stand in the order in which they came, which is that of the passages, and the key is an index of its own: hashes have no
# order, and rows of a kilobyte in theirs would be a page read and written anywhere for each call. `totals` are kept, for adding
# up ten million calls at every start would take minutes.
_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
  prompt BLOB, model TEXT, round INTEGER, attempt INTEGER, settings TEXT,
  max_new_tokens INTEGER NOT NULL, item TEXT NOT NULL, step TEXT NOT NULL,
  text TEXT NOT NULL, finish TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
  PRIMARY KEY (prompt, model, round, attempt, settings));
CREATE TABLE IF NOT EXISTS failures (
  item TEXT, step TEXT, reason TEXT, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS totals (
  name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
"""Marks are totals whose names begin with a dot."""
_FROM_1 = f"""
ALTER TABLE calls RENAME TO calls_1;
ALTER TABLE failures RENAME COLUMN passage TO item;
{_TABLES}
INSERT OR IGNORE INTO calls
  SELECT prompt, model, round, attempt, '', CASE WHEN lower(finish) IN {CUT} THEN output_tokens ELSE 0 END, passage, step,
  text, CASE WHEN lower(finish) IN {WHOLE} THEN 'stop' WHEN lower(finish) IN {CUT} THEN 'length' ELSE finish END,
  prompt_tokens, output_tokens FROM calls_1;
INSERT OR REPLACE INTO totals SELECT '.earlier', count(*) FROM calls;
DROP TABLE calls_1;
"""
"""From format 1, whose keys held the passage's id, and neither settings nor limit: its replies count under any settings (''), and
those that were cut count as cut at their own length, which was the limit. Of passages with the same prompt one reply stays."""
EARLIER = "earlier"
"""The mark of replies that an earlier version of this format wrote: their number."""
_ADD = "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"


@dataclass
class _Entry:
    """A statement with its values, what it adds to the totals, and a future that is done once both are durable."""

    statement: str
    values: tuple[Any, ...]
    totals: dict[str, int] = field(default_factory=dict)
    durable: Future[None] = field(default_factory=Future)


class Ledger:
    """The replies of all runs over one output; open in one process at a time, as a context manager.

    Attributes:
      commits: how many transactions were written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.commits = path, 0
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()

    def __enter__(self) -> "Ledger":
        """Opens the file, or creates it.

        Raises:
          ConfigError: another process has it open, or the file is something else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        busy = ConfigError(f"{self.path} is in use by another run; wait for it, or give another --ledger")
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.path.with_name(self.path.name + ".lock"), busy))
            try:
                self._reader = stack.enter_context(contextlib.closing(self._connect()))
                self._prepare()
            except sqlite3.DatabaseError as error:
                remedy = "if the disk is full, make room, else give another --ledger"
                raise ConfigError(f"{self.path} cannot be used as a ledger ({error}); {remedy}") from None
            # A daemon: a program that ends without leaving the context must not hang.
            writer = threading.Thread(target=self._write, name="ledger", daemon=True)
            writer.start()
            stack.callback(writer.join)
            stack.callback(self._queue.put, None)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Commits what is waiting and closes the file."""
        self._stack.close()

    def _connect(self) -> sqlite3.Connection:
        # Without an isolation level Python begins no transactions by itself: `_commit` says where they begin and end.
        connection = sqlite3.connect(self.path, isolation_level=None)
        # WAL + FULL: one fsync a commit, and a commit survives the loss of power, not only of the process.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _prepare(self) -> None:
        (application,) = self._reader.execute("PRAGMA application_id").fetchone()
        (schema,) = self._reader.execute("PRAGMA user_version").fetchone()
        (tables,) = self._reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        require(
            not tables or application == APPLICATION, f"{self.path} is an SQLite file of another program; give another --ledger"
        )
        known = not tables or schema in (1, SCHEMA)
        require(
            known, f"{self.path} has ledger format {schema}, this program reads 1 and {SCHEMA}; use the program that wrote it"
        )
        statements = _FROM_1 if tables and schema == 1 else _TABLES
        try:
            self._reader.executescript(
                f"BEGIN IMMEDIATE; {statements} PRAGMA application_id={APPLICATION}; PRAGMA user_version={SCHEMA}; COMMIT;"
            )
        except sqlite3.Error:
            self._reader.execute("ROLLBACK") if self._reader.in_transaction else None
            raise

    def find(self, call: Call, generation: Generation, cut: bool = False) -> Reply | None:
        """The durable reply to a call, if there is one.

        Args:
          cut: also a text that was cut at a smaller limit than today's.
        """
        # The reader is a connection of its own, so it sees nothing that is not committed yet.
        row = self._reader.execute(
            "SELECT text, finish, prompt_tokens, output_tokens, max_new_tokens FROM calls"
            " WHERE prompt=? AND model=? AND round=? AND attempt=? AND settings IN (?, '') ORDER BY settings DESC LIMIT 1",
            call.key(generation),
        ).fetchone()
        if row is None:
            return None
        reply = Reply(row[0], row[1], Usage(row[2], row[3]))
        return reply if cut or reply.serves(row[4], generation.max_new_tokens) else None

    async def put(self, call: Call, generation: Generation, reply: Reply) -> None:
        """Returns once the reply is durable.

        Raises:
          DataError: it cannot be written (a full disk, say).
        """
        used = reply.usage
        about = (generation.max_new_tokens, call.item, call.step)
        values = (*call.key(generation), *about, reply.text, reply.finish, used.prompt, used.output)
        totals = {
            "prompt_tokens": used.prompt,
            "output_tokens": used.output,
            f"{call.step}_calls": 1,
            f"{call.step}_prompt_tokens": used.prompt,
            f"{call.step}_output_tokens": used.output,
        }
        # REPLACE: a text that was cut is asked for again under a larger limit.
        await asyncio.wrap_future(self._add("INSERT OR REPLACE INTO calls VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", values, totals))

    def add_failure(self, call: Call, reason: str, used: Usage) -> None:
        """Notes a request that was sent and gave no usable reply; its (estimated) tokens count as spent."""
        values = (call.item, call.step, reason, used.prompt, used.output)
        totals = {"prompt_tokens": used.prompt, "output_tokens": used.output}
        self._add("INSERT INTO failures VALUES (?,?,?,?,?)", values, totals)

    def totals(self) -> Counter[str]:
        """Sums over all runs: prompt_tokens, output_tokens, and per step {step}_calls, {step}_prompt_tokens, …; and the marks."""
        return Counter(dict(self._reader.execute("SELECT name, value FROM totals")))

    def spent(self) -> Usage:
        """Tokens of all runs."""
        totals = self.totals()
        return Usage(totals["prompt_tokens"], totals["output_tokens"])

    def has_replies(self) -> bool:
        """Whether an endpoint has replied in any run."""
        return any(name.endswith("_calls") for name in self.totals())

    def mark(self, name: str) -> int:
        """A number that runs leave for later ones; 0 at first."""
        return self.totals()[f".{name}"]

    def set_mark(self, name: str, value: int) -> None:
        """Sets a mark and returns once it is durable."""
        self._add("INSERT OR REPLACE INTO totals VALUES (?, ?)", (f".{name}", value)).result()

    def _add(self, statement: str, values: tuple[Any, ...], totals: dict[str, int] | None = None) -> Future[None]:
        entry = _Entry(statement, values, totals or {})
        self._queue.put(entry)
        return entry.durable

    def _write(self) -> None:
        """The writer's thread: commits what waits, until the ledger is closed; after an error it commits nothing more."""
        failed: DataError | None = None
        with contextlib.closing(self._connect()) as connection:
            for batch in self._batches():
                # After an error nothing more is written: the run is ending, and every call that waits gets the same error.
                failed = failed or self._commit(connection, batch)
                for entry in batch:
                    if not entry.durable.set_running_or_notify_cancel():
                        continue  # the run is ending and nobody waits for this entry any more; it is durable all the same
                    if failed:
                        entry.durable.set_exception(failed)
                    else:
                        entry.durable.set_result(None)

    def _batches(self) -> Iterator[list[_Entry]]:
        """Everything that waits, at least one entry each time."""
        while first := self._queue.get():
            batch = [first]
            with contextlib.suppress(queue.Empty):
                while entry := self._queue.get_nowait():
                    batch.append(entry)
                self._queue.put(None)  # it was the end; the next turn of the outer loop has to see it again
            yield batch

    def _commit(self, connection: sqlite3.Connection, batch: list[_Entry]) -> DataError | None:
        """Writes a batch in one transaction; each total is changed once, by the sum over the batch."""
        totals: Counter[str] = Counter()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for entry in batch:
                connection.execute(entry.statement, entry.values)
                totals.update(entry.totals)
            connection.executemany(_ADD, totals.items())
            connection.execute("COMMIT")
            self.commits += 1
            return None
        # The others are values that SQLite cannot hold: if they ended this thread, the run would hang.
        except (sqlite3.Error, ValueError, OverflowError) as error:
            return DataError(
                f"{self.path} cannot be written ({error}); what it holds is whole: make room and give the same command again"
            )
