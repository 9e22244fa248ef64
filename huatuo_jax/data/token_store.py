"""The token dataset: every record as tokens and targets, uncut, read by its number from any thread.

`huatuo-data build` writes it (`data_tools/tokens`), `huatuo-data plan` looks at its sizes only, and training reads its records as
rows (`rows.py`, next on the way). What must hold: a finished folder never changes, and a changed one is refused, down to a bit:
a plan carries the hash of the manifest, the manifest the CRC-32 of each .npy file, and `checksums` the CRC-32 of each record's
words, which is compared whenever a record is read.

    TOKENS/manifest.json                            written last: without it the build is unfinished
    TOKENS/SOURCE/{split}.lengths.npy               also target_counts, first_targets, checksums: int32 [records]; none of an
                                                    empty split
    TOKENS/SOURCE/{split}-00000-of-00002.tokens     uint32 [tokens], little-endian: the records of a shard end to end

A token is one word of 32 bits, `token + code · 2³⁰`. The code says what the target of the token is: 0 = ignored, 1 = the token
itself, 2 = the end token. A question (5, 6), an answer (7, 8) and the token that opens the next question, where the answer ends:

    tokens      5     6     7           8           5
    targets  -100  -100     7           8           2 (EOS)
    words       5     6     7 + 1·2³⁰   8 + 1·2³⁰   5 + 2·2³⁰

Flat words are read by slicing a memory map; benchmarks/RESULTS.md has the figures beside two record formats.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from huatuo_jax.config import require
from huatuo_jax.data.dialogue import IGNORED, Encoded, Examples
from huatuo_jax.data.tokenizers import Tokenizer, load_tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike, cached_copy, is_local, read_json, read_npy, sha256_json

SCHEMA = 3
SPLITS = ("train", "holdout")
STATISTICS = ("lengths", "target_counts", "first_targets", "checksums")
REMEDY = "build the token dataset again (`huatuo-data build` into a new folder)"

# Two bits for the code leave 30 for the token: four thousand times the 262,144 of the largest vocabularies in use.
_CODE_SHIFT = 30
_TOKEN_MASK = np.uint32((1 << _CODE_SHIFT) - 1)
_ITSELF, _END = 1, 2


def pack_words(tokens: np.ndarray, targets: np.ndarray, eos_id: int) -> np.ndarray:
    """Tokens and unshifted targets, int32 [n] each, as words: uint32 [n].

    Raises:
      DataError: a target is neither ignored, nor its token, nor `eos_id`; or a token does not fit into 30 bits.
    """
    itself, end = targets == tokens, targets == eos_id
    if np.any(other := ~(itself | end | (targets == IGNORED))):
        place = int(np.argmax(other))
        raise DataError(
            f"token {tokens[place]} at place {place} has the target {targets[place]}; a token dataset holds only {IGNORED} "
            f"(ignored), the token itself or the end token {eos_id}: change the dialogue format that makes other targets"
        )
    # A negative id would become a large unsigned one, so one comparison finds both.
    words = tokens.astype("<u4")
    if np.any(words > _TOKEN_MASK):
        raise DataError(f"a token id is outside 0 … {_TOKEN_MASK:,}; use a tokenizer with a smaller vocabulary")
    return words | (np.where(itself, _ITSELF, np.where(end, _END, 0)).astype("<u4") << _CODE_SHIFT)


def unpack_words(words: np.ndarray, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and unshifted targets, int32 [n] each, of words (uint32 [n]); inverse of `pack_words`."""
    tokens = (words & _TOKEN_MASK).view(np.int32)
    codes = words >> _CODE_SHIFT
    return tokens, np.where(codes == _ITSELF, tokens, np.where(codes == _END, np.int32(eos_id), np.int32(IGNORED)))


def write_shard(path: PathLike, batches: Iterable[Examples], eos_id: int) -> dict[str, Any]:
    """Writes a local shard file; the caller writes it aside and renames it. Raises as `pack_words` does.

    Returns:
      The STATISTICS of its records, int32 [records] each.
    """
    written = [np.zeros((len(STATISTICS), 0), np.int32)]
    with open(path, "wb") as file:
        for examples in batches:
            words = pack_words(examples.tokens, examples.targets, eos_id)
            ends = np.cumsum(examples.lengths).tolist()
            checksums = [zlib.crc32(words[start:end].data) for start, end in zip([0, *ends], ends, strict=False)]
            written.append(np.stack([*_sizes(examples), np.array(checksums, np.uint32).view(np.int32)]))
            file.write(words.data)
    return dict(zip(STATISTICS, np.concatenate(written, axis=1), strict=True))


def _sizes(examples: Examples) -> tuple[np.ndarray, ...]:
    """int32 [n] each: length, targets from position 1 on (the shift never uses position 0), place of the first one.

    The place is the length where there is no target.
    """
    # Two examples, the second without a target ("-" is ignored):
    #
    #     targets    -  5  7 |  -  -          starts 0 3, ends 3 5
    #     learned    0  1  1 |  0  0
    #     before     0  0  1    2  2  2       targets before each place, and in all
    #     places     1  2  5                  where targets are, and the end
    #
    # target_counts: before[ends] - before[starts] = 2 0. The first target of an example is number before[start] of all, at
    # places[0] = 1 and places[2] = 5; the second lies at the example's end, so there is none: first_targets 1 2.
    lengths = examples.lengths
    ends = np.cumsum(lengths)
    starts = ends - lengths
    learned = examples.targets != IGNORED
    learned[starts[lengths > 0]] = False
    before = np.concatenate([[0], np.cumsum(learned)])
    places = np.append(np.flatnonzero(learned), len(learned))
    firsts = np.minimum(places[before[starts]], ends) - starts
    return tuple(sizes.astype(np.int32) for sizes in (lengths, before[ends] - before[starts], firsts))


def shard_name(split: str, index: int, count: int) -> str:
    """File name of one shard of a source."""
    return f"{split}-{index:05d}-of-{count:05d}.tokens"


class TokenDataset:
    """Records of all sources under one numbering: document id = `offsets(split)[source index] + record index`.

    Attributes:
      path: the folder.
      manifest: as written by the build; manifest_hash: its SHA-256, the identity of the data, which plans carry.
      sources: names, in the order of the manifest.
    """

    def __init__(self, path: PathLike, manifest: dict[str, Any]) -> None:
        self.path = epath.Path(path)
        self.manifest = manifest
        self.manifest_hash = sha256_json(manifest)
        self.sources: tuple[str, ...] = tuple(manifest["sources"])
        self._eos_id = int(manifest["tokenizer"]["eos_id"])
        self._statistics: dict[tuple[str, str, str], np.ndarray] = {}
        self._words = {split: _Words(self, split) for split in SPLITS}

    @classmethod
    def open(cls, path: PathLike) -> "TokenDataset":
        """Opens a finished token dataset.

        Raises:
          DataError: if there is none, another schema, or a file of it is missing or torn.
        """
        manifest_path = epath.Path(path) / "manifest.json"
        if not manifest_path.exists():
            if (epath.Path(path) / "build.json").exists():
                remedy = "its build was interrupted; the same `huatuo-data build` command continues it"
            elif epath.Path(path).exists():
                remedy = "give the folder that `huatuo-data build` wrote"
            else:
                remedy = "there is no such folder; give the one that `huatuo-data build` wrote"
            raise DataError(f"{path} holds no finished token dataset (no manifest.json): {remedy}")
        try:
            manifest = read_json(manifest_path)
            schema, _ = manifest["schema"], manifest["tokenizer"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{manifest_path} is not the manifest of a token dataset ({error!r}); {REMEDY}") from error
        if schema != SCHEMA:
            raise DataError(f"{path} has schema {schema}, this version reads schema {SCHEMA}; {REMEDY}")
        return cls(path, manifest)

    @property
    def tokenizer_path(self) -> epath.Path:
        """The tokenizer file that the dataset was built with; it lies in the folder."""
        return self.path / self.manifest["tokenizer"]["path"]

    def load_tokenizer(self, copy: PathLike | None = None) -> Tokenizer:
        """The tokenizer that the dataset was built with, from its folder or from another `copy`.

        Raises:
          ConfigError: the copy is another tokenizer.
        """
        tokenizer, expected = load_tokenizer(copy or self.tokenizer_path), self.manifest["tokenizer"]["fingerprint"]
        require(
            tokenizer.fingerprint == expected,
            f"{tokenizer.path} is not the tokenizer that made the tokens (SHA-256 {expected[:12]}…); "
            "name a copy of that file by --tokenizer",
        )
        return tokenizer

    def count(self, source: str, split: str = "train") -> int:
        """Number of records."""
        return int(self.manifest["sources"][source][split]["records"])

    def lengths(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: tokens of each record."""
        return self._statistic(source, split, "lengths")

    def target_counts(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: targets of each record that are not ignored, from position 1 on."""
        return self._statistic(source, split, "target_counts")

    def first_targets(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: first position ≥ 1 whose target is not ignored; the record's length if there is none."""
        return self._statistic(source, split, "first_targets")

    def checksums(self, source: str, split: str = "train") -> np.ndarray:
        """int32 [records]: CRC-32 of each record's words."""
        return self._statistic(source, split, "checksums")

    def offsets(self, split: str = "train") -> np.ndarray:
        """int64 [sources + 1]: document ids at which each source begins."""
        return np.cumsum([0, *(self.count(source, split) for source in self.sources)], dtype=np.int64)

    def read(self, doc_ids: np.ndarray, split: str = "train") -> list[Encoded]:
        """(tokens, targets) of each document, int32 [length] each, targets not shifted; see `read_joined`."""
        return self.read_joined(doc_ids, split).split()

    def read_joined(self, doc_ids: np.ndarray, split: str = "train", limit: int | None = None) -> Examples:
        """The documents end to end, each cut to `limit` tokens; safe to call from several threads.

        Args:
          doc_ids: int64 [n], in any order.

        Raises:
          DataError: if an id is out of range, or a file cannot be read or was changed.
        """
        words, lengths = self._words[split].read(np.asarray(doc_ids, np.int64), limit)
        return Examples(*unpack_words(words, self._eos_id), lengths)

    def _statistic(self, source: str, split: str, name: str) -> np.ndarray:
        key = (source, split, name)
        # An empty split has no files.
        if not self.count(source, split):
            return np.zeros(0, np.int32)
        if key not in self._statistics:
            path = self.path / source / f"{split}.{name}.npy"
            try:
                array = read_npy(path)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} is missing or torn ({error}); {REMEDY}") from error
            if array.dtype != np.int32 or array.shape != (self.count(source, split),):
                expected = f"int32 ({self.count(source, split)},) as the manifest says"
                raise DataError(f"{path} holds {array.dtype} {array.shape}, not {expected}; {REMEDY}")
            if zlib.crc32(array.data) != self.manifest["sources"][source][split]["crc32"][name]:
                raise DataError(f"{path} was changed after the build: its checksum is not the manifest's; {REMEDY}")
            self._statistics[key] = array
        return self._statistics[key]


class _Words:
    """The words of one split, through all sources and shards under one numbering of places.

    Shard files are checked at once and mapped when a record of theirs is first read.
    """

    # Two sources with three shards in all:
    #
    #     shard_starts   0       900              2000        2600    from the manifest
    #     record_starts  0  300  900  1100  1500  2000  2300  2600    sums of the lengths
    #
    # Document 4 has the words 1500 … 1999; they are in shard 1, at 600 … 1099. A shard never ends within a record.

    def __init__(self, dataset: TokenDataset, split: str) -> None:
        self._dataset, self._split = dataset, split
        shards = [
            (dataset.path / source / shard["file"], shard["tokens"])
            for source in dataset.sources
            for shard in dataset.manifest["sources"][source]["shards"]
            if shard["split"] == split and shard["tokens"]
        ]
        self._paths = [path for path, _ in shards]
        self._shard_starts = np.cumsum([0, *(tokens for _, tokens in shards)], dtype=np.int64)
        self._records: tuple[np.ndarray, np.ndarray] | None = None
        self._maps: list[np.ndarray | None] = [None] * len(shards)
        for path, tokens in shards:
            try:
                size = path.stat().length
            except FileNotFoundError:
                raise DataError(f"{path} is missing; {REMEDY}") from None
            if size != 4 * tokens:
                raise DataError(f"{path} has {size:,} bytes, the manifest says {4 * tokens:,}: it is torn or altered; {REMEDY}")

    def read(self, doc_ids: np.ndarray, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The documents' words end to end, each cut to `limit`, and how many there are of each: uint32 [sum], int64 [n]."""
        starts, checksums = self._starts_and_checksums()
        if not len(doc_ids):
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        if doc_ids.min() < 0 or doc_ids.max() >= len(starts) - 1:
            raise DataError(f"document {doc_ids.min()} … {doc_ids.max()} is outside 0 … {len(starts) - 2}")
        begins, ends = starts[doc_ids], starts[doc_ids + 1]
        shards = np.searchsorted(self._shard_starts[1:-1], begins, side="right")
        # Slices of a map copy nothing; `concatenate` reads them from the page cache straight into the result.
        firsts = self._shard_starts[shards]
        spans = zip(shards.tolist(), (begins - firsts).tolist(), (ends - firsts).tolist(), strict=True)
        documents = [self._map(shard)[begin:end] for shard, begin, end in spans]
        # A flipped bit would train without a word. Before the cut: the checksum is that of the whole document.
        found = np.array([zlib.crc32(document.data) for document in documents], np.uint32)
        if np.any(changed := found != checksums[doc_ids]):
            place = int(np.argmax(changed))
            path = self._paths[shards[place]]
            raise DataError(f"{path}: document {doc_ids[place]} was changed after the build (its checksum differs); {REMEDY}")
        lengths = ends - begins
        return np.concatenate([document[:limit] for document in documents]), np.minimum(lengths, limit or lengths)

    def _starts_and_checksums(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each record begins, int64 [records + 1], and its checksum, uint32 [records]."""
        # Two threads may both compute it, or both open a map: they get the same, and one of the two is dropped.
        if self._records is None:
            dataset, split = self._dataset, self._split
            none = np.zeros(1, np.int32)
            lengths = [none, *(dataset.lengths(source, split) for source in dataset.sources)]
            checksums = [none[:0], *(dataset.checksums(source, split) for source in dataset.sources)]
            starts = np.cumsum(np.concatenate(lengths), dtype=np.int64)
            self._records = starts, np.concatenate(checksums).view(np.uint32)
        return self._records

    def _map(self, shard: int) -> np.ndarray:
        words = self._maps[shard]
        if words is None:
            path = self._paths[shard]
            try:
                # An object store has no memory maps: there the whole shard is copied to local disk first.
                copies = f"tokens/{self._dataset.manifest_hash}/{path.parent.name}"
                local = path if is_local(path) else cached_copy(path, copies)
                # Slices of a plain array are several times as fast as slices of a `memmap`.
                words = np.memmap(local, "<u4", "r").view(np.ndarray)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read ({error}); {REMEDY}") from error
            self._maps[shard] = words
        return words
