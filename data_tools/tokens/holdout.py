"""Which records are held out for evaluation: chosen by the hash of their text, so that duplicates fall on one side."""

from collections.abc import Sequence

import numpy as np

from huatuo_jax.errors import ConfigError


def choose_holdout(source_ids: np.ndarray, text_hashes: np.ndarray, sources: Sequence[str], count: int) -> np.ndarray:
    """Picks `count` records of every source.

    Texts are taken in the order of their hashes; all records with the same text are taken together, in whichever source they
    are, and only if no source then has more than `count`. A source made of long runs of duplicates may thus get fewer.

    Args:
      source_ids: int [n], indices into `sources`. text_hashes: uint64 [n].

    Returns:
      bool [n], true for held-out records.

    Raises:
      ConfigError: if a source would keep no record to train on.
    """
    held_out = np.zeros(len(source_ids), bool)
    if count == 0:
        return held_out
    records = np.bincount(source_ids, minlength=len(sources))
    if too_small := [f"{name} ({n:,})" for name, n in zip(sources, records.tolist(), strict=True) if n <= count]:
        raise ConfigError(
            f"--holdout {count} would leave nothing to train on in {', '.join(too_small)}; "
            f"give at most {records.min() - 1}, or leave these sources out"
        )
    by_hash = np.argsort(text_hashes, kind="stable")
    hashes = text_hashes[by_hash]
    left = np.full(len(sources), count)
    for source in range(len(sources)):
        for value in np.unique(text_hashes[source_ids == source]):
            if left[source] == 0:
                break
            same = by_hash[np.searchsorted(hashes, value) : np.searchsorted(hashes, value, side="right")]
            needed = np.bincount(source_ids[same], minlength=len(sources))
            if not held_out[same[0]] and np.all(needed <= left):
                held_out[same] = True
                left -= needed
    return held_out
