"""The one pool of resumable tasks: each task runs once, in this process, in worker processes, or as Ray tasks.

`data_tools.collect` and `data_tools.tokens` cut their work into tasks, one output file each, and agree with this module on
*markers*: a task writes its output aside, renames it, and writes a small marker file last, which holds a key made of its inputs
and settings. The caller asks `run_tasks` only for the tasks whose marker is missing or has another key. What must hold:

- a task may be killed at any moment and be run again: an output without its marker counts as not written;
- a rerun of the same command does only what is left;
- the engine and the number of workers change no byte of what is written.

A task may write the same bytes twice, but must never depend on another task of the same call. Next to read: a caller, such as
`data_tools/tokens/build.py`.
"""

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

from huatuo_jax.errors import ConfigError, DataError

ENGINES = ("processes", "ray")
MAX_LOST = 3
"""Pools that lost a worker (the kernel kills the largest process when memory is short) and are replaced by a new one."""
POLL_SECONDS = 0.2

T = TypeVar("T")
OnDone = Callable[[int], None]


def _ignore(number: int) -> None:
    pass


def run_tasks(
    function: Callable[[T], object],
    tasks: Sequence[T],
    workers: int = 1,
    engine: str = "processes",
    on_done: OnDone = _ignore,
    on_progress: OnDone = _ignore,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Calls `function(task)` for each task, `workers` at a time, in the order of `tasks` (put the largest first).

    Args:
      function: goes to each worker once, not with each task, so it may be a method of an object that holds something large, such
        as a loaded tokenizer. Function and tasks must pickle.
      engine: "processes" (on this machine), or "ray" (the cluster that RAY_ADDRESS names, else this machine; `workers` is Ray's).
      on_done: called with the number of each finished task, in any order.
      on_progress: called with the sum of what the tasks have reported through `advance` so far (not by Ray).
      meanwhile: called once, while the workers start; if it raises, they stop.

    Raises:
      ConfigError: unknown engine, or ray is not installed.
      DataError: workers died more than MAX_LOST times.
      Whatever a task or a callback raises: the first error. Tasks that run are interrupted, finished ones stay done.
    """
    if engine not in ENGINES:
        raise ConfigError(f"no engine is called {engine!r}; the engines are {', '.join(ENGINES)}")
    run = _Run(function, tasks, workers, on_done, on_progress, meanwhile)
    if engine == "ray":
        run.with_ray()
    elif workers == 1 or len(tasks) <= 1:
        run.here()
    else:
        run.in_pools()


def advance(count: int) -> None:
    """Called by a task for every piece of its work that is done: adds `count` to what `on_progress` gets."""
    if _advance is not None:
        _advance(count)


_advance: OnDone | None = None


@dataclass(frozen=True)
class _Run(Generic[T]):
    """The arguments of `run_tasks`, and its three engines."""

    function: Callable[[T], object]
    tasks: Sequence[T]
    workers: int
    on_done: OnDone
    on_progress: OnDone
    meanwhile: Callable[[], None]

    def here(self) -> None:
        """In this process, one after the other."""
        global _advance
        total = 0

        def add(count: int) -> None:
            nonlocal total
            total += count
            self.on_progress(total)

        outer, _advance = _advance, add
        try:
            self.meanwhile()
            for number, task in enumerate(self.tasks):
                self.function(task)
                self.on_done(number)
        finally:
            _advance = outer

    def in_pools(self) -> None:
        """In worker processes; a pool that lost one is replaced by a new pool for the tasks that are left."""
        left = list(range(len(self.tasks)))
        for lost in range(MAX_LOST + 1):
            try:
                self._in_pool(left, is_first=not lost)
                return
            except BrokenProcessPool:
                continue
        raise DataError(
            f"worker processes died {MAX_LOST + 1} times, perhaps for lack of memory; what is done is kept, and the same command "
            f"continues (give fewer than --workers {self.workers} if it happens again)"
        )

    def _in_pool(self, left: list[int], is_first: bool) -> None:
        """Runs the tasks with the numbers `left`, and takes each finished one out of that list."""
        context = multiprocessing.get_context("fork" if _has_one_thread() else "spawn")
        progress = context.Value("q", 0)
        # A pipe and not an event: a worker waits for it and for its parent's death at once (`_watch`).
        stopped, stop = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(min(self.workers, len(left)), context, _start_worker, (self.function, progress, stopped))
        try:
            waiting: dict[Future[None], int] = {pool.submit(_run_in_worker, self.tasks[number]): number for number in left}
            # The threads that hand out the tasks take turns with this one: let them finish before `meanwhile` keeps it busy.
            wait(waiting, timeout=0.01)
            if is_first:
                self.meanwhile()
            while waiting:
                finished, _ = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                self.on_progress(progress.value)
                for future in finished:
                    number = waiting.pop(future)
                    future.result()
                    left.remove(number)
                    self.on_done(number)
        finally:
            stop.send_bytes(b"stop")
            pool.shutdown(cancel_futures=True)
            stop.close()
            stopped.close()

    def with_ray(self) -> None:
        """As Ray tasks of one CPU each; a lost task is run again by Ray."""
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray needs ray; pip install 'huatuo-jax[ray]'") from error
        self.meanwhile()
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        name = getattr(self.function, "__name__", "task")
        remote = ray.remote(num_cpus=1, max_retries=MAX_LOST)(_call).options(name=name)
        function = ray.put(self.function)  # shipped once: it may hold a loaded tokenizer
        numbers = {remote.remote(function, task): number for number, task in enumerate(self.tasks)}
        waiting = list(numbers)
        while waiting:
            finished, waiting = ray.wait(waiting)
            for reference in finished:
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                self.on_done(numbers[reference])


def _call(function: Callable[[T], object], task: T) -> None:
    function(task)


def _has_one_thread() -> bool:
    """Whether a fork is safe, which starts at once and has everything loaded.

    Any other thread (jax, readers of ArrayRecord, a progress bar) might hold a lock that stays locked in the copy for ever.
    """
    threads = Path("/proc/self/task")
    return threads.is_dir() and len(list(threads.iterdir())) == 1


class _Stopped(BaseException):
    """The parent stops the run: the task ends as it would after Ctrl-C, so that what it wrote aside is removed."""


_function: Callable[[Any], object] | None = None
_stopped: Connection | None = None
_is_running = False


def _start_worker(function: Callable[[Any], object], progress: Any, stopped: Connection) -> None:
    """Prepares a worker process: it ignores Ctrl-C (the parent stops it) and ends when its parent dies."""
    global _function, _stopped, _advance

    def add(count: int) -> None:
        with progress.get_lock():
            progress.value += count

    _function, _stopped, _advance = function, stopped, add
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means. A fork inherits the parent's handler
    # of SIGTERM, under which it would not end at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, _interrupt)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers share the cores already
    # Next to nothing in these tasks is garbage in cycles, but looking for it takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(100_000)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Waits for the parent to stop this worker, or to die, which a killed parent's workers would otherwise outlive."""
    parent = multiprocessing.parent_process()
    assert parent is not None and _stopped is not None
    ready = multiprocessing.connection.wait([parent.sentinel, _stopped])
    if parent.sentinel in ready:
        os._exit(1)  # sys.exit would end this thread alone
    # An exception can be raised in the main thread, where the task runs, only by a signal.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def _interrupt(*_: object) -> None:
    if _is_running:
        raise _Stopped


def _run_in_worker(task: Any) -> None:
    global _is_running
    assert _function is not None and _stopped is not None
    if _stopped.poll():  # tasks that were handed out before the parent stopped
        return
    _is_running = True
    try:
        _function(task)
    finally:
        _is_running = False
