"""The settings of a collect run: one frozen dataclass per step, and `CollectConfig`, which has them all.

The command line makes a `CollectConfig`; the stages get it whole. Its `…_part` methods say what each stage's output depends on:
they go into the keys of the markers in `OUT/work`, so a changed setting makes again only what it touches.
The limits of the cleaning rules stand beside the rules, in `clean.py`. Next to read: `pipeline.py`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_tools.collect.clean import CleanRules
from huatuo_jax.config import require
from huatuo_jax.io.files import sha256_file

SCHEMA = 3
"""Raised when the passages, or the hashes stored with them, change for the same input and settings."""
FACTS_SCHEMA = 1
"""Raised when other pairs count as different facts for the same passages."""
OUTPUT_SCHEMA = 3
"""Raised when the last stage's output changes for the same input and settings."""


def _require_share(name: str, value: float) -> None:
    require(0 < value <= 1, f"{name} is {value}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class ReadingConfig:
    """How rows are read.

    Attributes:
      text_field, title_field, source_field: keys of a row; `title_field` and `source_field` may be absent from it.
      source: overrides the source that rows name; without both, it is the file's name.
      max_line_bytes: longer lines (and .txt files, and the rest of a .json document from a longer value on) are not read but put
        into quarantine.
    """

    text_field: str = "text"
    title_field: str = "title"
    source_field: str = "source"
    source: str | None = None
    max_line_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        require(self.max_line_bytes >= 1, f"--max-line-bytes is {self.max_line_bytes}; it must be at least 1")


@dataclass(frozen=True)
class Window:
    """Lengths of passages in characters.

    Attributes:
      shortest: a passage gets at least this many where the document allows. longest: it never gets more.
    """

    shortest: int
    longest: int

    def __post_init__(self) -> None:
        require(
            1 <= self.shortest <= self.longest // 2,
            f"the passage window is {self.shortest} to {self.longest} characters; the shortest must be at least 1 and at "
            "most half of the longest, or sentences would be cut to fit",
        )


@dataclass(frozen=True)
class NearDuplicates:
    """Near de-duplication by MinHash and LSH.

    Attributes:
      threshold: Jaccard index of the sets of 3-grams (characters in Chinese, words in English) from which texts are copies.
      bands, rows: the signature has bands·rows values; texts that agree in all rows of some band are compared.
      bucket: of texts that agree in a band, each is compared with so many of the preferred ones at most.
    """

    # A footer that stands in 10,000 passages would give 50 million pairs, and `bucket` lets 640,000 of them through.
    threshold: float = 0.8
    bands: int = 25
    rows: int = 5
    seed: int = 20231115
    bucket: int = 64

    def __post_init__(self) -> None:
        _require_share("the near-duplicate threshold", self.threshold)
        # Two texts of Jaccard index J agree in one row with probability J, in a band with J^rows, in no band with
        # (1 - J^rows)^bands. At .8 with 25 bands of 5: .8^5 = .33, 1 - .67^25 = .99995.
        recall = 1 - (1 - self.threshold**self.rows) ** self.bands
        require(
            recall >= 0.95,
            f"{self.bands} bands of {self.rows} rows find {recall:.0%} of the pairs at the threshold {self.threshold}; "
            "give fewer rows or more bands",
        )


@dataclass(frozen=True)
class Semantic:
    """De-duplication by meaning.

    Attributes:
      embedder: folder of a sentence-transformers model, or the base URL of an OpenAI-compatible endpoint.
      model: its name at an endpoint.
      threshold: cosine from which two passages count as one.
      cluster: passages per cluster, about.
    """

    embedder: str
    model: str = ""
    threshold: float = 0.95
    cluster: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        _require_share("--semantic-threshold", self.threshold)
        _, is_url, address = self.embedder.partition("://")
        # Settings and messages show the URL, so it may hold no password.
        require(
            not (is_url and "@" in address),
            "--embedder must be a URL without user name or password; a key goes into EMBEDDINGS_API_KEY, an @ of the path is %40",
        )
        named = not is_url or bool(self.model)
        require(named, f"the endpoint {self.embedder} needs --semantic-model, the name of its embedding model")


@dataclass(frozen=True)
class Overlap:
    """When a text counts as holding an exam question.

    Attributes:
      zh_characters, en_words: length of the n-grams.
      share: of a question's n-grams, the least that must occur in the text.
      long_question: n-grams from which a question counts by itself; a shorter one ("The drug of choice is") only if it is there
        whole and has `whole_question` n-grams, or together with the same share of its options, or as a line of its own with
        some of them (a line alone may be a heading: "Aspirin").
      whole_question: n-grams from which a whole question is no chance: in 47,506 real documents and dialogues none with 5 to 11
        occurs, three with 4 do ("特发性血小板减少性紫癜").
    """

    zh_characters: int = 8
    en_words: int = 6
    share: float = 0.6
    long_question: int = 12
    whole_question: int = 6

    def __post_init__(self) -> None:
        require(
            min(self.zh_characters, self.en_words) >= 2,
            f"n-grams of {self.zh_characters} characters and {self.en_words} words: those of exam questions need at least 2",
        )
        _require_share("--overlap", self.share)


@dataclass(frozen=True)
class CollectConfig:
    """Settings of a run.

    Attributes:
      reading: fields of rows and limits.
      extract: False keeps documents of any domain. in_domain: sources known to be of the domain; none of theirs is dropped.
      windows: language → lengths of passages in characters.
      clean: limits of the rules. mask: whether personal data is masked. clinical: also what hospitals note (`masks.py`).
      near: None leaves near duplicates in; exact ones always go.
      semantic: None leaves out the comparison of meanings.
      source_priority: sources whose copies are preferred, the most preferred first; then the others, by name of their shard.
      exams: files of questions that must not be in the corpus. overlap: when a passage counts as holding one.
      keep_dropped: also write what is dropped.
    """

    reading: ReadingConfig = field(default_factory=ReadingConfig)
    extract: bool = True
    in_domain: tuple[str, ...] = ()
    windows: dict[str, Window] = field(default_factory=lambda: {"zh": Window(60, 600), "en": Window(200, 1800)})
    clean: CleanRules = field(default_factory=CleanRules)
    mask: bool = True
    clinical: bool = False
    near: NearDuplicates | None = field(default_factory=NearDuplicates)
    semantic: Semantic | None = None
    source_priority: tuple[str, ...] = ()
    exams: tuple[Path, ...] = ()
    overlap: Overlap = field(default_factory=Overlap)
    keep_dropped: bool = False

    def passages_part(self) -> dict[str, Any]:
        """What the passages of a shard depend on, beside the shard and the domain model."""
        # Bands and shingles are stored with the passages; the threshold and the bucket only choose among them.
        near = None if self.near is None else [self.near.bands, self.near.rows, self.near.seed]
        values = self._json("reading extract in_domain clean mask clinical windows")
        return {"schema": SCHEMA, **values, "signatures": near, "keep_dropped": self.keep_dropped}

    def duplicates_part(self) -> dict[str, Any]:
        """What the choice of copies depends on, beside the passages."""
        near = None
        if self.near is not None:
            near = {"threshold": self.near.threshold, "bucket": self.near.bucket, "facts": FACTS_SCHEMA}
        # `exact` is always true; it stays so that runs of earlier versions continue.
        return {"exact": True, "near": near, **self._json("semantic source_priority")}

    def _json(self, names: str) -> dict[str, Any]:
        values = asdict(self)
        return {name: values[name] for name in names.split()}

    def output_part(self) -> dict[str, Any]:
        """What the output depends on, beside passages and copies."""
        # By content: an exam file that is renamed or moved changes nothing.
        return {"schema": OUTPUT_SCHEMA, "exams": [sha256_file(path) for path in self.exams], "overlap": asdict(self.overlap)}

    def to_json(self) -> dict[str, Any]:
        """All settings by stage, for the manifest and the comparison with an earlier run."""
        return {"passages": self.passages_part(), "duplicates": self.duplicates_part(), "output": self.output_part()}
