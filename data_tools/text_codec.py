"""Text records ⇄ bytes: a `Record` becomes one serialised `tf.train.Example` of byte lists, and back, without tensorflow.

The message class is declared here in a pool of its own (the same wire format that TensorFlow Datasets reads), because importing
tensorflow_datasets for it would cost every worker process most of a second. Reading does without messages: it walks through
many records in step, because a build spends more on a message's Python objects than on all of its arithmetic.
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


def decode_record_texts(contents: Sequence[bytes]) -> list[Record]:
    """Parses what `encode_record_text` wrote; many records at once are much faster than one at a time.

    Raises:
      ValueError: if the bytes are not such records.
    """
    data = b"".join(contents)
    walker = _Walker(data)
    sizes = np.fromiter(map(len, contents), np.int64, len(contents))
    ends = np.cumsum(sizes)
    try:
        at, stop = walker.enter(ends - sizes)
        walker.expect(stop == ends, "its length")
        columns: dict[str, list[str]] = {}
        for name in FIELDS[:-1]:
            begin, end, at = walker.field(at, name)
            columns[name] = walker.one(begin, end)
        begin, end, at = walker.field(at, FIELDS[-1])
        turns = walker.many(begin, end)
        walker.expect(at == ends, "its end")
    except IndexError as error:
        raise ValueError("not a text record: it is cut off") from error
    return list(map(Record, columns["id"], columns["source"], map(tuple, turns), columns["system"], columns["text"]))


class _Walker:
    """Reads the same field of many records at a time; every position is an int64 [records] of offsets into `data`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._raw = np.frombuffer(data, np.uint8)

    def enter(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last offset of the length-delimited field that begins at `at`."""
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

    def field(self, at: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the map entry at `at`, which must be called `name`: begin and end of its values, and the entry's end."""
        entry, entry_end = self.enter(at)
        key, key_end = self.enter(entry)
        self.expect(key_end - key == len(name), name)
        for place, letter in enumerate(name.encode()):
            self.expect(self._raw[key + place] == letter, name)
        feature, _ = self.enter(key_end)
        begin, end = self.enter(feature)
        self.expect(end == entry_end, name)
        return begin, end, entry_end

    def one(self, at: np.ndarray, end: np.ndarray) -> list[str]:
        """The text in each list of one value."""
        begin, stop = self.enter(at)
        self.expect(stop == end, "one value")
        return self._texts(begin, stop) if np.any(begin < stop) else [""] * len(at)

    def many(self, at: np.ndarray, end: np.ndarray) -> list[list[str]]:
        """The texts in each list of values."""
        found: list[list[str]] = [[] for _ in range(len(at))]
        left = np.flatnonzero(at < end)
        while len(left):
            begin, stop = self.enter(at[left])
            self.expect(stop <= end[left], "several values")
            for record, text in zip(left.tolist(), self._texts(begin, stop), strict=True):
                found[record].append(text)
            at[left] = stop
            left = left[stop < end[left]]
        return found

    def _texts(self, begin: np.ndarray, stop: np.ndarray) -> list[str]:
        return [self.data[a:b].decode() for a, b in zip(begin.tolist(), stop.tolist(), strict=True)]

    @staticmethod
    def expect(as_it_should: np.ndarray, what: str) -> None:
        """Raises ValueError if any record is not as `encode_record_text` writes it."""
        if not np.all(as_it_should):
            raise ValueError(f"not a text record ({what}), number {np.flatnonzero(~as_it_should)[0]} of those read together")
