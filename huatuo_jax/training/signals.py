"""SIGTERM and SIGINT in, a question that the training loop can ask after each step out: shall all processes stop here?

One process: our own handlers set a flag. Several: a signal may reach one process first, and all must leave after the same step,
so the notice goes to JAX's coordination service, which fixes that step.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Within the context a first signal asks for a stop after the current step; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._install(signal.SIGINT, self._note)
            if not jax.distributed.is_initialized():
                self._install(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_after(self, step: int) -> bool:
        """Whether to save and leave now that `step` batches are consumed. Every process asks after every step."""
        if jax.distributed.is_initialized():
            reached = multihost_utils.reached_preemption_sync_point(step)
            if reached:
                self.received = self.received or "SIGTERM (to one of the processes)"
            return reached
        return self.received is not None

    def _install(self, number: int, handler: Any) -> None:
        self._before[number] = signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        # Not print: a handler may interrupt one.
        os.write(2, f"\n{self.received}: will save after this step and end; Ctrl-C now ends at once, without saving\n".encode())
        if jax.distributed.is_initialized():
            # The coordination service listens to SIGTERM alone, by a handler of its own.
            os.kill(os.getpid(), signal.SIGTERM)
