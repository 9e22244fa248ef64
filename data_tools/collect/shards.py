"""Files and folders in, a list of shards out: each is one large file or a group of small ones, and becomes one output file.

The list depends on names and sizes only, so every run and every machine makes the same one.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huatuo_jax.errors import ConfigError, DataError

FORMATS = (".jsonl", ".ndjson", ".json", ".txt", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
GROUP_BYTES = 64 << 20
GROUP_FILES = 20_000
NAME_BYTES = 180
"""Of a shard's name; file systems take 255, of which suffixes need some."""


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
    """What was found.

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
    files: list[InputFile] = []
    skipped: list[tuple[str, str]] = []
    for given in inputs:
        if given.is_dir():
            files += _in_folder(given, skipped)
        elif not given.exists():
            raise ConfigError(f"{given} is not there")
        elif _format_of(given.name) is None:
            raise ConfigError(f"{given}: its name ends in none of {' '.join(FORMATS)}, plain or with {' '.join(COMPRESSIONS)}")
        else:
            files.append(_input_file(given, given.name))
    by_place: dict[str, InputFile] = {}
    for file in files:
        real = os.path.realpath(file.path)
        if real in by_place:
            raise ConfigError(f"{file.path} is given twice (also as {by_place[real].path}): its documents would be doubled")
        by_place[real] = file
    if not files:
        where = ", ".join(map(str, inputs))
        raise DataError(f"no corpus files in {where}; looked for {' '.join(FORMATS)}, plain or with {' '.join(COMPRESSIONS)}")
    return Listing(tuple(_grouped(files, group_bytes)), tuple(skipped))


def printable(text: str) -> str:
    """Text that every file can hold: file names in GBK and broken keys come with lone surrogates, which become `\\udcb7`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _in_folder(folder: Path, skipped: list[tuple[str, str]]) -> Iterator[InputFile]:
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        for child in sorted(folders):
            real = os.path.realpath(os.path.join(parent, child))
            if real in seen:
                skipped.append((printable(os.path.join(parent, child)), "a link to a folder that is read already"))
                folders.remove(child)
            seen.add(real)
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


def _grouped(files: Sequence[InputFile], group_bytes: int) -> Iterator[Shard]:
    """A large file by itself; small neighbours of the same folder together."""
    group: list[InputFile] = []
    names: set[str] = set()
    size = 0

    def close() -> Shard:
        shard = Shard(_unused_name(group[0], names), tuple(group))
        group.clear()
        return shard

    for file in sorted(files, key=lambda file: (os.path.dirname(file.name), file.name, file.path)):
        alone = file.format != ".txt"
        if group and (
            alone
            or os.path.dirname(group[0].name) != os.path.dirname(file.name)
            or size + file.size > group_bytes
            or len(group) >= GROUP_FILES
        ):
            yield close()
            size = 0
        group.append(file)
        size += file.size
        if alone:
            yield close()
    if group:
        yield close()


def _unused_name(first: InputFile, names: set[str]) -> str:
    """A file name made of the first file's path; with a hash of the path where another shard has it, or it is too long."""
    whole = os.path.join(os.path.dirname(first.name), first.stem).replace(os.sep, "-")
    plain = whole.encode()[:NAME_BYTES].decode("utf-8", "ignore")
    if plain != whole or plain in names:
        plain += "-" + hashlib.blake2b(first.name.encode() + os.fsencode(first.path), digest_size=4).hexdigest()
    names.add(plain)
    return plain
