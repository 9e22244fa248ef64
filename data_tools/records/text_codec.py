"""Text records ⇄ bytes: a `Record` becomes one serialised `tf.train.Example` of byte lists, and back, without tensorflow.

The message class is declared here in a pool of its own (the same wire format that TensorFlow Datasets reads), because importing
tensorflow_datasets for it would cost every worker process most of a second. Reading does without messages (see `wire`).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from huatuo_jax.data.record import Record
from huatuo_jax.data.wire import Walker

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
    walker = Walker(contents)
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


def _one(walker: Walker, at: np.ndarray, end: np.ndarray) -> list[str]:
    """The text in each record's list of one value."""
    begin, stop = walker.enter(at)
    walker.expect(stop == end, "the one value")
    return _texts(walker, begin, stop) if np.any(begin < stop) else [""] * len(at)


def _many(walker: Walker, at: np.ndarray, end: np.ndarray) -> list[list[str]]:
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


def _texts(walker: Walker, begin: np.ndarray, stop: np.ndarray) -> list[str]:
    return [walker.data[a:b].decode() for a, b in zip(begin.tolist(), stop.tolist(), strict=True)]
