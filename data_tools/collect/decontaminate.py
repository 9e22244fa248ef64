"""Which exam questions a text holds, and how texts with questions are taken out of a corpus or a data set.

Two ways lead here: `pipeline.py` asks of the passages of a run (`with_questions`), `huatuo-data decontaminate` of the rows of any
files (`decontaminate_files`). A question (`exams.py`) is recognised by its hashed n-grams (of characters in Chinese, of words in
English). Its own text and each of its options count apart, so that letters before options, line breaks and the order of options
make no difference. The index and the two ways follow in this order.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.collect.exams import MAX_REJECTED, Item
from data_tools.collect.ngrams import HashedRows, characters, ngrams, normalise, words
from data_tools.collect.settings import Overlap
from data_tools.records.importing import RejectedLog, check_inputs, check_share, plain_stem, read_all
from data_tools.records.language import language_of
from huatuo_jax.errors import ConfigError, RecordError
from huatuo_jax.io.jsonl import KeyedValue, write_lines

BATCH = 256
SEAM_CHARS_PER_UNIT = 12
"""So many characters at the end or start of a text hold a letter or word of a question that is cut there."""


@dataclass(frozen=True)
class Hit:
    """A question found in a text: `share` of its n-grams occur there."""

    item: Item
    share: float

    def to_json(self) -> dict[str, Any]:
        """Which question, and how much of it."""
        return {"exam": self.item.exam, "item": self.item.id, "share": round(self.share, 3)}


class ExamIndex:
    """Finds exam questions in texts.

    Attributes:
      items: the questions. sizes: distinct n-grams of each question, int64 [items]. unusable: how many have no letters at all.
    """

    def __init__(self, items: Sequence[Item], overlap: Overlap | None = None) -> None:
        self.items = tuple(items)
        self._overlap = overlap = overlap or Overlap()
        options = [(option, i) for i, item in enumerate(items) for option in item.options]
        # A question and its options are searched in one language, even if the options alone are Latin names.
        languages = [language_of(item.question + " ".join(item.options)) for item in items]
        self._questions = _GramTables([(item.question, i) for i, item in enumerate(items)], languages, overlap)
        self._options = _GramTables(options, languages, overlap)
        self.sizes = self._questions.sizes
        self.unusable = int((self.sizes == 0).sum())

    def find(self, texts: Sequence[str]) -> list[list[Hit]]:
        """The questions that each text holds, the best first."""
        return self._hits(texts, self._questions.count(texts))

    def find_with_cut(self, texts: Sequence[str], follows: Sequence[bool]) -> tuple[list[list[Hit]], list[list[Hit]]]:
        """The questions that each text holds, and those that it holds only together with the text before it.

        Args:
          follows: for each text whether it is to be looked at together with the one before; the first's counts as False.
        """
        # A question of 20 n-grams, cut so that one text ends with 9 of them and the next begins with 4; the other 7 lie across
        # the seam. Neither text holds .6 of them, both joined hold all. Joining every two neighbours would double the work, so
        # an upper bound comes first: what each text has alone (9 + 4) and what a short piece around the seam has (7, or more
        # if it reaches into either). Only where that sum is large enough are the two looked at together.
        counts = self._questions.count(texts)
        alone, cut = self._hits(texts, counts), [list[Hit]() for _ in texts]
        seconds = [row for row in range(1, len(texts)) if follows[row]]
        seam = SEAM_CHARS_PER_UNIT * max(self._overlap.zh_characters, self._overlap.en_words)
        across = self._questions.count([f"{texts[row - 1][-seam:]}\n{texts[row][:seam]}" for row in seconds])
        most = {(seconds[pair], i): seen for (pair, i), seen in across.items()}
        for (row, i), seen in counts.items():
            for second in (row, row + 1):
                if 0 < second < len(texts) and follows[second]:
                    most[second, i] = most.get((second, i), 0) + seen
        found_alone = [{hit.item for hit in hits} for hits in alone]
        enough = [place for place, seen in most.items() if seen >= self._overlap.share * self.sizes[place[1]]]
        likely = sorted({row for row, i in enough if self.items[i] not in found_alone[row - 1] | found_alone[row]})
        joined = [f"{texts[row - 1]}\n{texts[row]}" for row in likely]
        for row, hits in zip(likely, self.find(joined), strict=True):
            cut[row] = [hit for hit in hits if hit.item not in found_alone[row - 1] | found_alone[row]]
        return alone, cut

    def _hits(self, texts: Sequence[str], counts: dict[tuple[int, int], int]) -> list[list[Hit]]:
        """The questions that each text holds by how many of their n-grams it has, the best first."""
        least = self._overlap.share
        shares = {place: seen / self.sizes[place[1]] for place, seen in counts.items()}
        shares = {place: share for place, share in shares.items() if share >= least}
        hits_of: list[list[Hit]] = [[] for _ in texts]
        # Options are often common words: they are looked for only where a question is.
        rows = sorted({row for row, _ in shares})
        options = {(rows[row], i): seen for (row, i), seen in self._options.count([texts[row] for row in rows]).items()}
        for (row, i), share in shares.items():
            # "治疗高血压首选的药物是" has 4 n-grams, and a question counts by itself from 12 on, or from 6 if it is there whole.
            # So it counts as far as its options do, unless it stands on a line of its own beside some of them.
            needed = self._overlap.whole_question if share == 1 else self._overlap.long_question
            if self.sizes[i] < needed:
                of_options = options.get((row, i), 0) / max(self._options.sizes[i], 1)
                some = of_options > 0 or not self._options.sizes[i]
                if not (some and _is_a_line(self.items[i].question, texts[row])):
                    share = min(share, of_options)
            if share >= least:
                hits_of[row].append(Hit(self.items[i], float(share)))
        for hits in hits_of:
            hits.sort(key=lambda hit: (-hit.share, hit.item.exam, hit.item.id))
        return hits_of


class _GramTables:
    """N-grams of pieces of items, and which items have each.

    A piece shorter than n is one n-gram of its own length, so there is a table per language and length: (hashes ascending,
    starts, items); the items with the k-th hash are `items[starts[k]:starts[k + 1]]`.

    Attributes:
      sizes: distinct n-grams per item, int64 [items].
    """

    def __init__(self, pieces: Sequence[tuple[str, int]], languages: Sequence[str], overlap: Overlap) -> None:
        # The options 胃癌 (item 0) and 十二指肠溃疡胃溃疡胃癌 (item 1) with n = 8: table zh, 2 has one hash of item 0; table
        # zh, 8 has the 4 n-grams of item 1; sizes = [1, 4].
        self.sizes = np.zeros(len(languages), np.int64)
        self._tables: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for language, n in (("zh", overlap.zh_characters), ("en", overlap.en_words)):
            chosen = [(text, i) for text, i in pieces if languages[i] == language]
            item_of_piece = np.array([i for _, i in chosen], np.int64)
            units = _units(language, [text for text, _ in chosen])
            lengths = np.diff(units.offsets)
            for size in sorted({min(n, length) for length in lengths.tolist() if length}):
                grams = ngrams(units, size)
                rows = np.repeat(np.arange(len(units)), np.diff(grams.offsets))
                of_size = lengths[rows] >= n if size == n else lengths[rows] == size
                pairs = np.unique(np.stack([grams.hashes[of_size], item_of_piece[rows[of_size]].astype(np.uint64)]), axis=1)
                items = pairs[1].astype(np.int64)
                np.add.at(self.sizes, items, 1)
                keys, starts = np.unique(pairs[0], return_index=True)
                self._tables[language, size] = keys, np.append(starts, len(items)), items

    def count(self, texts: Sequence[str]) -> dict[tuple[int, int], int]:
        """(text, item) → how many of the item's distinct n-grams the text holds; pairs without any are absent."""
        counts: dict[tuple[int, int], int] = {}
        units = {language: _units(language, texts) for language in sorted({language for language, _ in self._tables})}
        for (language, n), (keys, starts, items) in self._tables.items():
            grams = ngrams(units[language], n)
            at = np.minimum(np.searchsorted(keys, grams.hashes), len(keys) - 1)
            hit = np.flatnonzero(keys[at] == grams.hashes)
            rows = np.searchsorted(grams.offsets, hit, side="right") - 1
            # A text may hold an n-gram twice: it counts once.
            for row, key in sorted(set(zip(rows.tolist(), at[hit].tolist(), strict=True))):
                for i in items[starts[key] : starts[key + 1]].tolist():
                    counts[row, i] = counts.get((row, i), 0) + 1
        return counts


def _is_a_line(question: str, text: str) -> bool:
    """Whether a line of the text is the question, perhaps numbered."""
    wanted = _letters(question)
    return any(_letters(line) == wanted for line in text.splitlines() if len(line) >= len(wanted))


def _letters(text: str) -> str:
    """Letters and digits in normal form, without digits in front."""
    return "".join(filter(str.isalnum, normalise(text))).lstrip("0123456789")


def _units(language: str, texts: Sequence[str]) -> HashedRows:
    return characters(texts) if language == "zh" else words(texts)


# The two ways


def with_questions(rows: Iterator[dict[str, Any]], index: ExamIndex) -> Iterator[tuple[dict[str, Any], list[Hit]]]:
    """Each passage with the questions that it holds, alone or together with the one before or after it in its document."""
    # In batches of 2: (a b) yields a and holds b back, (b c) yields b with what it shares with c and holds c back, …, so that
    # every two neighbours are once in the same batch.
    held: list[tuple[dict[str, Any], list[Hit]]] = []
    while new := list(itertools.islice(rows, BATCH)):
        batch = [row for row, _ in held] + new
        documents = [row["id"].rpartition("-")[0] for row in batch]
        follows = [False, *(a == b for a, b in itertools.pairwise(documents))]
        alone, cut = index.find_with_cut([row["text"] for row in batch], follows)
        if held:
            alone[0] = held[0][1]
        for i, hits in enumerate(cut):
            for place in (i - 1, i) if hits else ():
                known = {hit.item for hit in alone[place]}
                alone[place] = alone[place] + [hit for hit in hits if hit.item not in known]
        yield from zip(batch[:-1], alone, strict=False)
        held = [(batch[-1], alone[-1])]
    yield from held


def decontaminate_files(
    paths: Sequence[Path],
    out: Path,
    index: ExamIndex,
    max_rejected: float = MAX_REJECTED,
    on_read: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes `out/NAME.jsonl` for each file, `out/contaminated.jsonl`, and `out/rejected.jsonl`: lines without any text.

    A row keeps its layout, whatever that is; parts of a document that is an object of lists (HuatuoGPT-II's training JSON) get
    their key as source.

    Returns:
      files: name → {rows, contaminated, rejected}; items: "exam/id" of every question found, with how often; unusable questions.

    Raises:
      ConfigError: two inputs would become the same file. DataError: too many lines are rejected, or a file is torn.
    """
    check_inputs(paths)
    names = [f"{plain_stem(path)}.jsonl" for path in paths]
    if len(set(names)) < len(names) or {"contaminated.jsonl", "rejected.jsonl"} & set(names):
        raise ConfigError(
            "two of the files have the same name, or one is called contaminated or rejected; decontaminate them one by one"
        )
    if any((out / name).resolve() == path.resolve() for name, path in zip(names, paths, strict=True)):
        raise ConfigError(f"--out {out} is the folder of an input file; give another")
    files: dict[str, Any] = {}
    items: Counter[str] = Counter()
    with write_lines(out / "contaminated.jsonl") as contaminated, write_lines(out / "rejected.jsonl") as listed:
        rejected = RejectedLog(listed)
        for path, name in zip(paths, names, strict=True):
            counts = files[path.name] = {"rows": 0, "contaminated": 0, "rejected": -rejected.count}
            rows = read_all([path], lambda value, path, number: (number, _row(value), text_of(value)), rejected, on_read)
            with write_lines(out / name) as kept:
                while batch := list(itertools.islice(rows, BATCH)):
                    for (number, row, text), hits in zip(batch, index.find([text for _, _, text in batch]), strict=True):
                        counts["rows"] += 1
                        if not hits:
                            kept.write(row)
                            continue
                        counts["contaminated"] += 1
                        questions = [hit.to_json() | {"question": hit.item.question[:200]} for hit in hits]
                        contaminated.write({"file": str(path), "line": number, "questions": questions, "text": text[:400]})
                        items.update(f"{hit.item.exam}/{hit.item.id}" for hit in hits)
            counts["rejected"] += rejected.count
    check_share(rejected, sum(counts["rows"] for counts in files.values()), max_rejected, out / "rejected.jsonl")
    return {"files": files, "items": items, "questions": len(index.items), "unusable_questions": index.unusable}


def _row(value: Any) -> Any:
    if not isinstance(value, KeyedValue):
        return value
    return {"source": value.key, **({"turns": value.value} if isinstance(value.value, list) else value.value)}


def text_of(value: Any) -> str:
    """All texts of a row, each on a line of its own: whatever its layout, no option and no turn is overlooked.

    Raises:
      RecordError: it has none.
    """
    texts = list(_strings(value.value if isinstance(value, KeyedValue) else value))
    if not texts:
        raise RecordError("holds no text")
    return "\n".join(texts)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)
