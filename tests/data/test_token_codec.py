"""Token records as serialised tf.train.Example: checked against protobuf, which TensorFlow Datasets uses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from huatuo_jax.data.token_codec import decode_examples, encode_examples

INT32 = st.integers(-(2**31), 2**31 - 1)
TOKENS = st.one_of(st.integers(0, 200_000), st.just(-100), INT32, st.sampled_from([127, 128, 16383, 16384, 2**21 - 1, 2**21]))
RECORDS = st.lists(st.lists(st.tuples(TOKENS, TOKENS), max_size=300), max_size=5)


@settings(deadline=None)
@given(RECORDS)
def test_every_int32_comes_back(records):
    pairs = [(np.array([t for t, _ in r], np.int32), np.array([g for _, g in r], np.int32)) for r in records]
    decoded = decode_examples(encode_examples(pairs))
    assert len(decoded) == len(pairs)
    for (tokens, targets), (decoded_tokens, decoded_targets) in zip(pairs, decoded, strict=True):
        assert decoded_tokens.dtype == decoded_targets.dtype == np.int32
        np.testing.assert_array_equal(decoded_tokens, tokens)
        np.testing.assert_array_equal(decoded_targets, targets)


@settings(deadline=None)
@given(RECORDS)
def test_bytes_are_those_of_protobuf(records):
    pairs = [(np.array([t for t, _ in r], np.int32), np.array([g for _, g in r], np.int32)) for r in records]
    for (tokens, targets), content in zip(pairs, encode_examples(pairs), strict=True):
        example = tf_example_pb2.Example.FromString(content)
        feature = example.features.feature
        assert list(feature["tokens"].int64_list.value) == tokens.tolist()
        assert list(feature["targets"].int64_list.value) == targets.tolist()
        ((again, _),) = decode_examples([example.SerializeToString()])
        np.testing.assert_array_equal(again, tokens)


@pytest.mark.parametrize("content", [b"\x08\x01", b"\x0a\x05abc", b"", b"\x0a\x00"])
def test_other_bytes_are_refused(content):
    with pytest.raises(ValueError, match="not a token record"):
        decode_examples([content])
