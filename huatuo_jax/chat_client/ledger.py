"""Answers in, and kept for good: an SQLite file whose every commit is on the disk before its call counts as made.

Answers that arrive together share one commit (group commit), written by a thread of its own. Readers see committed rows only, so
what `find` returns is durable. The key of an answer is passage, step, round, attempt, hash of the prompt, and model.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huatuo_jax.chat_client.calls import Answer, Call
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import locked

APPLICATION, SCHEMA = 0x68756174, 1
_TABLES = """
CREATE TABLE IF NOT EXISTS calls (
  passage TEXT, step TEXT, round INTEGER, attempt INTEGER, prompt BLOB, model TEXT,
  text TEXT NOT NULL, finish TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
  PRIMARY KEY (passage, step, round, attempt, prompt, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failures (
  passage TEXT, step TEXT, reason TEXT, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS totals (
  name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_ADD = "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
Statement = tuple[str, tuple[Any, ...]]


@dataclass
class _Item:
    """Statements that belong together, and what to call (in the writer's thread) once they are durable or have failed."""

    statements: list[Statement]
    finished: Callable[[BaseException | None], None] | None = None


@dataclass
class Ledger:
    """The answers of all runs over one output; open in one process at a time.

    Attributes:
      commits: how many transactions were written.
    """

    path: Path
    commits: int = 0
    _queue: "queue.SimpleQueue[_Item | None]" = field(default_factory=queue.SimpleQueue)
    _failed: BaseException | None = None

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
                self._reader = self._connect()
                self._prepare()
            except sqlite3.DatabaseError as error:
                remedy = "if the disk is full, make room, else give another --ledger"
                raise ConfigError(f"{self.path} cannot be used as a ledger ({error}); {remedy}") from None
            self._lock = stack.pop_all()
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Commits what is waiting and closes the file."""
        self._queue.put(None)
        self._writer.join()
        self._reader.close()
        self._lock.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        # WAL + FULL: one fsync a commit, and a commit survives the loss of power, not only of the process.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _prepare(self) -> None:
        (application,) = self._reader.execute("PRAGMA application_id").fetchone()
        (schema,) = self._reader.execute("PRAGMA user_version").fetchone()
        (tables,) = self._reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION:
            raise ConfigError(f"{self.path} is an SQLite file of another program; give another --ledger")
        if tables and schema != SCHEMA:
            raise ConfigError(f"{self.path} has ledger format {schema}, this program writes {SCHEMA}; give another --ledger")
        self._reader.executescript(f"BEGIN; PRAGMA application_id={APPLICATION}; PRAGMA user_version={SCHEMA}; {_TABLES} COMMIT;")

    def find(self, call: Call, model: str) -> Answer | None:
        """The durable answer of a call, if there is one."""
        row = self._reader.execute(
            "SELECT text, finish, prompt_tokens, output_tokens FROM calls"
            " WHERE passage=? AND step=? AND round=? AND attempt=? AND prompt=? AND model=?",
            _key(call, model),
        ).fetchone()
        return None if row is None else Answer(*row)

    async def put(self, call: Call, model: str, answer: Answer) -> None:
        """Returns once the answer is durable.

        Raises:
          DataError: it cannot be written (a full disk, say).
        """
        loop = asyncio.get_running_loop()
        durable: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if durable.done():
                return
            durable.set_exception(error) if error else durable.set_result(None)

        def finished(error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
                loop.call_soon_threadsafe(settle, error)

        values = (answer.text, answer.finish, answer.prompt_tokens, answer.output_tokens)
        statements: list[Statement] = [
            ("INSERT OR REPLACE INTO calls VALUES (?,?,?,?,?,?,?,?,?,?)", (*_key(call, model), *values))
        ]
        totals = {
            "prompt_tokens": answer.prompt_tokens,
            "output_tokens": answer.output_tokens,
            f"{call.step}_calls": 1,
            f"{call.step}_prompt_tokens": answer.prompt_tokens,
            f"{call.step}_output_tokens": answer.output_tokens,
        }
        statements += [(_ADD, item) for item in totals.items()]
        self._queue.put(_Item(statements, finished))
        await durable

    def add_failure(self, call: Call, reason: str, prompt_tokens: int, output_tokens: int) -> None:
        """Notes a request that was sent and gave no usable answer; its (estimated) tokens count as spent."""
        row = (call.passage, call.step, reason, prompt_tokens, output_tokens)
        totals = [(_ADD, ("prompt_tokens", prompt_tokens)), (_ADD, ("output_tokens", output_tokens))]
        self._queue.put(_Item([("INSERT INTO failures VALUES (?,?,?,?,?)", row), *totals]))

    def totals(self) -> dict[str, int]:
        """Sums over all runs: prompt_tokens, output_tokens, and per step {step}_calls, {step}_prompt_tokens, …"""
        return dict(self._reader.execute("SELECT name, value FROM totals WHERE name NOT LIKE '.%'"))

    def mark(self, name: str) -> int:
        """A number that runs leave for later ones; 0 at first."""
        row = self._reader.execute("SELECT value FROM totals WHERE name=?", (f".{name}",)).fetchone()
        return row[0] if row else 0

    def set_mark(self, name: str, value: int) -> None:
        """Sets a mark and returns once it is durable."""
        done, errors = threading.Event(), []

        def finished(error: BaseException | None) -> None:
            errors.append(error)
            done.set()

        self._queue.put(_Item([("INSERT OR REPLACE INTO totals VALUES (?, ?)", (f".{name}", value))], finished))
        done.wait()
        if errors[0]:
            raise errors[0]

    def _write(self) -> None:
        connection = self._connect()
        try:
            while batch := self._batch():
                error = self._failed or self._commit(connection, batch)
                self._failed = error
                for item in batch:
                    if item.finished:
                        item.finished(error)
        finally:
            connection.close()

    def _batch(self) -> list[_Item]:
        """Everything that waits, at least one; empty at the end."""
        first = self._queue.get()
        batch = [first] if first else []
        with contextlib.suppress(queue.Empty):
            while batch:
                item = self._queue.get_nowait()
                if item is None:
                    self._queue.put(None)
                    break
                batch.append(item)
        return batch

    def _commit(self, connection: sqlite3.Connection, batch: list[_Item]) -> BaseException | None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement, values in _statements(batch):
                connection.execute(statement, values)
            connection.execute("COMMIT")
            self.commits += 1
            return None
        except sqlite3.Error as error:
            return DataError(
                f"{self.path} cannot be written ({error}); what it holds is whole: make room and give the same command again"
            )


def _statements(batch: list[_Item]) -> Iterator[Statement]:
    """The statements of a batch, its additions to each total summed: a thousand answers touch a handful of sums once."""
    sums: dict[str, int] = {}
    for item in batch:
        for statement, values in item.statements:
            if statement is _ADD:
                sums[values[0]] = sums.get(values[0], 0) + values[1]
            else:
                yield statement, values
    for total in sums.items():
        yield _ADD, total


def _key(call: Call, model: str) -> tuple[str, str, int, int, bytes, str]:
    return call.passage, call.step, call.round, call.attempt, call.prompt_hash, model
