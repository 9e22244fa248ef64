"""The errors of a disk without room, which name no file, in; an error with the remedy out."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from huatuo_jax.errors import DataError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Within the context a disk without room raises a DataError that names the file, or else `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where, reason = error.filename or folder, os.strerror(error.errno)
        raise DataError(f"{where}: {reason}; nothing is half-written: make room, then give the same command") from error
