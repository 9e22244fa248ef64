"""`huatuo-data unify`: turns passages into instruction pairs, by template or by a language model.

Here are the arguments and what is printed; the work is in `data_tools/unify`: in `pairs.py` by template, in `pipeline.py` by a
model. The client is imported only when a model is asked, for its packages belong to an extra.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from huatuo_jax.cli.arguments import Parser, add_max_rejected, local_path, with_config_fields
from huatuo_jax.cli.console import Report, make_console, make_progress, print_table
from huatuo_jax.config import require
from huatuo_jax.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from data_tools.unify.filters import RecallStatistics
    from data_tools.unify.pipeline import Job

DEFAULT_URL = "https://api.openai.com/v1"


def unify_arguments(parser: Parser) -> None:
    """Declares the arguments of `unify`."""
    parser.add_argument(
        "files", nargs="+", type=local_path, metavar="FILES", help="JSON or JSONL with `text`, plain or .gz .xz .zst"
    )
    # --template is the short word for trying everything without an endpoint.
    method = parser.add_mutually_exclusive_group(required=True)
    method.add_argument("--template", action="store_true", help="the same as --provider template")
    method.add_argument("--provider", choices=["openai", "template", "question-only"], help="who writes (see above)")
    parser.add_argument("--out", required=True, type=local_path, metavar="FILE.jsonl", help="file of pairs")
    parser.add_argument("--source", metavar="NAME", help="source of all pairs, whatever the rows say themselves")
    parser.add_argument("--plot", type=local_path, metavar="FILE.png", help="draw how much of the passages survives, per source")
    add_max_rejected(parser)
    _add_endpoint(parser.add_argument_group("endpoint"))
    _add_budget(parser.add_argument_group("budget"))
    _add_rewriting(parser.add_argument_group("prompts and filters"))


def _add_endpoint(group: Any) -> None:
    group.add_argument("--base-url", default=DEFAULT_URL, metavar="URL", help=f"endpoint (default {DEFAULT_URL})")
    group.add_argument("--model", metavar="NAME", help="the model, as the endpoint calls it")
    group.add_argument(
        "--accept-model",
        dest="accept_models",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which the endpoint may answer",
    )
    group.add_argument("--concurrency", type=int, default=64, metavar="N", help="requests in flight (default 64)")
    group.add_argument("--requests-per-minute", type=float, metavar="N", help="the account's limit; retries count too")
    group.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="for one request (default 120)")
    group.add_argument("--retries", type=int, default=8, metavar="N", help="of a failed request, with backoff (default 8)")
    group.add_argument("--backoff-scale", type=float, default=1, metavar="X", help="multiplies the waits between retries")
    group.add_argument(
        "--max-new-tokens", "--max-output-tokens", type=int, default=2048, metavar="N", help="of one answer (default 2048)"
    )
    group.add_argument(
        "--max-tokens-field",
        default="auto",
        metavar="NAME",
        help="what a request calls that limit: max_tokens or max_completion_tokens (default: auto, whichever the endpoint knows)",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="default: the endpoint's own")
    group.add_argument(
        "--extra-body", type=_json_object, default={}, metavar="JSON", help='more fields of a request: {"enable_thinking": false}'
    )
    group.add_argument(
        "--accept-finish",
        action="append",
        default=[],
        metavar="NAME",
        help="a finish_reason of a whole text besides stop and its synonyms; null: the endpoint sends none",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object such as {{"enable_thinking": false}}')
    return value


def _add_budget(group: Any) -> None:
    group.add_argument("--estimate", action="store_true", help="print the forecast and make no call")
    group.add_argument("--max-tokens", type=int, metavar="N", help="stop before all runs together take more tokens")
    group.add_argument("--max-cost", type=float, metavar="MONEY", help="stop before all runs together cost more; needs prices")
    group.add_argument("--price-in", type=float, default=0, metavar="MONEY", help="per million prompt tokens")
    group.add_argument("--price-out", type=float, default=0, metavar="MONEY", help="per million output tokens")
    group.add_argument("--ledger", type=local_path, metavar="FILE", help="where answers are kept (default: OUT.ledger.sqlite)")
    group.add_argument("--retry-rejected", action="store_true", help="after a finished run: tries again for its rejects")
    group.add_argument("--finished-only", action="store_true", help="make no call; write the pairs that the ledger has so far")


def _add_rewriting(group: Any) -> None:
    group.add_argument("--domain", action="append", default=[], metavar="[zh=|en=]NAME", help="the domain's name in the prompts")
    group.add_argument("--persona", action="append", default=[], metavar="[zh=|en=]NAME", help="who asks and answers")
    group.add_argument("--language", default="passage", choices=["passage", "zh", "en"], help="of pairs (default: the passage's)")
    group.add_argument("--prompts", type=local_path, metavar="DIR", help="own templates: question.zh.v1.txt, answer.zh.v1.txt, …")
    group.add_argument("--prompt-version", default="v1", metavar="V", help="of the templates (default v1)")
    group.add_argument("--tries", type=int, default=2, metavar="N", help="a step, before the passage is rejected (default 2)")
    group.add_argument("--max-passage", type=int, default=8000, metavar="N", help="characters; longer ones are rejected uncalled")
    group.add_argument("--filter", action="append", default=[], metavar="NAME", help="switch a filter on (jaccard is off)")
    group.add_argument("--no-filter", action="append", default=[], metavar="NAME", help="switch a filter off")
    group.add_argument("--max-question", type=int, default=180, metavar="N", help="characters (filter question_length)")
    group.add_argument("--min-coverage", type=float, default=0.25, metavar="SHARE", help="of passage n-grams (filter coverage)")
    group.add_argument(
        "--faithful", action="store_true", help="as the original: Chinese pairs, passages cut at 400 and 600, its two filters"
    )


def unify(args: argparse.Namespace) -> Report:
    """Turn passages into question-and-answer pairs, ready for `huatuo-data import`.

    --provider openai asks a language model twice a passage, for a question and for its answer with the passage as hidden
    reference: any OpenAI-compatible endpoint, the key from the environment variable OPENAI_API_KEY only. question-only asks for
    the question and takes the passage as the answer. template (or --template) needs no model: it asks about the title, the
    passage answers. Every answer is kept in a ledger beside --out, so a run that is killed at any moment continues with the same
    command and repeats no call. What is rejected is listed beside --out, in a file that ends in .rejected.jsonl, with all texts;
    the report, with model, prompts and filters, in one that ends in .report.json.

    Example:
    huatuo-data unify --template corpus/*.jsonl --out pairs.jsonl
    export OPENAI_API_KEY=…
    set -- --provider openai --model gpt-4o-mini corpus/*.jsonl --out pairs.jsonl --price-in 0.15 --price-out 0.6
    huatuo-data unify "$@" --estimate
    huatuo-data unify "$@" --max-cost 20
    huatuo-data unify --provider openai --base-url http://localhost:8000/v1 --model Qwen3-8B law/*.jsonl --out pairs.jsonl \\
        --domain zh=法律 --domain en=law --persona zh=一位资深律师 --persona en="a senior lawyer"
    huatuo-data import pairs.jsonl sft.jsonl --out data/unified
    """
    from data_tools.records.importing import check_inputs
    from huatuo_jax.io.files import full_disk_named, write_json
    from huatuo_jax.report.style import image_format

    check_inputs(args.files)
    if args.plot:
        image_format(args.plot)  # a name that cannot be drawn to is refused now, not after hours of calls
    console = make_console(args.quiet)
    provider = args.provider or "template"
    with full_disk_named(args.out.parent):
        if args.estimate and provider != "template":
            return _estimate(args, console)
        report, recalls = _by_template(args, console) if provider == "template" else _by_model(args, console)
        report = {"provider": provider, **report}
        write_json(args.out.with_suffix(".report.json"), report)
    print_report(console, report)
    if args.plot:
        from data_tools.unify.filters import plot

        plot(recalls.values(), args.plot)
    return report


def _by_template(args: argparse.Namespace, console: "Console") -> "tuple[dict[str, Any], RecallStatistics]":
    from data_tools.unify.pairs import unify_by_template

    require(not (args.estimate or args.model), "--estimate and --model need --provider openai or question-only")
    with make_progress(console, "bytes") as progress:
        task = progress.add_task("unify", total=sum(path.stat().st_size for path in args.files))
        on_read = lambda count: progress.advance(task, count)
        return unify_by_template(args.files, args.out, args.source, args.max_rejected, on_read)


def _estimate(args: argparse.Namespace, console: "Console") -> Report:
    job = _job(args)
    from data_tools.unify.pipeline import estimate

    forecast = estimate(job)
    print_forecast(console, forecast)
    return forecast


def _by_model(args: argparse.Namespace, console: "Console") -> "tuple[dict[str, Any], RecallStatistics]":
    job = _job(args)
    from data_tools.unify.pipeline import run
    from huatuo_jax.io.api_key import ApiKey, key_from_environment

    # Without a call no key is needed, so that pairs can be written on a machine that has none.
    key = ApiKey("") if args.finished_only else key_from_environment(args.base_url, DEFAULT_URL)
    return run(job, key, console, lambda forecast: print_forecast(console, forecast))


def _job(args: argparse.Namespace) -> "Job":
    """What a model is asked to do; raises ConfigError where the extra's packages are missing."""
    require(bool(args.model), "--model is missing; name the model as the endpoint does")
    try:
        from data_tools.unify.pipeline import Job
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'huatuo-jax[unify]'") from None
    from data_tools.unify.filters import DEFAULT, FAITHFUL, Limits, choose_filters
    from data_tools.unify.prompting import FAITHFUL_CUTS, Cuts, Prompts, by_language
    from data_tools.unify.rewriting import Rewriting
    from huatuo_jax.chat_client.budget import Caps, Prices
    from huatuo_jax.chat_client.client import ClientSettings

    rewriting = Rewriting(
        prompts=Prompts(
            args.prompt_version,
            args.prompts,
            by_language("--domain", args.domain),
            by_language("--persona", args.persona),
            FAITHFUL_CUTS if args.faithful else Cuts(),
        ),
        filters=choose_filters(
            FAITHFUL if args.faithful else DEFAULT, args.filter, args.no_filter, Limits(args.max_question, args.min_coverage)
        ),
        tries=args.tries,
        language="zh" if args.faithful else args.language,
        question_only=args.provider == "question-only",
        longest=args.max_passage,
        accept_finish=frozenset(name.strip().lower() for name in args.accept_finish),
    )
    return Job(
        paths=args.files,
        out=args.out,
        rewriting=rewriting,
        # Each flag of the group "endpoint" is a field of the settings, by the same name.
        client=with_config_fields(ClientSettings(args.base_url, args.model), args),
        caps=Caps(args.max_tokens, args.max_cost, Prices(args.price_in, args.price_out)),
        ledger=args.ledger or args.out.with_suffix(".ledger.sqlite"),
        source=args.source,
        max_rejected=args.max_rejected,
        retry_rejected=args.retry_rejected,
        finished_only=args.finished_only,
    )


def print_forecast(console: "Console", forecast: dict[str, Any]) -> None:
    """Prints what a run will take, and on which assumptions."""
    tokens = f"{forecast['prompt_tokens']:,} prompt and {forecast['output_tokens']:,} output tokens"
    cost = f", cost {forecast['cost']:,.2f}" if forecast["cost"] is not None else ""
    console.print(
        f"forecast: {forecast['passages']:,} passages, {forecast['calls']:,} calls, {tokens}{cost}; "
        f"from {forecast['based_on']}, without second tries"
    )
    if forecast["least_hours"] is not None:
        console.print(f"at the given requests per minute it takes at least {forecast['least_hours']:,} hours")
    if not forecast["within_caps"]:
        console.print("warning: this is more than the caps allow; the run will stop there, and continue under larger ones")


def print_report(console: "Console", report: dict[str, Any]) -> None:
    """Prints records and what survives of the passages per source, then rejects and failed requests by reason."""
    counted = lambda counts: ", ".join(f"{name} {count:,}" for name, count in counts.items())
    table = Table("source", "records", "n-gram recall: mean", "median", "worst tenth", "length", title=report["out"])
    for source, records in report["sources"].items():
        row = report["coverage"][source]
        shares = ("–" if row[key] is None else f"{row[key]:.1%}" for key in ("mean", "median", "p10"))
        table.add_row(source, f"{records:,}", *shares, f"{row['length_ratio']:.2f}×")
    print_table(console, table)
    console.print(f"records {report['records']:,}, rejected {report['rejected']:,}")
    for key, what in (("rejected_passages", "rejected passages"), ("rejected_tries", "rejected texts")):
        if report.get(key):
            console.print(f"{what}: {counted(report[key])}")
    if client := report.get("client"):
        failed = counted(client["failed_requests"])
        console.print(
            f"requests {client['requests']:,}, answers {client['answers']:,}" + (f", failed: {failed}" if failed else "")
        )
