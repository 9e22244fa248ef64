"""Text records ⇄ bytes: a `Record` becomes one serialised `tf.train.Example` of byte lists, and back, without tensorflow.

The message class is declared here in a pool of its own (the same wire format that TensorFlow Datasets reads), because importing
tensorflow_datasets for it would cost every worker process most of a second.
"""

from functools import cache
from typing import Any

from huatuo_jax.data.record import Record


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


def decode_record_text(content: bytes) -> Record:
    """Parses what `encode_record_text` wrote."""
    feature = _example_class().FromString(content).features.feature

    def text(name: str) -> str:
        return feature[name].bytes_list.value[0].decode()

    turns = tuple([turn.decode() for turn in feature["turns"].bytes_list.value])
    return Record(text("id"), text("source"), turns, text("system"), text("text"))
