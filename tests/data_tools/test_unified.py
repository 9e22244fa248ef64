"""Records as serialised tf.train.Example: every record comes back, and damaged bytes are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from data_tools.records.unified import UnifiedDataset, UnifiedWriter, decode_records, encode_record
from huatuo_jax.data.dialogue import Record
from huatuo_jax.errors import DataError

TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["药" * 50, "a" * 127, "b" * 20_000])
)
RECORDS = st.lists(st.builds(Record, TEXT, TEXT, st.lists(TEXT, max_size=5).map(tuple), TEXT, TEXT), max_size=6)


@settings(deadline=None)
@given(RECORDS)
def test_every_record_comes_back(records):
    assert decode_records([encode_record(record) for record in records]) == records


@settings(deadline=None)
@given(RECORDS)
def test_protobuf_reads_the_same(records):
    for record in records:
        feature = tf_example_pb2.Example.FromString(encode_record(record)).features.feature
        for name in ("id", "source", "system", "text"):
            assert [value.decode() for value in feature[name].bytes_list.value] == [getattr(record, name)]
        assert tuple(value.decode() for value in feature["turns"].bytes_list.value) == record.turns


def test_damaged_bytes_are_refused():
    whole = encode_record(Record("1", "sft", ("问", "答" * 100)))
    for content in (b"", whole[:-1], whole + b"\n", whole.replace(b"system", b"sisten"), b"\n\x7f" + whole[2:]):
        with pytest.raises(ValueError, match="not a text record"):
            decode_records([whole, content, whole])


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00\x10\x00{'descr': '(       \n", b"no array"])
@pytest.mark.parametrize("name", ["source_ids", "text_hashes", "sizes"])
def test_damaged_arrays_are_refused_with_the_remedy(tmp_path, name, content):
    with UnifiedWriter(tmp_path / "unified") as writer:
        writer.write(Record("1", "sft", ("问", "答")))
        writer.finish()
    (tmp_path / "unified" / f"{name}.npy").write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.npy is missing or torn .*; import"):
        UnifiedDataset(tmp_path / "unified")
