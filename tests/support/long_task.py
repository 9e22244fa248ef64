"""A task of a minute, in a module that worker processes can import: what tests interrupt."""

import os
import time
from pathlib import Path


def hold(folder: Path) -> None:
    """Leaves a file with this process's number in `folder` for as long as it runs."""
    running = folder / f"{os.getpid()}.running"
    running.touch()
    try:
        for _ in range(600):
            time.sleep(0.1)
    finally:
        running.unlink()
