"""Token records ⇄ bytes: two int32 arrays (tokens, targets) become one serialised `tf.train.Example`, and back.

The bytes are what TensorFlow Datasets writes for the features `tokens` and `targets`; both directions are vectorised varint
arithmetic in numpy, because a protobuf object holds a Python integer per token.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from huatuo_jax.data.wire import Walker

NAMES = (b"targets", b"tokens")
WIDE = 1 << 21
"""Numbers from here on, and negative ones, need more than three varint bytes; among token ids they are rare."""
INT32_BYTES = 5
"""A varint's first five bytes hold 35 bits; the rest of a negative number only repeats its sign."""
_KEPT = np.array([0, 0x01, 0x0101, 0x010101], "<u4")

IGNORED = -100
_IGNORED_VARINT = b"\x9c" + b"\xff" * 8 + b"\x01"
_MARK, _MARK_WORD = b"\x80\x80\x00", np.uint32(0x008080)
"""Zero in three bytes: no number is written so, which makes it a safe stand-in for the ten bytes of IGNORED."""
_BITS = np.array([0, 0x7F, 0x7FFF, 0x7FFFFF, 0x7FFFFFFF], "<u4")
"""What belongs to a varint of 0 to 3 bytes in a little-endian word, and of 4 or more."""
_SHORT = [bytes((value,)) for value in range(0x80)]

Span = tuple[int, int]


def encode_examples(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[bytes]:
    """Serialises records given as (tokens, targets), each int [n]; see `encode_flat`."""
    lengths = [len(tokens) for tokens, _ in pairs]
    flat = [np.concatenate([np.zeros(0, np.int32), *arrays]) for arrays in ([t for t, _ in pairs], [g for _, g in pairs])]
    return encode_flat(flat[0], flat[1], np.array(lengths, np.int64))


def encode_flat(tokens: np.ndarray, targets: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """Serialises records that lie end to end.

    Args:
      tokens, targets: int [sum of lengths]. lengths: int [n].

    Returns:
      One serialised `tf.train.Example` per record; many at once are much faster than one at a time.
    """
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    payloads, spans = zip(*(_encode_varints(values, bounds) for values in (targets, tokens)), strict=True)
    out = []
    for (a, b), (c, d) in zip(*map(itertools.pairwise, spans), strict=True):
        targets_head, targets_size = _entry_head(NAMES[0], b - a)
        tokens_head, tokens_size = _entry_head(NAMES[1], d - c)
        size = _varint(targets_size + tokens_size)
        out.append(b"".join((b"\n", size, targets_head, payloads[0][a:b], tokens_head, payloads[1][c:d])))
    return out


def decode_examples(examples: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parses what `encode_examples` wrote, or TensorFlow Datasets for the same features.

    Returns:
      (tokens, targets) per record, each int32 [n].

    Raises:
      ValueError: if the bytes are not such examples.
    """
    try:
        data, spans = _payloads(examples)
        parts = [data[start:end].replace(_IGNORED_VARINT, _MARK) for start, end in spans]
        values, ends = _decode_varints(b"".join(parts), np.cumsum([len(part) for part in parts]))
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"not a token record: {error!r}") from error
    arrays = [values[start:end] for start, end in itertools.pairwise([0, *ends])]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def _payloads(examples: Sequence[bytes]) -> tuple[bytes, list[Span]]:
    """The examples end to end, and where in them the packed varints lie: tokens, then targets of each example."""
    walker = Walker(examples)
    try:
        at, end = walker.enter(walker.starts)
        targets, targets_end, at = walker.feature(at, NAMES[0])
        tokens, tokens_end, at = walker.feature(at, NAMES[1])
        walker.expect((at == end) & (end == walker.ends), "the end")
        spans = [walker.enter(tokens), walker.enter(targets)]
        walker.expect((spans[0][1] == tokens_end) & (spans[1][1] == targets_end), "a list")
    except (IndexError, ValueError):  # TensorFlow Datasets writes the two in any order, and empty lists in another way.
        found = [_payload(walker.data, *bounds) for bounds in zip(walker.starts.tolist(), walker.ends.tolist(), strict=True)]
        return walker.data, [spans[name] for spans in found for name in (b"tokens", b"targets")]
    return walker.data, list(map(tuple, np.stack([np.stack(span, 1) for span in spans], 1).reshape(-1, 2).tolist()))


def _payload(data: bytes, start: int, end: int) -> dict[bytes, Span]:
    """Where the packed varints of each feature lie in the example between two offsets."""
    found = {}
    for features in _fields(data, start, end):
        for entry in _fields(data, *features):
            key, feature = _fields(data, *entry)
            spans = [span for numbers in _fields(data, *feature) for span in _fields(data, *numbers)]
            found[data[key[0] : key[1]]] = spans[0] if spans else (0, 0)
    return found


def _fields(data: bytes, start: int, end: int) -> list[Span]:
    """The (start, end) of every length-delimited field between two offsets; all fields of an example are such."""
    spans = []
    while start < end:
        if data[start] & 7 != 2:
            raise ValueError(f"field of wire type {data[start] & 7} at byte {start}")
        size = data[start + 1]
        start += 2
        shift = 7
        while size >> shift:
            size = size & ((1 << shift) - 1) | data[start] << shift
            start += 1
            shift += 7
        if start + size > end:
            raise ValueError(f"field at byte {start} runs past its end")
        spans.append((start, start + size))
        start += size
    return spans


@functools.lru_cache(1 << 16)
def _entry_head(name: bytes, size: int) -> tuple[bytes, int]:
    """What precedes `size` bytes of varints in the feature map (entry, key, Feature, Int64List), and the size of it all."""
    numbers = _varint(size)
    list_size = 1 + len(numbers) + size
    list_ = _varint(list_size)
    feature_size = 1 + len(list_) + list_size
    feature = _varint(feature_size)
    entry_size = 3 + len(name) + len(feature) + feature_size
    entry = _varint(entry_size)
    head = b"".join((b"\n", entry, b"\n", _varint(len(name)), name, b"\x12", feature, b"\x1a", list_, b"\n", numbers))
    return head, 1 + len(entry) + entry_size


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SHORT[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encode_varints(values: np.ndarray, boundaries: np.ndarray) -> tuple[bytes, list[int]]:
    """Varints of int32 `values` [n] in one buffer, and the buffer offsets at the given value boundaries."""
    low = values.astype(np.int32, copy=False).view(np.uint32)
    two, three = low >= 1 << 7, low >= 1 << 14
    sizes = two.view(np.int8) + three.view(np.int8) + np.int8(1)
    words = (low & 0x7F) | ((low << 1) & 0x7F00) | ((low << 2) & 0x7F0000)
    words |= (two.view(np.uint8).astype(np.uint32) << 7) | (three.view(np.uint8).astype(np.uint32) << 15)
    wide = low >= WIDE
    if not wide.any():
        out = _bytes_of(words, sizes)
    elif np.all(values[wide] == IGNORED):
        words[wide] = _MARK_WORD
        out = _bytes_of(words, sizes).replace(_MARK, _IGNORED_VARINT)
        sizes[wide] = len(_IGNORED_VARINT)
    else:
        wide_bytes, wide_sizes = _encode_wide(values[wide].astype(np.int64))
        narrow = ~wide
        narrow_bytes = _bytes_of(words[narrow], sizes[narrow])
        sizes[wide] = wide_sizes
        is_wide = np.repeat(wide, sizes)
        mixed = np.empty(len(is_wide), np.uint8)
        mixed[is_wide] = wide_bytes
        mixed[~is_wide] = np.frombuffer(narrow_bytes, np.uint8)
        out = mixed.tobytes()
    at = np.zeros(len(values) + 1, np.int64)
    np.cumsum(sizes, out=at[1:])
    return out, at[boundaries].tolist()


def _bytes_of(words: np.ndarray, sizes: np.ndarray) -> bytes:
    """The first `sizes[i]` (1 to 3) bytes of each little-endian word."""
    kept = _KEPT.take(sizes).view(np.bool_)
    return np.compress(kept, words.astype("<u4", copy=False).view(np.uint8)).tobytes()


def _encode_wide(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Varint bytes of int64 values that are negative (ten bytes each) or large, and the size of each."""
    places = np.arange(10, dtype=np.uint64)
    digits = (values.view(np.uint64)[:, None] >> (places * np.uint64(7))).astype(np.uint8) & np.uint8(0x7F)
    sizes = 10 - (digits[:, ::-1] != 0).argmax(axis=1)
    kept = np.arange(10) < sizes[:, None]
    digits[:, :-1] |= kept[:, 1:].astype(np.uint8) << np.uint8(7)
    return digits[kept], sizes


def _decode_varints(data: bytes, boundaries: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """int32 [n] of the varints in `data`, and how many of them lie before each of the byte `boundaries`."""
    raw = np.frombuffer(data + bytes(INT32_BYTES), np.uint8)
    last = np.flatnonzero(raw[: len(data)] < 0x80)
    ends = np.searchsorted(last, boundaries)
    reached = np.concatenate([[0], last + 1])[ends]
    if not np.array_equal(reached, boundaries):
        raise ValueError("a number is cut off")
    sizes = np.diff(last, prepend=-1)
    first = last - sizes + 1
    words = np.ndarray(len(raw) - 3, "<u4", raw, strides=(1,))[first] & _BITS.take(sizes, mode="clip")
    values = words & 0x7F
    for byte in (1, 2, 3):
        values |= (words >> np.uint32(byte)) & np.uint32(0x7F << 7 * byte)
    wide = np.flatnonzero(sizes >= INT32_BYTES)
    values[wide] |= (raw[first[wide] + 4] & 0x7F).astype(np.uint32) << np.uint32(28)
    out = values.view(np.int32)
    out[words == _MARK_WORD] = IGNORED
    return out, ends.tolist()
