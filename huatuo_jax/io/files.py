"""Files as every room reads and writes them: opened whatever their compression, never half-written, locked, hashed; and logs.

What must hold: what is written appears whole. It is written aside, under a hidden name in the same folder, and then renamed.
Paths may be local, NFS, gcsfuse or `gs://` (through epath). Object stores have no atomic rename, so a *directory* there becomes
visible by its manifest, which is written last. A log grows line by line and loses at most its last one (`JsonLog`). Next: `jsonl`
for JSON lines and documents, `tasks` for work that is resumed.
"""

import contextlib
import errno
import fcntl
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import tokenize
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath

from huatuo_jax.errors import DataError, DoesNotFitError, HuatuoError

PathLike = str | os.PathLike[str]
CHUNK = 1 << 20
"""Bytes that are read at a time."""
_ZSTANDARD_PIECE = 8 << 10
"""Compressed bytes that are expanded at a time: a block of 128 KiB may take 4 bytes, so a larger piece could fill the memory."""
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class TornFileError(DataError):
    """A file cannot be read to its end: torn, damaged, or not JSON although it begins like it."""


def is_local(path: PathLike) -> bool:
    """Whether `path` lies in the local file system rather than behind a scheme such as `gs://`."""
    return "://" not in os.fspath(path)


@contextlib.contextmanager
def written_aside(path: PathLike) -> Iterator[Path]:
    """Yields a temporary local path beside `path`; renamed to `path` on success, removed on any error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system only. The dot hides it from globs such as *.jsonl, and
    # the process's number keeps apart two processes that write the same file.
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def directory_aside(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a new directory beside `target`; renamed to `target` on success, removed on any error.

    Removes first what dead processes of this machine left there, for it may be as large as a model.

    Args:
      replace: a directory that is at `target` goes once the new one is whole; without it, that is an OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if left.is_dir() and not _is_running(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = aside.with_suffix(".old")
    aside.mkdir()
    try:
        yield aside
        # A rename replaces no directory that holds anything, so the old one makes room first, and goes when the new one is there.
        if replace:
            with contextlib.suppress(FileNotFoundError):
                target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: PathLike, busy: HuatuoError) -> Iterator[None]:
    """Holds a lock on the local file `path`, which is created if it is missing; no other process of this machine can hold it.

    The kernel drops the lock when the process ends, however it ends, so a killed process leaves none behind.

    Raises:
      busy: another process holds the lock.
    """
    # Opened to append: the locked file may be the one that is written, whose content must stay.
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # Some network file systems have no locks: there two processes can only be kept apart by their users.
        yield


def check_room(path: Path, size: int) -> None:
    """Raises DoesNotFitError if `size` bytes at `path` will not fit on its disk; what is missing of the path need not exist."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DoesNotFitError(f"{path} needs {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; make room")


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


def _is_running(pid: str) -> bool:
    """Whether a process has this number; True for what is no number of a process."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, PermissionError):  # PermissionError: it runs, as another user's
        return True
    # What bears our own number was left by a process that had it before us.
    return int(pid) != os.getpid()


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes `content` atomically (local paths) or in one upload (object stores)."""
    if not is_local(path):
        remote = epath.Path(path)
        remote.parent.mkdir(parents=True, exist_ok=True)
        remote.write_bytes(content)
        return
    with written_aside(path) as aside, open(aside, "wb") as file:
        file.write(content)
        # Before the rename, which may reach the disk first: after a loss of power an empty file would bear the final name.
        file.flush()
        os.fsync(file.fileno())


def write_text(path: PathLike, text: str) -> None:
    """Writes `text` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON; see `write_bytes`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_npy(path: PathLike, array: np.ndarray) -> None:
    """Writes `array` in `.npy` format; see `write_bytes`."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_json(path: PathLike) -> Any:
    """Reads one JSON file."""
    return json.loads(epath.Path(path).read_text(encoding="utf-8"))


def read_npy(path: PathLike) -> np.ndarray:
    """Reads one `.npy` file; local files are memory-mapped. Raises ValueError for what is none."""
    # Without pickles: an array of objects runs code when it is loaded.
    try:
        if is_local(path):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        return np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False)
    except (EOFError, SyntaxError, tokenize.TokenError) as error:  # numpy reads the header as Python, whatever its bytes are
        raise ValueError(f"damaged header: {error}") from error


def cache_folder() -> Path:
    """Where this project keeps what it can make again: `$XDG_CACHE_HOME/huatuo-jax`, or else `~/.cache/huatuo-jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huatuo-jax")


def cached_copy(path: PathLike, folder: str) -> Path:
    """The copy of a remote file on this machine's disk, fetched unless it is there.

    Args:
      path: the file, which must never change (`gs://` is untested here).
      folder: where the copy lies below `cache_folder()`; a name made of the content's hash.
    """
    copy = cache_folder() / folder / epath.Path(path).name
    if not copy.exists():
        with written_aside(copy) as aside, epath.Path(path).open("rb") as source, open(aside, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 24)
    return copy


def sha256_file(path: PathLike) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`: the identity of a manifest or a config."""
    # Sorted and without blanks, so that equal values give equal bytes in whatever order their fields were set.
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@contextlib.contextmanager
def open_bytes(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[IO[bytes]]:
    """Opens a plain, .gz, .xz or .zst file (told apart by its first bytes) for reading its decompressed bytes.

    Args:
      on_read: called with the number of (compressed) bytes read each time, for progress bars.

    Raises:
      TornFileError: from within the context, when the content ends too early or is damaged.
    """
    try:
        with _Counted(path, on_read) as plain:
            raw = io.BufferedReader(plain, CHUNK)
            # By content, for a name may lie. Six bytes: the longest of the three marks is that of .xz.
            magic = raw.peek(6)[:6]
            if magic.startswith(b"\x1f\x8b"):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield unpacked  # type: ignore[misc]
            elif magic.startswith(b"\xfd7zXZ"):
                with lzma.LZMAFile(raw) as unpacked_xz:
                    yield unpacked_xz
            elif magic.startswith(b"\x28\xb5\x2f\xfd"):
                yield io.BufferedReader(_Zstandard(raw), CHUNK)
            else:
                yield raw
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise TornFileError(f"{path}: compressed content is torn or damaged ({error})") from error


class _Counted(io.FileIO):
    """A file that reports how many bytes are read from it."""

    def __init__(self, path: Path, on_read: Callable[[int], None] | None) -> None:
        super().__init__(path)
        self._on_read = on_read or (lambda count: None)

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._on_read(count)
        return count


class _Zstandard(io.RawIOBase):
    """Decompresses Zstandard frames; unlike `zstandard.stream_reader` it reports a frame that ends too early."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._waiting = memoryview(b"")
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._waiting:
            content = self._input or self._file.read(_ZSTANDARD_PIECE)
            self._input = b""
            if not content:
                if self._frame is not None:
                    raise EOFError("the file ended within a Zstandard frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                self._waiting = memoryview(self._frame.decompress(content))
            except zstandard.ZstdError as error:
                # As gzip and lzma say it, so that `open_bytes` has one case for all three.
                raise EOFError(str(error)) from error
            # A file may be many frames, one after the other, and what was read may reach into the next one.
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._waiting))
        buffer[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count


def json_line(row: Any, **options: Any) -> bytes:
    """A value as one line of JSON in UTF-8; `options` are those of `json.dumps`."""
    try:
        return json.dumps(row, ensure_ascii=False, **options).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # UTF-8 holds no lone surrogate, the escape \\ud800 of JSON does
        return json.dumps(row, **options).encode("ascii") + b"\n"


class JsonLog:
    """A file of JSON lines that grows line by line: what was logged of a run, the answers to a file of questions.

    A kill may cut the last line short; that piece is dropped when the log is opened again. Object stores cannot append: there the
    lines are held, and `sync` writes the whole file.

    Attributes:
      rows: what the file held when it was opened.
    """

    def __init__(self, path: PathLike, until: Callable[[Any], bool] = lambda row: False, durable: bool = False) -> None:
        """Opens a log for more, or a new one.

        Args:
          until: the first row for which this is true is removed, and all that follow.
          durable: each line is on the disk before `append` returns; else it survives the process, but not a loss of power.

        Raises:
          DataError: a line before the last one is not JSON.
        """
        content, size = _content(path), 0
        self.path, self.rows = path, list[Any]()
        for row, end in _rows_and_ends(content, path):
            if until(row):
                break
            self.rows.append(row)
            size = end
        content = content[:size]
        self._durable = durable
        self._held = [content]
        self._file: IO[bytes] | None = None
        if is_local(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab")  # noqa: SIM115
            self._file.truncate(size)
        if content and not content.endswith(b"\n"):
            self._add(b"\n")

    def append(self, row: Any) -> None:
        """Adds a line; ValueError for NaN and infinity, which are not JSON."""
        # Python writes and reads them, other programs that read the log refuse the file.
        self._add(json_line(row, allow_nan=False))

    def _add(self, line: bytes) -> None:
        if self._file is None:
            self._held.append(line)
            return
        self._file.write(line)
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())

    def sync(self) -> None:
        """After this the disk, or the object store, holds every line."""
        if self._file is None:
            write_bytes(self.path, b"".join(self._held))
        else:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        if self._file is not None:
            self._file.close()


def read_log(path: PathLike) -> list[Any]:
    """The rows of a log, without a last line that is being written or was cut short by a kill; [] if there is no such file.

    Raises:
      DataError: a line before the last one is not JSON.
    """
    return [row for row, _ in _rows_and_ends(_content(path), path)]


def _content(path: PathLike) -> bytes:
    file = epath.Path(path)
    return file.read_bytes() if file.exists() else b""


def _rows_and_ends(content: bytes, path: PathLike) -> Iterator[tuple[Any, int]]:
    """The rows of a log, each with the place of its line's end."""
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        end += len(line)
        if not line.strip():
            continue
        try:
            yield json.loads(line.decode("utf-8")), end
        except (ValueError, RecursionError) as error:
            # Only the last line may be cut short, by a kill; a fault before it is damage, which nobody may drop silently.
            if end < len(content):
                shown = line[:80].decode("utf-8", "replace").strip()
                raise DataError(f"{path}, line {number}: not valid JSON ({error}): {shown!r}; remove that line") from error
