"""A function and its tasks in, each task run once out: in this process, in a pool of processes, or as Ray tasks.

A task writes its own output whole and says itself whether it is done, so an engine only has to call it; a task that was lost with
its worker is called again. Which engine runs, and with how many workers, changes no byte of what is written.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from huatuo_jax.errors import ConfigError, DataError

ENGINES = ("processes", "ray")
MAX_LOST = 3
OnDone = Callable[[int], None]


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    workers: int,
    engine: str = "processes",
    on_done: OnDone = lambda i: None,
) -> None:
    """Calls `function(task)` for each task, `workers` at a time.

    Args:
      function: of a module, with arguments that pickle. on_done: called with the number of each finished task, in any order.

    Raises:
      DataError: workers died more than MAX_LOST times. Whatever the function raises: the first one; finished tasks stay done.
    """
    if engine not in ENGINES:
        raise ConfigError(f"no engine is called {engine!r}; the engines are {', '.join(ENGINES)}")
    if engine == "ray":
        _run_with_ray(function, tasks, on_done)
    elif workers == 1 or len(tasks) <= 1:
        for number, task in enumerate(tasks):
            function(task)
            on_done(number)
    else:
        _run_in_pools(function, tasks, workers, on_done)


def _run_in_pools(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int, on_done: OnDone) -> None:
    """A pool that lost a worker is replaced by a new one for the tasks that are left."""
    left = list(range(len(tasks)))
    for _ in range(MAX_LOST + 1):
        try:
            _run_in_pool(function, tasks, left, min(workers, len(left)), on_done)
            return
        except BrokenProcessPool:
            continue
    raise DataError(
        f"worker processes died {MAX_LOST + 1} times, perhaps for want of memory; what is done is kept, and the same command "
        f"continues (give fewer than --workers {workers} if it happens again)"
    )


def _run_in_pool(function: Callable[[Any], Any], tasks: Sequence[Any], left: list[int], workers: int, on_done: OnDone) -> None:
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: dict[Future[Any], int] = {pool.submit(function, tasks[number]): number for number in left}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                number = waiting.pop(future)
                future.result()
                left.remove(number)
                on_done(number)
    finally:
        pool.shutdown(cancel_futures=True)


def _run_with_ray(function: Callable[[Any], Any], tasks: Sequence[Any], on_done: OnDone) -> None:
    """As Ray tasks of one CPU each, on the cluster that RAY_ADDRESS names or on this machine; a lost task is run again by Ray."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs ray; pip install 'huatuo-jax[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote = ray.remote(num_cpus=1, max_retries=MAX_LOST)(function)
    numbers = {remote.remote(task): number for number, task in enumerate(tasks)}
    waiting = list(numbers)
    while waiting:
        finished, waiting = ray.wait(waiting)
        for reference in finished:
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            on_done(numbers[reference])
