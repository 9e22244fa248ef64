"""What a terabyte costs to collect and millions of passages to unify: the arithmetic of docs/scale.md, as Markdown tables.

    python -m benchmarks.scale                                       # the paper's corpus, the rates and tokens below
    python -m benchmarks.scale --rates rates.json --chinese 0.3      # rates of your machine: benchmarks.collect --only steps
    python -m benchmarks.scale --passages-zh 100000 --passages-en 0 --price 0.15 0.6

What must hold: it runs nothing and reads no text, so its figures can be followed with a pencil. Core-hours are a step's share of
the raw bytes divided by its rate. Tokens are `huatuo-data unify --estimate`'s, per passage.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("zh", "en")
RATES = {
    "read .jsonl.zst": (40.3, 38.9),
    "language": (42.1, 54.0),
    "extract": (12.7, 13.8),
    "segment": (41.0, 19.6),
    "clean": (9.9, 5.0),
    "mask": (117.6, 20.7),
    "exact: digests": (19.9, 60.4),
    "near: MinHash": (8.3, 12.6),
    "decontaminate": (1.7, 1.8),
}
"""MB of UTF-8 text per second and core, Chinese and English: benchmarks.collect, 2 cores under load, 4 MB of each corpus."""
STEP_OF = {
    "read .jsonl.zst": "raw",
    "language": "raw",
    "extract": "raw",
    "segment": "extracted",
    "clean": "extracted",
    "mask": "extracted",
    "exact: digests": "cleaned",
    "near: MinHash": "cleaned",
    "decontaminate": "deduplicated",
}
"""Which bytes a step works on."""
# Of 1.1 TB (arXiv 2311.09774): what is left after each stage, so each stage's steps work on what the stage before it left.
PAPER_SHARES = {"raw": 1.0, "extracted": 0.026, "cleaned": 0.015, "deduplicated": 0.007}
PAPER_PASSAGES = {"zh": 3_031_582, "en": 2_221_312}
PRICES = {
    "a small hosted model": (0.15, 0.60),
    "gpt-3.5-turbo at its last list price": (0.50, 1.50),
    "a large hosted model": (2.50, 10.00),
}


@dataclass(frozen=True)
class Tokens:
    """Tokens per passage: of the question's prompt and text, and of the answer's."""

    question_in: int
    question_out: int
    answer_in: int
    answer_out: int


TOKENS = {"zh": Tokens(538, 45, 594, 253), "en": Tokens(473, 45, 518, 232)}
"""Per passage of `collect` (eight real corpora: 334 Chinese, 1,140 English characters on average), by `unify --estimate`."""


def core_hours(
    rates: dict[str, tuple[float, float]], shares: dict[str, float], megabytes: float, chinese: float
) -> dict[str, float]:
    """Step → core-hours, `chinese` being the share of Chinese among the bytes."""
    # Seconds a megabyte: rates add as times, not as rates.
    seconds = {step: chinese / rates[step][0] + (1 - chinese) / rates[step][1] for step in STEP_OF}
    return {step: megabytes * shares[STEP_OF[step]] * seconds[step] / 3600 for step in STEP_OF}


def million_tokens(passages: dict[str, int], question_only: bool) -> tuple[float, float]:
    """Millions of prompt and of output tokens."""
    # `question_only` answers with the passage itself, so the second call is saved.
    prompt = sum(n * (TOKENS[lang].question_in + (not question_only) * TOKENS[lang].answer_in) for lang, n in passages.items())
    output = sum(n * (TOKENS[lang].question_out + (not question_only) * TOKENS[lang].answer_out) for lang, n in passages.items())
    return prompt / 1e6, output / 1e6


def collect_table(hours: dict[str, float], rates: dict[str, tuple[float, float]], shares: dict[str, float]) -> list[str]:
    """Lines of the table of core-hours."""
    lines = ["| step | of the raw bytes | MB/s per core, zh, en | core-hours |", "|---|---|---|---|"]
    for step, spent in hours.items():
        lines.append(f"| {step} | {100 * shares[STEP_OF[step]]:.3g} % | {rates[step][0]:g}, {rates[step][1]:g} | {spent:.3g} |")
    return [*lines, f"| all | | | {sum(hours.values()):.3g} |"]


def cost_table(passages: dict[str, int], prices: dict[str, tuple[float, float]]) -> list[str]:
    """Lines of the table of costs, for both ways to ask a model."""
    both, question = million_tokens(passages, False), million_tokens(passages, True)
    lines = [
        f"Two calls: {both[0]:,.0f} M prompt and {both[1]:,.0f} M output tokens; "
        f"`question-only`: {question[0]:,.0f} M and {question[1]:,.0f} M.",
        "",
        "| price per million tokens | in | out | two calls | `question-only` |",
        "|---|---|---|---|---|",
    ]
    for name, (price_in, price_out) in prices.items():
        costs = [prompt * price_in + output * price_out for prompt, output in (both, question)]
        lines.append(f"| {name} | {price_in:.2f} | {price_out:.2f} | {costs[0]:,.0f} | {costs[1]:,.0f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terabytes", type=float, default=1.1, help="raw text, as UTF-8 (default 1.1)")
    parser.add_argument("--chinese", type=float, default=0.5, metavar="SHARE", help="of the bytes (default 0.5)")
    parser.add_argument("--rates", type=Path, metavar="FILE", help="JSON of `benchmarks.collect --only steps --json FILE`")
    parser.add_argument("--report", type=Path, metavar="FILE", help="report.json of a `collect` run, for its shares and bytes")
    parser.add_argument("--passages-zh", type=int, default=PAPER_PASSAGES["zh"], metavar="N", help="(default: the paper's)")
    parser.add_argument("--passages-en", type=int, default=PAPER_PASSAGES["en"], metavar="N", help="(default: the paper's)")
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="per million tokens")
    args = parser.parse_args(argv)
    rates, shares, megabytes = RATES, PAPER_SHARES, args.terabytes * 1e6
    if args.rates:
        measured = json.loads(args.rates.read_text())
        # As the tables print them: figures that a reader works out again must come out the same.
        rates = {step: (round(measured["zh"][step], 1), round(measured["en"][step], 1)) for step in STEP_OF}
    if args.report:
        steps = json.loads(args.report.read_text())["steps"]
        shares = {step: steps[step]["share_of_raw_bytes"] for step in PAPER_SHARES}
        megabytes = steps["raw"]["bytes"] / 1e6
    hours = core_hours(rates, shares, megabytes, args.chinese)
    print(*collect_table(hours, rates, shares), sep="\n")
    prices = {"yours": (args.price[0], args.price[1])} if args.price else PRICES
    print("", *cost_table({"zh": args.passages_zh, "en": args.passages_en}, prices), sep="\n")


if __name__ == "__main__":
    main()
