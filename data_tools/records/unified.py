"""The unified dataset: all records as text, in one folder that TensorFlow Datasets opens.

It lies between `importing`, which writes it, and `data_tools.tokens`, which encodes it with a tokenizer. The records stand in
ArrayRecord files in the order in which they came, each a serialised `tf.train.Example`:

    tfds.builder_from_directory(folder).as_data_source(split="train")[0]  →  {"id": b"7", "source": b"sft", "turns": [b"q", …], …}

Beside them lie `source_ids.npy` (int32 [n]), `text_hashes.npy` (uint64 [n]) and `sizes.npy` (int32 [n], bytes), so that a build
can share out the work and choose its hold-out without reading the text, and `manifest.json`, written last: a folder without it is
not a dataset.
"""

import hashlib
import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from huatuo_jax.data.dialogue import Record
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import PathLike, read_json, read_npy, write_json, write_npy

SCHEMA = 1
DATASET = "huatuo_unified"
SPLIT = "train"
SHARD_RECORDS = 20_000
WRITER_OPTIONS = "group_size:32,snappy"
"""32 records a chunk. Snappy is as small as zstd here and four times as fast."""
READER_OPTIONS = {"options": "readahead_buffer_size:65536", "file_reader_buffer_size": 32768}
DENSE = 2
"""Reading a whole run of records is faster than picking some if at most so many times as many are read as wanted."""
REMEDY = "import the files again (`huatuo-data import`)"
TEXTS = ("id", "source", "system", "text")
"""The features that hold one text each; `turns` holds a list of texts."""


def text_hash(record: Record) -> int:
    """64-bit hash of what a record says: its passage or its turns, whatever its id, source and system prompt are."""
    return _hash64(record.text or "\0".join(record.turns))


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@cache
def _example() -> Any:
    """The class `tf.train.Example`; TFDS brings it along without TensorFlow. Importing TFDS takes a quarter of a second."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def encode_record(record: Record) -> bytes:
    """A record as a serialised `tf.train.Example`: every feature is present, absent ones as empty text or an empty list.

    Raises:
      UnicodeEncodeError: if a string holds a lone surrogate.
    """
    example = _example()()
    feature = example.features.feature
    for name in TEXTS:
        feature[name].bytes_list.value.append(getattr(record, name).encode())
    turns = feature["turns"].bytes_list
    turns.SetInParent()  # so that a passage has the feature too, as an empty list
    turns.value.extend([turn.encode() for turn in record.turns])
    # The map of features has no order of its own; sorted by key, the same record gives the same bytes.
    return example.SerializeToString(deterministic=True)


def decode_records(contents: Sequence[bytes]) -> list[Record]:
    """The inverse of `encode_record`, for many.

    Raises:
      ValueError: if bytes are not such a record.
    """
    from google.protobuf.message import DecodeError

    example, records = _example(), []
    try:
        for content in contents:
            feature = example.FromString(content).features.feature
            id, source, system, text = [feature[name].bytes_list.value[0].decode() for name in TEXTS]
            turns = tuple([turn.decode() for turn in feature["turns"].bytes_list.value])
            records.append(Record(id, source, turns, system, text))
    except (DecodeError, IndexError, ValueError) as error:
        raise ValueError(f"not a text record: {error}") from error
    return records


class UnifiedWriter:
    """Writes records to a new unified dataset; use as a context manager, which finishes it or, on an error, leaves none.

    Args:
      folder: the dataset; shards grow aside in it until `finish`.

    Raises:
      ConfigError: if the folder holds a dataset already.
    """

    def __init__(self, folder: PathLike, shard_records: int = SHARD_RECORDS) -> None:
        self.folder = Path(folder)
        if (self.folder / "manifest.json").exists():
            raise ConfigError(f"{self.folder} already holds a dataset; give another --out, or --overwrite")
        self._aside = self.folder / ".incomplete"
        shutil.rmtree(self._aside, ignore_errors=True)
        self._aside.mkdir(parents=True)
        self._shard_records = shard_records
        self._writer: Any = None
        self._counts: list[int] = []
        self._source_numbers: dict[str, int] = {}
        self._source_ids = array("i")
        self._text_hashes = array("Q")
        self._id_hashes = array("Q")
        self._sizes = array("i")

    def write(self, record: Record) -> None:
        """Appends a record.

        Raises:
          UnicodeEncodeError: if a string of it cannot be written as UTF-8; nothing is written then.
        """
        content = encode_record(record)
        if self._writer is None:
            from array_record.python import array_record_module

            self._writer = array_record_module.ArrayRecordWriter(str(self._aside / str(len(self._counts))), WRITER_OPTIONS)
            self._counts.append(0)
        self._writer.write(content)
        self._sizes.append(len(content))
        self._counts[-1] += 1
        self._source_ids.append(self._source_numbers.setdefault(record.source, len(self._source_numbers)))
        self._text_hashes.append(text_hash(record))
        self._id_hashes.append(_hash64(f"{record.source}\0{record.id}"))
        if self._counts[-1] == self._shard_records:
            self._close_shard()

    @property
    def records(self) -> int:
        """Records written so far."""
        return len(self._source_ids)

    def finish(self) -> dict[str, Any]:
        """Makes the dataset visible and returns its manifest."""
        self._close_shard()
        count = len(self._counts)
        names = [f"{DATASET}-{SPLIT}.array_record-{i:05d}-of-{count:05d}" for i in range(count)]
        for i, name in enumerate(names):
            os.replace(self._aside / str(i), self.folder / name)
        self._aside.rmdir()
        sizes = [(self.folder / name).stat().st_size for name in names]
        source_ids = np.frombuffer(self._source_ids, np.int32)
        text_hashes = np.frombuffer(self._text_hashes, np.uint64)
        write_npy(self.folder / "source_ids.npy", source_ids)
        write_npy(self.folder / "text_hashes.npy", text_hashes)
        write_npy(self.folder / "sizes.npy", np.frombuffer(self._sizes, np.int32))
        _write_tfds_metadata(self.folder, self._counts, sum(sizes))
        per_source = np.bincount(source_ids, minlength=len(self._source_numbers)).tolist()
        manifest = {
            "schema": SCHEMA,
            "records": self.records,
            "sources": dict(zip(self._source_numbers, per_source, strict=True)),
            "duplicate_ids": self.records - len(np.unique(np.frombuffer(self._id_hashes, np.uint64))),
            "duplicate_texts": self.records - len(np.unique(text_hashes)),
            "content": hashlib.sha256(text_hashes.tobytes() + source_ids.tobytes()).hexdigest(),
            "shards": [
                {"file": name, "records": count, "bytes": size}
                for name, count, size in zip(names, self._counts, sizes, strict=True)
            ],
        }
        write_json(self.folder / "manifest.json", manifest)
        return manifest

    def __enter__(self) -> "UnifiedWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._close_shard()
            shutil.rmtree(self._aside, ignore_errors=True)

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class UnifiedDataset:
    """A unified dataset on disk.

    Attributes:
      manifest: as written by `UnifiedWriter.finish`.
      sources: names; `source_ids` (int32 [n]) points into them.
      text_hashes: uint64 [n]. sizes: int32 [n], bytes of each record.

    Raises:
      DataError: if the folder holds no finished dataset, or a file of it is torn.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").exists():
            raise DataError(f"{self.folder} holds no finished unified dataset (no manifest.json); {REMEDY}")
        self.manifest: dict[str, Any] = read_json(self.folder / "manifest.json")
        if self.manifest.get("schema") != SCHEMA or "shards" not in self.manifest:
            raise DataError(f"{self.folder}/manifest.json is not one of a unified dataset of schema {SCHEMA}; {REMEDY}")
        self._paths = [self.folder / shard["file"] for shard in self.manifest["shards"]]
        self._starts = np.cumsum([0, *(shard["records"] for shard in self.manifest["shards"])], dtype=np.int64)
        self._readers: dict[int, Any] = {}
        for path, shard in zip(self._paths, self.manifest["shards"], strict=True):
            size, whole = path.stat().st_size if path.exists() else 0, shard["bytes"]
            if size != whole:
                raise DataError(
                    f"{path} has {size:,} bytes, the manifest says {whole:,}: it is missing, torn or altered; {REMEDY}"
                )
        _example()  # imported now, so that workers which are forked later have it
        self.sources: tuple[str, ...] = tuple(self.manifest["sources"])
        self.source_ids, self.text_hashes, self.sizes = map(self._array, ("source_ids", "text_hashes", "sizes"))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _array(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = read_npy(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is missing or torn ({error}); {REMEDY}") from error
        if array.shape != (len(self),):
            raise DataError(f"{path} has shape {array.shape}, the manifest says ({len(self)},); {REMEDY}")
        return array

    def read(self, indices: np.ndarray) -> list[Record]:
        """The records at `indices` (int64 [n]), in that order.

        Raises:
          DataError: if an index is out of range or a file is damaged.
        """
        indices = np.asarray(indices, np.int64)
        if not len(indices):
            return []
        if indices.min() < 0 or indices.max() >= len(self):
            raise DataError(f"record index {indices.min()} … {indices.max()} is outside 0 … {len(self) - 1}")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        contents: list[bytes] = [b""] * len(indices)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            found = self._read_shard(shard, indices[places] - self._starts[shard])
            for place, content in zip(places.tolist(), found, strict=True):
                contents[place] = content
        try:
            return decode_records(contents)
        except ValueError as error:
            raise DataError(f"{self.folder}: records {indices[0]} … {indices[-1]} are damaged ({error}); {REMEDY}") from error

    def _read_shard(self, shard: int, positions: np.ndarray) -> list[bytes]:
        path = self._paths[shard]
        try:
            if shard not in self._readers:
                from array_record.python import array_record_module

                self._readers[shard] = array_record_module.ArrayRecordReader(str(path), **READER_OPTIONS)
            first, last = int(positions.min()), int(positions.max())
            if last - first >= DENSE * len(positions):
                return self._readers[shard].read(positions.tolist())
            run = self._readers[shard].read(first, last + 1)
            return [run[i] for i in (positions - first).tolist()]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise DataError(f"{path} cannot be read ({error}); {REMEDY}") from error

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), 1000):
            yield from self.read(np.arange(start, min(start + 1000, len(self))))


def _write_tfds_metadata(folder: Path, shard_lengths: Sequence[int], num_bytes: int) -> None:
    """Writes `features.json` and `dataset_info.json`, by which TFDS knows what the ArrayRecord files of the folder hold."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    template = tfds.core.ShardedFileTemplate(dataset_name=DATASET, filetype_suffix="array_record", data_dir=folder)
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=list(shard_lengths), num_bytes=num_bytes, filename_template=template.replace(split=SPLIT)
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict({**dict.fromkeys(TEXTS, text), "turns": tfds.features.Sequence(text)}),
        split_infos=[split],
        version="1.0.0",
        filename_template=template,
        check_data=False,
        description="Unified instruction pairs and passages.",
        disable_shuffling=True,
    )
