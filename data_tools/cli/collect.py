"""`huatuo-data collect`, `collect calibrate` and `decontaminate`: raw corpora to clean passages of one domain.

`data_tools/collect` does the work: `pipeline.py` collects, `calibrate.py` makes a domain model from a labelled sample, `exams.py`
takes rows with exam questions out of any files.
"""

import argparse
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from huatuo_jax.cli.arguments import Parser, add_max_rejected, local_path
from huatuo_jax.cli.console import Report, make_console, make_progress, print_table
from huatuo_jax.config import require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from data_tools.collect.calibrate import LanguageResult
    from data_tools.collect.domain import DomainModel
    from data_tools.collect.exams import Item
    from data_tools.collect.settings import CollectConfig, Overlap, Window


def collect_arguments(parser: Parser) -> None:
    """Declares the arguments of `collect`."""
    parser.add_argument("inputs", nargs="+", type=local_path, metavar="PATHS", help="corpus files, or folders of them")
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder of the run")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument("--engine", default="processes", help="processes (default), or ray: Ray tasks, over many machines")
    parser.add_argument("--redo", action="store_true", help="allow settings other than DIR's; make again what they touch")
    parser.add_argument("--keep-dropped", action="store_true", help="write what is dropped, with the reason, to DIR/dropped")

    domain = parser.add_argument_group("extract: which documents are of the domain")
    add_vocabulary(domain)
    domain.add_argument("--domain-model", type=local_path, metavar="FILE", help="made by `collect calibrate`; has a vocabulary")
    score = "least score of a document, such as zh=0.08; lzh is classical Chinese"
    domain.add_argument("--threshold", action="append", default=[], type=_threshold, metavar="LANGUAGE=SCORE", help=score)
    whole = "keep all documents of this source (--in-domain is the same)"
    domain.add_argument("--trusted", "--in-domain", action="append", default=[], metavar="SOURCE", dest="in_domain", help=whole)
    domain.add_argument("--any-domain", action="store_true", help="keep all documents of all sources")

    reading = parser.add_argument_group("read")
    reading.add_argument("--text-field", default="text", metavar="KEY", help="key of a row's text (default text)")
    reading.add_argument("--title-field", default="title", metavar="KEY", help="key of its title, if it has one (default title)")
    reading.add_argument("--source-field", default="source", metavar="KEY", help="key of its source (default source)")
    reading.add_argument("--source", metavar="NAME", help="source of everything, whatever the rows say")
    reading.add_argument("--max-line-bytes", type=int, default=256 << 20, metavar="N", help="longer lines go to quarantine")

    passages = parser.add_argument_group("segment and clean")
    for flag, default, text in (("--window-zh", "60:600", "a Chinese"), ("--window-en", "200:1800", "an English")):
        help = f"characters of {text} passage (default {default})"
        passages.add_argument(flag, default=default, type=_window, metavar="MIN:MAX", help=help)
    passages.add_argument("--disable-rule", action="append", default=[], metavar="RULE", help="switch a cleaning rule off")
    masks = passages.add_mutually_exclusive_group()
    masks.add_argument("--no-mask", action="store_true", help="leave personal data as it is")
    clinical = "also mask names, record numbers, addresses and dates in fields; this is not de-identification"
    masks.add_argument("--clinical", action="store_true", help=clinical)

    copies = parser.add_argument_group("de-duplicate")
    copies.add_argument("--near-threshold", type=float, default=0.8, metavar="J", help="Jaccard index (default 0.8; 0: off)")
    copies.add_argument("--source-priority", default="", metavar="A,B,…", help="sources whose copies stay, the first before all")
    copies.add_argument("--embedder", metavar="DIR|URL", help="compare meanings too: sentence-transformers folder or endpoint")
    copies.add_argument("--semantic-model", default="", metavar="NAME", help="embedding model of the endpoint")
    copies.add_argument("--semantic-threshold", type=float, default=0.95, metavar="COS", help="cosine of copies (default 0.95)")

    exams = parser.add_argument_group("decontaminate")
    exams.add_argument("--exams", nargs="+", default=[], type=local_path, metavar="FILES", help="questions to be taken out")
    add_overlap(exams)


def collect(args: argparse.Namespace) -> Report:
    """Turn raw corpora into clean, de-duplicated passages of one domain.

    Reads .jsonl, .json, .txt and .parquet, plain or .gz, .xz, .zst, in UTF-8 or GB18030. Keeps documents of the domain, cuts them
    into passages at sentence ends, drops what the cleaning rules name, masks personal data, removes copies and passages that hold
    exam questions. Writes a report of what each step left. Interrupted, the same command continues; --workers changes no byte.

    Example:
    huatuo-data collect raw/ --domain medicine --out passages --workers 8
    huatuo-data collect raw/ --domain-model law.json --source-priority statutes,textbooks --exams exams/*.jsonl --out passages
    huatuo-data unify --template passages/passages/*.jsonl.zst --out pairs.jsonl
    """
    from data_tools.collect.pipeline import collect

    require(args.workers >= 1, f"--workers is {args.workers}; it must be at least 1")
    console = make_console(args.quiet)
    config, model = to_config(args), to_model(args)
    if config.exams:
        read_questions(console, config.exams)  # a file that is no exam is refused before any work
    if model is not None:
        print_left_out(console, model.vocabulary.left_out)
    with make_progress(console) as progress:

        def on_stage(stage: str, sizes: list[int]) -> Callable[[int], None]:
            bar = progress.add_task(stage, total=sum(sizes))
            return lambda number: progress.advance(bar, sizes[number])

        name_skipped = lambda listing: print_skipped(console, [path for path, _ in listing.skipped])
        report = collect(args.inputs, args.out, config, model, args.workers, args.engine, args.redo, on_stage, name_skipped)
    if not any(report["done_now"].values()):
        console.print(f"nothing to do: {args.out} is finished and its inputs and settings are unchanged")
    print_report(console, report)
    for source, share in report["losing"].items():
        console.print(
            f"{source}: {share:.0%} of its bytes are out of domain, though most of it is kept; read some (--keep-dropped). "
            f"If all of it is of the domain, give --trusted {source}",
            markup=False,
        )
    # A misspelt source would change nothing, silently.
    named = {*config.in_domain, *config.source_priority}
    if unknown := sorted(named - set(report["sources"])):
        known = ", ".join(list(report["sources"])[:20])
        console.print(f"no document is of {', '.join(unknown)} (--trusted, --source-priority); the sources are {known}")
    console.print(f"{report['passages']:,} passages in {args.out / 'passages'}; report: {args.out / 'report.html'}", markup=False)
    return report


def print_skipped(console: "Console", paths: Sequence[str]) -> None:
    """Says how many files of which kinds will not be read."""
    kinds = Counter(Path(path).suffix.lower() or "no suffix" for path in paths)
    if kinds:
        shown = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(8))
        tables = "; questions and answers in a table are for `huatuo-data import`" if {".csv", ".tsv"} & set(kinds) else ""
        console.print(
            f"{len(paths):,} files are not read ({shown}), e.g. {paths[0]}{tables}; quarantine.jsonl lists them", markup=False
        )


def add_vocabulary(parser: "argparse._ActionsContainer") -> None:
    """Declares the vocabulary of a domain."""
    parser.add_argument("--domain", metavar="NAME", help="this project's vocabulary of a domain, such as medicine")
    terms = "terms, one a line, perhaps with weight or document frequency after a tab; may be given several times"
    parser.add_argument("--vocabulary", action="append", default=[], type=local_path, metavar="FILE", help=terms)


def add_overlap(parser: "argparse._ActionsContainer") -> None:
    """Declares when a text counts as holding an exam question."""
    parser.add_argument("--overlap", type=float, default=0.6, metavar="SHARE", help="share of a question's n-grams (default 0.6)")
    parser.add_argument("--ngram-zh", type=int, default=8, metavar="N", help="characters of a Chinese n-gram (default 8)")
    parser.add_argument("--ngram-en", type=int, default=6, metavar="N", help="words of an English n-gram (default 6)")


def to_config(args: argparse.Namespace) -> "CollectConfig":
    """The settings that the arguments name."""
    # Imported here, as everywhere in command modules, so that `--help` does not wait for numpy.
    from data_tools.collect.clean import CleanRules
    from data_tools.collect.settings import CollectConfig, NearDuplicates, ReadingConfig, Semantic
    from data_tools.records.importing import check_inputs
    from data_tools.records.layouts import canonical_source

    check_inputs(args.exams)
    semantic = None
    if args.embedder:
        semantic = Semantic(args.embedder, args.semantic_model, args.semantic_threshold)
    return CollectConfig(
        reading=ReadingConfig(args.text_field, args.title_field, args.source_field, args.source, args.max_line_bytes),
        extract=not args.any_domain,
        # By the names that rows get when they are read: Medical_Books_cn is medical_books_cn.
        in_domain=tuple(map(canonical_source, args.in_domain)),
        windows={"zh": args.window_zh, "en": args.window_en},
        clean=CleanRules(disabled=tuple(args.disable_rule)),
        mask=not args.no_mask,
        clinical=args.clinical,
        near=NearDuplicates(args.near_threshold) if args.near_threshold else None,
        semantic=semantic,
        source_priority=tuple(map(canonical_source, filter(None, args.source_priority.split(",")))),
        exams=tuple(args.exams),
        overlap=to_overlap(args),
        keep_dropped=args.keep_dropped,
    )


def to_model(args: argparse.Namespace) -> "DomainModel | None":
    """The domain that the arguments name.

    Raises:
      ConfigError: none, or two of them.
    """
    from data_tools.collect.domain import DEFAULT_THRESHOLDS, DomainModel, load_classical, load_model, load_vocabularies

    vocabulary = bool(args.domain or args.vocabulary)
    if args.any_domain:
        require(
            not vocabulary and args.domain_model is None,
            "--any-domain keeps everything; leave --domain, --vocabulary and --domain-model out",
        )
        return None
    require(not (vocabulary and args.domain_model), "--domain-model holds its vocabulary; leave --domain and --vocabulary out")
    if args.domain_model is not None:
        model = load_model(args.domain_model)
    else:
        require(vocabulary, "say which documents to keep: --domain NAME, --vocabulary FILE, --domain-model FILE or --any-domain")
        terms = load_vocabularies(args.domain, args.vocabulary)
        model = DomainModel(terms, DEFAULT_THRESHOLDS, load_classical(args.domain))
    return dataclasses.replace(model, thresholds={**model.thresholds, **dict(args.threshold)})


def read_questions(console: "Console", exams: "Sequence[Path]") -> "list[Item]":
    """The questions of exam files; says how many rows are none."""
    from data_tools.collect.exams import read_exams

    odd: list[str] = []
    items = read_exams(exams, odd)
    if odd:
        console.print(
            f"{len(odd):,} rows of the exams are no questions and are not looked for; the first: {odd[0]}", markup=False
        )
    without = sum(not item.options for item in items)
    if without:
        console.print(f"{without:,} of {len(items):,} exam questions have no options", markup=False)
    return items


def to_overlap(args: argparse.Namespace) -> "Overlap":
    """When a text counts as holding an exam question, by the arguments of `add_overlap`."""
    from data_tools.collect.settings import Overlap

    return Overlap(zh_characters=args.ngram_zh, en_words=args.ngram_en, share=args.overlap)


def _threshold(text: str) -> tuple[str, float]:
    from data_tools.collect.domain import DEFAULT_THRESHOLDS

    language, _, score = text.partition("=")
    try:
        return list(DEFAULT_THRESHOLDS)[list(DEFAULT_THRESHOLDS).index(language)], float(score)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give LANGUAGE=SCORE with one of {', '.join(DEFAULT_THRESHOLDS)}") from None


def _window(text: str) -> "Window":
    from data_tools.collect.settings import Window

    shortest, _, longest = text.partition(":")
    try:
        return Window(int(shortest), int(longest))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give MIN:MAX in characters, such as 60:600") from None


def print_left_out(console: "Console", left_out: tuple[str, ...]) -> None:
    """Says which terms are too short to be matched."""
    if left_out:
        shown = " ".join(left_out[:20])
        console.print(f"{len(left_out):,} terms of one character are left out, for they occur inside other words: {shown}")


def print_report(console: "Console", report: dict[str, Any]) -> None:
    """Prints what each step left, by source, and why the rest was dropped."""
    from data_tools.collect.report import LABELS

    table = Table("source", *(LABELS[step] for step in report["steps"]), title="texts, MB, share of all raw bytes")
    for source, of_steps in report["sources"].items():
        table.add_row(source, *map(_cell, of_steps.values()))
    table.add_section()
    table.add_row("all", *map(_cell, report["steps"].values()))
    print_table(console, table)
    drops = Table("dropped because", "texts", "MB", "for example")
    for reason, drop in sorted(report["drops"].items(), key=lambda pair: -pair[1]["bytes"]):
        example = (drop["examples"] or [""])[0][:48]
        drops.add_row(reason, f"{drop['texts']:,}", f"{drop['bytes'] / 1e6:.2f}", escape(example))
    if report["drops"]:
        print_table(console, drops)
    masked = ", ".join(f"{kind} {count:,}" for kind, count in sorted(report["masked"].items())) or "none"
    console.print(f"personal data masked: {masked}; unreadable lines and files: {report['unreadable']:,}", markup=False)


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['texts']:,} · {entry['bytes'] / 1e6:.1f} · {100 * entry['share_of_raw_bytes']:.1f} %"


def calibrate_arguments(parser: Parser) -> None:
    """Declares the arguments of `collect calibrate`."""
    parser.add_argument("files", nargs="+", type=local_path, metavar="FILES", help="JSONL: a text and a label (true or false)")
    add_vocabulary(parser)
    parser.add_argument("--learn", action="store_true", help="learn weights of words and character pairs from the sample")
    parser.add_argument("--out", required=True, type=local_path, metavar="MODEL.json", help="model for `collect --domain-model`")
    parser.add_argument("--text-field", default="text", metavar="KEY", help="key of the text (default text)")
    parser.add_argument("--label-field", default="label", metavar="KEY", help="key of the label (default label)")
    parser.add_argument("--group-field", metavar="KEY", help="key of a group, to list what is confused")


def calibrate(args: argparse.Namespace) -> Report:
    """Choose the extraction threshold on a labelled sample, perhaps learn term weights from it.

    Prints precision, recall and F1 of texts that neither weights nor threshold have seen (10-fold cross-validation, repeated),
    draws the precision-recall curve beside the model, and says which groups of texts are confused.

    Example:
    huatuo-data collect calibrate labelled.jsonl --label-field medical --domain medicine --learn --out medicine.json
    huatuo-data collect raw/ --domain-model medicine.json --out passages
    """
    from data_tools.collect.calibrate import calibrate, draw_curve, read_labelled, to_report
    from data_tools.collect.domain import load_classical, load_vocabularies, save_model
    from data_tools.records.importing import check_inputs

    check_inputs(args.files)
    console = make_console(args.quiet)
    vocabulary = load_vocabularies(args.domain, args.vocabulary)
    print_left_out(console, vocabulary.left_out)
    sample = read_labelled(args.files, args.text_field, args.label_field, args.group_field)
    model, results = calibrate(sample, vocabulary, args.learn)
    model = dataclasses.replace(model, learned={**load_classical(args.domain), **model.learned})
    save_model(model, args.out)
    _print_results(console, results)
    for language, result in results.items():
        picture = args.out.with_suffix(f".{language}.png")
        draw_curve(picture, language, result)
        console.print(f"precision-recall curve: {picture}")
    console.print(f"model: {args.out}")
    return {"model": str(args.out), "terms": len(vocabulary.weights), "languages": to_report(results)}


def _print_results(console: "Console", results: "dict[str, LanguageResult]") -> None:
    table = Table("language", "texts", "of the domain", "precision", "recall", "F1", "± over repeats", "threshold")
    for language, result in results.items():
        figures = [f"{value:.3f}" for value in (result.precision, result.recall, result.f1, result.f1_spread, result.threshold)]
        table.add_row(language, f"{result.texts:,}", f"{result.positives:,}", *figures)
    print_table(console, table)
    for result in results.values():
        for title, groups in (("wrongly kept", result.wrongly_kept), ("wrongly dropped", result.wrongly_dropped)):
            named = ", ".join(f"{group or 'texts'} {count}" for group, count in list(groups.items())[:12])
            console.print(f"{title}: {named or 'none'}")


def decontaminate_arguments(parser: Parser) -> None:
    """Declares the arguments of `decontaminate`."""
    parser.add_argument("files", nargs="+", type=local_path, metavar="FILES", help="JSON or JSONL, plain or .gz .xz .zst")
    rows = "questions, perhaps with options, in any of the usual layouts"
    parser.add_argument("--exams", nargs="+", required=True, type=local_path, metavar="EXAMS", help=rows)
    parser.add_argument("--out", required=True, type=local_path, metavar="DIR", help="folder of the cleaned files")
    add_max_rejected(parser)
    add_overlap(parser)


def decontaminate(args: argparse.Namespace) -> Report:
    """Find and remove rows that hold exam questions.

    Takes passages, dialogues of every layout that `import` reads, or other exams. A row is removed if so much of a question's
    n-grams (of characters in Chinese, of words in English) occurs in it; short questions count only whole, the shortest only
    together with their options. What is removed is listed with the question in DIR/contaminated.jsonl.

    Example:
    huatuo-data decontaminate sft.jsonl pairs.jsonl --exams exams/*.jsonl.xz --out clean
    """
    from data_tools.collect.decontaminate import ExamIndex, decontaminate_files
    from data_tools.records.importing import check_inputs
    from huatuo_jax.io.files import full_disk_named

    check_inputs(args.files)
    check_inputs(args.exams)
    console = make_console(args.quiet)
    index = ExamIndex(read_questions(console, args.exams), to_overlap(args))
    with full_disk_named(args.out), make_progress(console, "bytes") as progress:
        task = progress.add_task("decontaminate", total=sum(path.stat().st_size for path in args.files))
        on_read = functools.partial(progress.advance, task)
        report = decontaminate_files(args.files, args.out, index, args.max_rejected, on_read)
    table = Table("file", "rows", "with exam questions", "rejected")
    for name, counts in report["files"].items():
        table.add_row(name, f"{counts['rows']:,}", f"{counts['contaminated']:,}", f"{counts['rejected']:,}")
    print_table(console, table)
    if report["unusable_questions"]:
        console.print(f"{report['unusable_questions']:,} questions have no letters and were not looked for")
    console.print(
        f"{len(report['items']):,} of {report['questions']:,} questions found; listed in {args.out / 'contaminated.jsonl'}"
    )
    return report
