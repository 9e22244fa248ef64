"""Statistics of a run in, a report as JSON out."""

from typing import Any

from data_tools.collect.pipeline import CollectResult
from data_tools.collect.statistics import STEPS, Statistics

LABELS = {
    "raw": "raw documents",
    "extracted": "documents of the domain",
    "cleaned": "segmented and clean passages",
    "deduplicated": "without copies",
    "decontaminated": "without exam questions",
}


def steps_of(statistics: Statistics) -> list[str]:
    """The steps that the run has: the last one only with exams."""
    decontaminated = any("decontaminated" in entry for entry in statistics.steps.values())
    return [step for step in STEPS if step != "decontaminated" or decontaminated]


def to_report(result: CollectResult) -> dict[str, Any]:
    """The report: texts, characters, bytes and share of the raw bytes after each step, in all and per source; drops; masks."""
    statistics = result.statistics
    steps = steps_of(statistics)
    raw_bytes = max(statistics.total("raw")[2], 1)

    def entry(values: list[int]) -> dict[str, Any]:
        return {"texts": values[0], "characters": values[1], "bytes": values[2], "share_of_raw_bytes": values[2] / raw_bytes}

    return {
        "passages": result.passages,
        "shards": result.shards,
        "steps": {step: entry(statistics.total(step)) for step in steps},
        "sources": {
            source: {step: entry(found.get(step, [0, 0, 0])) for step in steps}
            for source, found in sorted(statistics.steps.items())
        },
        "drops": {
            reason: {
                "texts": sum(values[0] for values in found.values()),
                "bytes": sum(values[2] for values in found.values()),
                "by_source": {source: values[0] for source, values in sorted(found.items())},
                "examples": statistics.examples.get(reason, []),
            }
            for reason, found in statistics.drops.items()
        },
        "masked": statistics.masks,
        "unreadable": statistics.unreadable,
        "not_read": len(result.skipped),
        "candidate_pairs": result.duplicates.get("candidate_pairs", 0),
        "lengths": statistics.lengths,
        "done_now": result.done_now,
        "seconds": {stage: round(value, 2) for stage, value in result.seconds.items()},
    }
