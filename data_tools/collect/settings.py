"""What a collect run is asked for: frozen dataclasses; each stage has its own part, so that a change says what it touches."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_tools.collect.clean import RULES, CleanRules
from data_tools.collect.duplicates import NearDuplicates
from data_tools.collect.exams import Overlap
from data_tools.collect.reading import ReadingConfig
from data_tools.collect.segment import Window
from data_tools.collect.semantic import Semantic
from huatuo_jax.config import require
from huatuo_jax.io.files import sha256_file

SCHEMA = 2
"""Raised when the passages change for the same input and settings."""
OUTPUT_SCHEMA = 2
"""Raised when the last stage's output changes for the same input and settings."""


@dataclass(frozen=True)
class CollectConfig:
    """Settings of a run.

    Attributes:
      reading: fields of rows and limits.
      extract: False keeps documents of any domain. in_domain: sources known to be of the domain; none of theirs is dropped.
      windows: language → lengths of passages in characters.
      clean: limits of the rules. mask: whether personal data is masked.
      near: None leaves near duplicates in. exact: False leaves exact ones in (near ones are not looked for then either).
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
    exact: bool = True
    near: NearDuplicates | None = field(default_factory=NearDuplicates)
    semantic: Semantic | None = None
    source_priority: tuple[str, ...] = ()
    exams: tuple[Path, ...] = ()
    overlap: Overlap = field(default_factory=Overlap)
    keep_dropped: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.clean.disabled) - set(RULES))
        require(not unknown, f"no cleaning rule is called {', '.join(unknown)}; the rules are {', '.join(RULES)}")
        require(self.reading.max_line_bytes >= 1, f"--max-line-bytes is {self.reading.max_line_bytes}; it must be at least 1")
        require(self.exact or self.near is None, "near de-duplication needs exact de-duplication before it")

    def passages_part(self) -> dict[str, Any]:
        """What the passages of a shard depend on, beside the shard and the domain model."""
        near = None if self.near is None else [self.near.bands, self.near.rows, self.near.seed]
        part = {
            "reading": asdict(self.reading),
            "extract": self.extract,
            "in_domain": list(self.in_domain),
            "clean": asdict(self.clean),
            "mask": self.mask,
        }
        windows = {language: asdict(window) for language, window in self.windows.items()}
        return {"schema": SCHEMA, **part, "windows": windows, "signatures": near, "keep_dropped": self.keep_dropped}

    def duplicates_part(self) -> dict[str, Any]:
        """What the choice of copies depends on, beside the passages."""
        near = None if self.near is None else {"threshold": self.near.threshold, "bucket": self.near.bucket}
        semantic = None if self.semantic is None else asdict(self.semantic)
        return {"exact": self.exact, "near": near, "semantic": semantic, "source_priority": list(self.source_priority)}

    def output_part(self) -> dict[str, Any]:
        """What the output depends on, beside passages and copies."""
        return {"schema": OUTPUT_SCHEMA, "exams": [sha256_file(path) for path in self.exams], "overlap": asdict(self.overlap)}

    def to_json(self) -> dict[str, Any]:
        """All settings by stage, for the manifest and the comparison with an earlier run."""
        return {
            "passages": self.passages_part(),
            "duplicates": self.duplicates_part(),
            "output": self.output_part(),
        }
