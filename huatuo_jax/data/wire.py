"""Protobuf's wire format, many messages at a time: the same field of each record is entered in step, with numpy.

A message object, or a loop over bytes, costs Python several objects per field; that is most of the time of reading short records.
"""

from collections.abc import Sequence

import numpy as np


class Walker:
    """Reads the same field of many records at a time; every position is an int64 [records] of offsets into `data`.

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
