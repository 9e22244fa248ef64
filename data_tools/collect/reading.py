"""From folders of raw files to documents: which files are read together (shards), and what each of them holds.

The start of the way to a passage. `list_shards` finds .jsonl, .ndjson, .json, .txt and .parquet, plain or .gz, .xz, .zst; each
large file, or group of small ones, becomes a shard and so one output file. The list depends on names and sizes only, so every
run and every machine makes the same one. `read_documents` then gives the documents of a file in order and never raises for what
is in it: an `Unreadable` names the place and the reason. Bytes are UTF-8 or GB18030. Next to read: `passages.py`.
"""

import codecs
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data_tools.collect.settings import ReadingConfig
from data_tools.records.layouts import canonical_source
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import TornFileError, open_bytes
from huatuo_jax.io.jsonl import Fault, Item, KeyedValue, iterate_values

FORMATS = (".jsonl", ".ndjson", ".json", ".txt", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
GROUP_BYTES = 64 << 20
GROUP_FILES = 20_000
NAME_BYTES = 180
"""Of a shard's name; file systems take 255, of which suffixes need some."""
SNIFFED = 1 << 20
PARQUET_ROWS = 256
LONGEST_ROW = 1 << 40
"""Bytes of a row that a stage reads back."""
REMEDY = "raise --max-line-bytes to read it"


# Shards


@dataclass(frozen=True)
class InputFile:
    """One file of a raw corpus.

    Attributes:
      path: where it lies. name: its path below the folder that was given, or its file name, as `printable` shows it.
      size, modified: bytes and nanoseconds, to see whether it has changed.
    """

    path: str
    name: str
    size: int
    modified: int

    @property
    def format(self) -> str:
        """The suffix that tells how to read it, without a compression's."""
        return _format_of(self.name) or ""

    @property
    def source(self) -> str:
        """The source of rows that name none: the file's stem; of a .txt file, its folder's name."""
        if self.format != ".txt":
            return self.stem
        return os.path.basename(os.path.dirname(os.path.abspath(self.path))) or self.stem

    @property
    def stem(self) -> str:
        """The file's name without its suffixes."""
        name = os.path.basename(self.name)
        for suffix in (*COMPRESSIONS, *FORMATS):
            name = name.removesuffix(suffix)
        return name


@dataclass(frozen=True)
class Shard:
    """Files that are processed together; `name` is the stem of its output file."""

    name: str
    files: tuple[InputFile, ...]

    @property
    def size(self) -> int:
        """Bytes of its files as they lie on disk."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Listing:
    """What lies in the inputs.

    Attributes:
      shards: in the order of their names. skipped: (path, reason) of what is there but is not read.
    """

    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...]


def list_shards(inputs: Sequence[Path], group_bytes: int = GROUP_BYTES) -> Listing:
    """Finds the corpus files in `inputs` (files, or folders searched to any depth) and groups small ones.

    Raises:
      ConfigError: an input is missing, given twice, or is a file of an unknown format.
      DataError: nothing to read.
    """
    endings = f"{' '.join(FORMATS)}, plain or with {' '.join(COMPRESSIONS)}"
    files: list[InputFile] = []
    skipped: list[tuple[str, str]] = []
    for given in inputs:
        if given.is_dir():
            files += _in_folder(given, skipped)
        elif not given.exists():
            raise ConfigError(f"{given} is not there")
        elif _format_of(given.name) is None:
            raise ConfigError(f"{given}: its name ends in none of {endings}")
        else:
            files.append(_input_file(given, given.name))
    # By their real place: a folder and a link to a file in it would double that file's documents.
    by_place: dict[str, InputFile] = {}
    for file in files:
        first = by_place.setdefault(os.path.realpath(file.path), file)
        if first is not file:
            raise ConfigError(f"{file.path} is given twice (also as {first.path}): its documents would be doubled")
    if not files:
        raise DataError(f"no corpus files in {', '.join(map(str, inputs))}; looked for {endings}")
    return Listing(tuple(grouped(files, group_bytes)), tuple(skipped))


def printable(text: str) -> str:
    """Text that every file can hold: file names in GBK and broken keys come with lone surrogates, which become `\\udcb7`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _in_folder(folder: Path, skipped: list[tuple[str, str]]) -> Iterator[InputFile]:
    # Links are followed, for corpora are often put together from links; one that leads back up would never end.
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        for child in sorted(folders):
            real = os.path.realpath(os.path.join(parent, child))
            if real in seen:
                skipped.append((printable(os.path.join(parent, child)), "a link to a folder that is read already"))
                folders.remove(child)
            seen.add(real)
        # In place and sorted: this is the order in which `os.walk` goes on, and the same on every file system.
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if _format_of(name) is None:
                skipped.append((printable(str(path)), "its suffix is not one of a corpus file"))
            elif not path.exists():
                skipped.append((printable(str(path)), "a link to nothing"))
            else:
                yield _input_file(path, str(path.relative_to(folder)))


def _input_file(path: Path, name: str) -> InputFile:
    status = path.stat()
    return InputFile(str(path), printable(name), status.st_size, status.st_mtime_ns)


def _format_of(name: str) -> str | None:
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def grouped(files: Sequence[InputFile], group_bytes: int) -> Iterator[Shard]:
    """A file of rows by itself; neighbouring .txt files of the same folder together."""
    # Each .txt file is one document: as shards of their own, a million web pages would be a million output files.
    group: list[InputFile] = []
    names: set[str] = set()
    size = 0
    for file in sorted(files, key=lambda file: (os.path.dirname(file.name), file.name, file.path)):
        joins = (
            bool(group)
            and file.format == group[-1].format == ".txt"
            and os.path.dirname(group[0].name) == os.path.dirname(file.name)
            and size + file.size <= group_bytes
            and len(group) < GROUP_FILES
        )
        if group and not joins:
            yield Shard(_unused_name(group[0], names), tuple(group))
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield Shard(_unused_name(group[0], names), tuple(group))


def _unused_name(first: InputFile, names: set[str]) -> str:
    """A file name made of the first file's path; with a hash of the path where another shard has it, or it is too long."""
    # books/cn/a.txt becomes "books-cn-a"; books-cn/a.txt, which would be the same, "books-cn-a-" and a hash.
    whole = os.path.join(os.path.dirname(first.name), first.stem).replace(os.sep, "-")
    plain = whole.encode()[:NAME_BYTES].decode("utf-8", "ignore")
    if plain != whole or plain in names:
        plain += "-" + hashlib.blake2b(first.name.encode() + os.fsencode(first.path), digest_size=4).hexdigest()
    names.add(plain)
    return plain


# Documents


@dataclass(frozen=True)
class Document:
    """One text of a corpus. `id` is its row's own, or made of its place and content, so that every run gives the same."""

    id: str
    source: str
    text: str
    title: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A line (from 1), or a whole file (line None), that cannot be read, and why."""

    file: str
    line: int | None
    reason: str


def read_documents(file: InputFile, config: ReadingConfig) -> Iterator[Document | Unreadable]:
    """Yields the documents of a file in order, and an `Unreadable` for each line that is none; never raises for content."""
    readers = {".txt": _read_text, ".parquet": _read_parquet}
    try:
        for number, value in readers.get(file.format, _read_json)(file, config):
            yield _to_document(value, file, number, config)
    except (TornFileError, DataError, UnicodeDecodeError) as error:
        yield Unreadable(printable(file.path), None, printable(str(error).removeprefix(f"{file.path}: ")))
    except PermissionError as error:
        yield Unreadable(printable(file.path), None, f"cannot be opened ({error.strerror})")


def _to_document(value: Any, file: InputFile, number: int, config: ReadingConfig) -> Document | Unreadable:
    def unreadable(reason: str) -> Unreadable:
        return Unreadable(printable(file.path), number, printable(reason))

    if isinstance(value, Fault):
        return unreadable(value.reason)
    if isinstance(value, KeyedValue):
        value = value.value
    row = {config.text_field: value} if isinstance(value, str) else value
    if not isinstance(row, dict):
        return unreadable(f"row is of type {type(row).__name__}, not an object or a string")
    text, title = row.get(config.text_field), row.get(config.title_field)
    if not isinstance(text, str):
        kind = "missing" if text is None else f"of type {type(text).__name__}, not a string"
        return unreadable(f"`{config.text_field}` is {kind}; the row's keys: {', '.join(map(str, list(row)[:8]))}")
    source = config.source or row.get(config.source_field) or file.source
    id, title = row.get("id"), title if isinstance(title, str) else ""
    # JSON may hold half of a surrogate pair, which no UTF-8 file can: found here, it costs a line and not the run.
    for name, field in (("text", text), ("title", title), ("id", str(id))):
        try:
            field.encode("utf-8")
        except UnicodeEncodeError as error:
            return unreadable(f"{name} is not valid Unicode (lone surrogate at character {error.start})")
    # With its place, so that two rows of the same text have two ids.
    if id is None:
        id = hashlib.blake2b(f"{file.name}\0{number}\0{text}".encode(), digest_size=8).hexdigest()
    return Document(str(id), canonical_source(str(source)) or "unnamed", text, title)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that a stage of the run wrote."""
    # Without the limit for lines of raw files: an escaped document may be longer than it was.
    with open_bytes(path) as file:
        yield from (row for _, row in iterate_values(path, file, LONGEST_ROW, lines=True))


# One reader per format: (line or row number from 1, value) of a file


def _read_json(file: InputFile, config: ReadingConfig) -> Iterator[Item]:
    with _open_text(file) as opened:
        yield from iterate_values(Path(file.path), opened, config.max_line_bytes, REMEDY, lines=file.format != ".json")


def _read_text(file: InputFile, config: ReadingConfig) -> Iterator[Item]:
    with _open_text(file) as opened:
        content = opened.read(config.max_line_bytes + 1)  # one byte more tells that it is too long
    if len(content) > config.max_line_bytes:
        raise DataError(f"longer than the limit of {config.max_line_bytes:,} bytes; {REMEDY}")
    if b"\0" in content[:SNIFFED]:
        raise DataError("binary content (NUL bytes), not text")
    text = content.decode("utf-8")
    if text.strip():
        yield 1, text


def _read_parquet(file: InputFile, config: ReadingConfig) -> Iterator[Item]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ConfigError(f"{file.path}: reading .parquet needs pyarrow; pip install 'huatuo-jax[collect]'") from error
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = file.path
            if not path.endswith(".parquet"):
                # Parquet is read from its end, which a compressed stream does not allow.
                path = os.path.join(folder, "content.parquet")
                with open_bytes(Path(file.path)) as opened, open(path, "wb") as out:
                    shutil.copyfileobj(opened, out)
            with parquet.ParquetFile(path) as table:
                wanted = {config.text_field, config.title_field, config.source_field, "id"}
                columns = [name for name in table.schema_arrow.names if name in wanted]
                batches = table.iter_batches(PARQUET_ROWS, columns=columns)
                yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file ({error})") from error


# Encodings


@contextmanager
def _open_text(file: InputFile) -> Iterator[IO[bytes]]:
    """The decompressed content of a file as UTF-8, without a byte order mark."""
    with open_bytes(Path(file.path)) as opened:
        yield io.BufferedReader(_AsUtf8(opened), SNIFFED)


class _AsUtf8(io.RawIOBase):
    """A file whose encoding its first megabyte shows, read as UTF-8; what is no GB18030 then becomes U+FFFD."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        # Decompressors may give less than they are asked for.
        parts, missing = [], SNIFFED
        while missing > 0 and (part := file.read(missing)):
            parts.append(part)
            missing -= len(part)
        beginning = b"".join(parts)
        self._decoder = None
        if detect_encoding(beginning) == "gb18030":
            self._decoder = codecs.getincrementaldecoder("gb18030")("replace")
        self._waiting = self._encoded(beginning.removeprefix(codecs.BOM_UTF8))

    def _encoded(self, content: bytes) -> memoryview:
        if self._decoder is not None:
            content = self._decoder.decode(content, final=not content).encode("utf-8")
        return memoryview(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            content = self._file.read(SNIFFED)
            self._waiting = self._encoded(content)
            if not content:
                break
        count = min(len(buffer), len(self._waiting))
        buffer[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count


def detect_encoding(beginning: bytes) -> str:
    """ "utf-8" or "gb18030", by the lines of a file's first megabyte that are not ASCII.

    Bytes of UTF-8 often decode as GB18030 without an error (as nonsense), but hardly ever the other way round: a file is GB18030
    only if most such lines are no UTF-8 and all of it decodes as GB18030. Single broken lines do not decide.

    Raises:
      DataError: for UTF-16 and UTF-32 (by their byte order mark).
    """
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("UTF-16 or UTF-32; convert it to UTF-8 first")
    # Of 300 lines in Chinese 3 are broken UTF-8: a damaged file of UTF-8. 297 are: GB18030, in which a few short lines happen
    # to be valid UTF-8 too.
    lines = [line for line in beginning.split(b"\n") if not line.isascii()]
    if len(beginning) >= SNIFFED and len(lines) > 1:
        lines.pop()  # the megabyte may end within it
    broken = sum(not _decodes(line, "utf-8") for line in lines)
    return "gb18030" if broken * 2 > len(lines) and _decodes(beginning, "gb18030") else "utf-8"


def _decodes(content: bytes, encoding: str) -> bool:
    """Whether bytes decode, except for a character that the end may have cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return False
    return True
