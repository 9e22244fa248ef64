"""Text records as serialised tf.train.Example: checked against protobuf, which TensorFlow Datasets uses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from data_tools.records.text_codec import decode_record_texts, encode_record_text
from huatuo_jax.data.record import Record

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["药" * 50, "a" * 127, "b" * 20_000])
)
RECORDS = st.lists(st.builds(Record, TEXT, TEXT, st.lists(TEXT, max_size=5).map(tuple), TEXT, TEXT), max_size=6)


@settings(deadline=None)
@given(RECORDS)
def test_every_record_comes_back(records):
    assert decode_record_texts([encode_record_text(record) for record in records]) == records


@settings(deadline=None)
@given(RECORDS)
def test_protobuf_reads_the_same(records):
    for record in records:
        feature = tf_example_pb2.Example.FromString(encode_record_text(record)).features.feature
        for name in ("id", "source", "system", "text"):
            assert [value.decode() for value in feature[name].bytes_list.value] == [getattr(record, name)]
        assert tuple(value.decode() for value in feature["turns"].bytes_list.value) == record.turns


def test_damaged_bytes_are_refused():
    whole = encode_record_text(Record("1", "sft", ("问", "答" * 100)))
    for content in (b"", whole[:-1], whole + b"\n", whole.replace(b"system", b"sisten"), b"\n\x7f" + whole[2:]):
        with pytest.raises(ValueError, match="not a text record"):
            decode_record_texts([whole, content, whole])
