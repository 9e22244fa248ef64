"""The paper's mixture, written once: sources, their sizes, priorities and epochs (arXiv 2311.09774, table of data sources)."""

from huatuo_jax.config import SourceMix

PAPER = {
    "medical_web_corpus_cn": SourceMix(priority=32),
    "medical_web_corpus_en": SourceMix(priority=32),
    "medical_literature_cn": SourceMix(priority=16),
    "medical_literature_en": SourceMix(priority=16),
    "medical_encyclopedia_cn": SourceMix(priority=8),
    "medical_encyclopedia_en": SourceMix(priority=8),
    "medical_books_cn": SourceMix(priority=4),
    "medical_books_en": SourceMix(priority=4),
    "sft": SourceMix(priority=1, epochs=3),
}
"""Priority sampling: domain data first, SFT last. SFT records are drawn three times."""

PAPER_RECORDS = {
    "medical_web_corpus_cn": 640_621,
    "medical_web_corpus_en": 394_490,
    "medical_literature_cn": 177_261,
    "medical_literature_en": 878_241,
    "medical_encyclopedia_cn": 411_183,
    "medical_encyclopedia_en": 147_059,
    "medical_books_cn": 1_802_517,
    "medical_books_en": 801_522,
    "sft": 142_248,
}
"""Records per source in the original run: what `huatuo-data mix --mixture paper` draws without any data at hand."""

MIXTURES = {"paper": (PAPER, PAPER_RECORDS)}


def equal_priorities(mixture: dict[str, SourceMix]) -> dict[str, SourceMix]:
    """The same sources and epochs in plain random order: the baseline of the paper's ablation."""
    return {source: SourceMix(priority=1, epochs=mix.epochs) for source, mix in mixture.items()}
