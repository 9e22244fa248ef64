"""Tables as rows: Parquet, CSV and TSV files, read as if each row were a line of JSON lines; and the one way to read any file.

`iterate_rows` tells the kind of a file and gives its values, each with the line or row where it stands; `jsonl` reads JSON. What
must hold: every row comes out as a value or as a `Fault`, or the file raises `TornFileError`; a cell is never cut or moved to
another column. Records are made of the rows by `data_tools.records.layouts`.
"""

import csv
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from huatuo_jax.errors import ConfigError
from huatuo_jax.io.files import TornFileError, open_bytes
from huatuo_jax.io.jsonl import LONGEST_LINE, Fault, Item, iterate_json
from huatuo_jax.io.text import kind_of, open_text

COMPRESSIONS = (".gz", ".xz", ".zst")
PARQUET_ROWS = 256
"""Rows that are in memory at a time; a row may hold a whole book."""


def plain_name(path: Path) -> str:
    """A file's name in lower case, without the suffix of a compression."""
    name = path.name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSIONS if name.endswith(suffix)), name)


def is_table(path: Path) -> bool:
    """Whether a file is Parquet (its content says so), or CSV or TSV (its name does)."""
    return plain_name(path).endswith((".csv", ".tsv")) or kind_of(path)[0] == "Parquet"


def iterate_rows(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[Item]:
    """Yields (line or row number from 1, value or `Fault`) of a file of JSON, Parquet, CSV or TSV, plain or compressed.

    Raises:
      TornFileError: nothing says how much of the file is lost.
      ConfigError: Parquet without pyarrow.
    """
    if plain_name(path).endswith((".csv", ".tsv")):
        yield from _iterate_csv(path, on_read)
    elif is_table(path):
        yield from enumerate(iterate_parquet(path), 1)
        if on_read:
            on_read(path.stat().st_size)
    else:
        yield from iterate_json(path, on_read)


def iterate_parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file, plain or compressed, with those of `columns` that it has (None: with all).

    Raises:
      TornFileError: the file is damaged. ConfigError: pyarrow is missing.
    """
    import_pyarrow(path)
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with tempfile.TemporaryDirectory() as folder:
            whole = path
            if path.name.lower().endswith(COMPRESSIONS):
                # Parquet is read from its end, which a compressed stream does not allow.
                whole = Path(folder, "content.parquet")
                with open_bytes(path) as opened, open(whole, "wb") as out:
                    shutil.copyfileobj(opened, out)
            with parquet.ParquetFile(whole) as table:
                names = table.schema_arrow.names
                wanted = None if columns is None else [name for name in names if name in columns]
                if len(set(names)) < len(names):
                    raise TornFileError(f"{path}: two columns have the same name ({', '.join(names)}); rename one")
                for batch in table.iter_batches(PARQUET_ROWS, columns=wanted):
                    yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # pyarrow reports damaged pages as errors of the system without a number, and text that is no UTF-8 as Python does.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise TornFileError(f"{path}: not a readable Parquet file ({error})") from error


def import_pyarrow(path: Path) -> None:
    """Raises ConfigError, which says how to install it, if there is no pyarrow to read `path`."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{path}: reading Parquet needs pyarrow; pip install 'huatuo-jax[documents]'") from error


def _iterate_csv(path: Path, on_read: Callable[[int], None] | None) -> Iterator[Item]:
    """The rows of a CSV or TSV file as objects of strings; its first row holds the names of the columns."""
    csv.field_size_limit(LONGEST_LINE)
    with open_text(path, on_read) as opened:
        # Bytes that no encoding explains become half of a surrogate pair, by which their row is known below.
        text = io.TextIOWrapper(opened, "utf-8", "surrogateescape", newline="")
        first = text.readline()
        delimiter = "\t" if plain_name(path).endswith(".tsv") else max(",;\t", key=first.count)
        rows, header, line = csv.reader(chain([first], text), delimiter=delimiter, strict=True), list[str](), 1
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    reason = f"a quotation mark that opens in line {line} is never closed"
                    raise TornFileError(f"{path}: {reason}, so the rows after it cannot be told apart") from error
                row = []
                yield line, Fault(f"not valid CSV ({error})")
            if row and not header:
                header = [name.strip() or f"column {number}" for number, name in enumerate(row, 1)]
                if len(set(header)) < len(header):
                    raise TornFileError(f"{path}: two columns have the same name ({', '.join(header)}); rename one")
            elif row:
                yield line, _csv_value(row, header)
            line = rows.line_num + 1


def _csv_value(row: list[str], header: list[str]) -> Any:
    if len(row) != len(header):
        return Fault(f"row has {len(row)} cells, the header has {len(header)}")
    try:
        "".join(row).encode("utf-8")
    except UnicodeEncodeError:
        return Fault("not UTF-8")
    return dict(zip(header, row, strict=True))
