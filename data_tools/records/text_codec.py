"""A `Record` ⇄ the bytes of one record of the unified dataset: a serialised `tf.train.Example` of byte lists.

`unified.py` stores these bytes; TensorFlow Datasets reads them, which is why they are protobuf. The message class is declared
here, because importing tensorflow_datasets for it would cost every worker process most of a second. Reading does without
messages: an object per message, or a loop over bytes, would be most of the time of reading short records.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from huatuo_jax.data.record import Record

FIELDS = ("id", "source", "system", "text", "turns")
"""In the order in which they are written: protobuf sorts the keys of a map in its deterministic form."""


@cache
def _example_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="huatuo_text_example.proto", package="huatuo", syntax="proto3")

    def message(parent: Any, name: str) -> Any:
        added = parent.add()
        added.name = name
        return added

    def field(parent: Any, name: str, number: int, kind: Any, type_name: str = "", repeated: bool = False) -> None:
        label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
        parent.field.add(name=name, number=number, type=kind, type_name=type_name or None, label=label)

    field(message(file.message_type, "BytesList"), "value", 1, field_type.TYPE_BYTES, repeated=True)
    field(message(file.message_type, "Feature"), "bytes_list", 1, field_type.TYPE_MESSAGE, ".huatuo.BytesList")
    features = message(file.message_type, "Features")
    entry = message(features.nested_type, "FeatureEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, field_type.TYPE_STRING)
    field(entry, "value", 2, field_type.TYPE_MESSAGE, ".huatuo.Feature")
    field(features, "feature", 1, field_type.TYPE_MESSAGE, ".huatuo.Features.FeatureEntry", repeated=True)
    field(message(file.message_type, "Example"), "features", 1, field_type.TYPE_MESSAGE, ".huatuo.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("huatuo.Example"))


def encode_record_text(record: Record) -> bytes:
    """Serialises a record; every feature is present, absent ones as empty text or an empty list.

    Raises:
      UnicodeEncodeError: if a string holds a lone surrogate.
    """
    example = _example_class()()
    feature = example.features.feature
    feature["id"].bytes_list.value.append(record.id.encode())
    feature["source"].bytes_list.value.append(record.source.encode())
    feature["system"].bytes_list.value.append(record.system.encode())
    feature["text"].bytes_list.value.append(record.text.encode())
    turns = feature["turns"].bytes_list
    turns.SetInParent()
    turns.value.extend([turn.encode() for turn in record.turns])
    return example.SerializeToString(deterministic=True)


class _Walker:
    """Reads the same field of many records at a time; every position is an int64 [records] of offsets into `data`.

    A length-delimited field is its tag (one byte), its size (a varint: 7 bits a byte, the lowest first, the high bit set in all
    but the last) and its content: `0A 03 61 62 63` is field 1 with "abc", `0A AC 02 …` is field 1 with 0x2C + 2·128 = 300 bytes.

    Args:
      contents: the serialised records.

    Attributes:
      data: the records end to end.
      starts, ends: where each begins and ends.
    """

    def __init__(self, contents: Sequence[bytes]) -> None:
        self.data = b"".join(contents)
        self._raw = np.frombuffer(self.data, np.uint8)
        sizes = np.fromiter(map(len, contents), np.int64, len(contents))
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes

    def enter(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Begin and end of what lies in the length-delimited field whose tag (one byte) is at `at`.

        Raises:
          IndexError: if a field begins beyond the data.
        """
        at = at + 1
        size, shift = np.zeros(len(at), np.int64), 0
        more = np.arange(len(at))
        while len(more):
            byte = self._raw[at[more]].astype(np.int64)
            size[more] |= (byte & 0x7F) << shift
            at[more] += 1
            more = more[byte >= 0x80]
            shift += 7
        return at, at + size

    def feature(self, at: np.ndarray, name: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the entry of a `tf.train.Features` map at `at`: begin and end of its list of values, and end of the entry.

        Raises:
          ValueError: if it is not called `name`, or has no list.
          IndexError: see `enter`.
        """
        entry, entry_end = self.enter(at)
        key, key_end = self.enter(entry)
        self.expect(key_end - key == len(name), name.decode())
        for place, letter in enumerate(name):
            self.expect(self._raw[key + place] == letter, name.decode())
        feature, _ = self.enter(key_end)
        begin, end = self.enter(feature)
        self.expect(end == entry_end, name.decode())
        return begin, end, entry_end

    @staticmethod
    def expect(as_it_should: np.ndarray, what: str) -> None:
        """Raises ValueError, which says `what` is not as it should, if that is so of any record."""
        if not np.all(as_it_should):
            raise ValueError(f"{what} of record {np.flatnonzero(~as_it_should)[0]} of those read together")


def decode_record_texts(contents: Sequence[bytes]) -> list[Record]:
    """Parses what `encode_record_text` wrote; many records at once are much faster than one at a time.

    Raises:
      ValueError: if the bytes are not such records.
    """
    walker = _Walker(contents)
    try:
        at, stop = walker.enter(walker.starts)
        walker.expect(stop == walker.ends, "the length")
        columns: dict[str, list[str]] = {}
        for name in FIELDS[:-1]:
            begin, end, at = walker.feature(at, name.encode())
            columns[name] = _one(walker, begin, end)
        begin, end, at = walker.feature(at, FIELDS[-1].encode())
        turns = _many(walker, begin, end)
        walker.expect(at == walker.ends, "the end")
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a text record: {error}") from error
    return list(map(Record, columns["id"], columns["source"], map(tuple, turns), columns["system"], columns["text"]))


def _one(walker: _Walker, at: np.ndarray, end: np.ndarray) -> list[str]:
    """The text in each record's list of one value."""
    begin, stop = walker.enter(at)
    walker.expect(stop == end, "the one value")
    return _texts(walker, begin, stop) if np.any(begin < stop) else [""] * len(at)


def _many(walker: _Walker, at: np.ndarray, end: np.ndarray) -> list[list[str]]:
    """The texts in each record's list of values."""
    found: list[list[str]] = [[] for _ in range(len(at))]
    left = np.flatnonzero(at < end)
    while len(left):
        begin, stop = walker.enter(at[left])
        walker.expect(stop <= end[left], "a value")
        for record, text in zip(left.tolist(), _texts(walker, begin, stop), strict=True):
            found[record].append(text)
        at[left] = stop
        left = left[stop < end[left]]
    return found


def _texts(walker: _Walker, begin: np.ndarray, stop: np.ndarray) -> list[str]:
    return [walker.data[a:b].decode() for a, b in zip(begin.tolist(), stop.tolist(), strict=True)]
