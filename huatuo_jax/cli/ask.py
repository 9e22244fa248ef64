"""`huatuo ask`: questions to a trained run, answered greedily."""

import argparse
from typing import Any

from huatuo_jax.cli.arguments import local_path

HELP = """Ask a trained model: the config's questions, your own, or its training data (--recall)

Loads the newest checkpoint of a run (weights alone), answers greedily in the run's dialogue format and prints the answers.
Where the expected answer is known, the share of its first 50 characters that are right is printed too. Without a question the
answers are saved as RUN/answers.json, and with --recall as RUN/recall.json, where `huatuo report` finds them."""
EXAMPLE = """
huatuo ask runs/quickstart --recall 16            # the config's questions, and 16 training records a source
huatuo ask runs/quickstart "感冒了可以喝酒吗？"   # one question of your own
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", metavar="RUN", type=local_path, help="run directory of `huatuo train`")
    parser.add_argument("question", nargs="*", default=[], help="questions of your own; default: the config's")
    parser.add_argument("--recall", metavar="N", type=int, default=0, help="also ask N training records of every source")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=256, help="longest answer in tokens (default: 256)")
    parser.add_argument("--quantize", metavar="KIND", help="weights of 8 or 4 bits: int8, int4 or int4:GROUP")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from huatuo_jax.cli.console import make_console, write_report
    from huatuo_jax.config import Question, RunConfig, config_from_dict, require
    from huatuo_jax.data.token_store import TokenDataset
    from huatuo_jax.inference.ask import Asker
    from huatuo_jax.inference.recall import CHARACTERS, RECALL_TOKENS, exercises, recall, recall_per_source
    from huatuo_jax.io.files import read_json, write_json
    from huatuo_jax.weights.open import kind_of

    require(args.max_new_tokens >= 1, f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1")
    require(args.recall >= 0, f"--recall is {args.recall}; it must be at least 0")
    kind = kind_of(args.run)
    require(kind != "hf", f"{args.run} is a Hugging Face folder; `huatuo chat {args.run}` and generate open it")
    require(
        kind != "step",
        f"{args.run} is one checkpoint; `huatuo chat` and `generate` open it, ask takes the run, {args.run.parent.parent}",
    )
    is_run = kind == "run"
    require(all(text.strip() for text in args.question), f"a question for {args.run} is empty; write one between the quotes")
    require(is_run or (args.question and not args.recall), f"{args.run} is a base, not a run: huatuo ask {args.run} 'QUESTION'")
    config = config_from_dict(RunConfig, read_json(args.run / "config.json")) if is_run else None
    questions = [Question(text) for text in args.question] or list(config.questions if config else ())
    require(
        bool(questions) or args.recall > 0,
        f"{args.run} has no questions in its config; give one: huatuo ask {args.run} 'QUESTION'",
    )

    console = make_console(args.quiet)
    asker = Asker(args.run, args.max_new_tokens, args.quantize)
    answers: list[dict[str, Any]] = []
    for question, answer in zip(questions, asker.answer([[q.prompt] for q in questions]), strict=True):
        share = recall(answer, question.expected) if question.expected else None
        answers.append({"prompt": question.prompt, "answer": answer, "source": question.source, "recall": share})
        known = "" if share is None else f" [dim]({question.source}, {100 * share:.0f} % of {CHARACTERS} characters right)[/]"
        console.print(f"[bold cyan]问[/] {question.prompt}{known}")
        console.print(f"[bold green]答[/] {answer}\n")
    report: dict[str, Any] = {"answers": answers}
    if not args.question:
        write_json(args.run / "answers.json", answers)
    if args.recall and config is not None:
        work = exercises(TokenDataset.open(config.data.tokens), asker.tokenizer, args.recall)
        report["recall"] = {
            "characters": CHARACTERS,
            "sources": recall_per_source(work, lambda prompts: asker.complete(prompts, RECALL_TOKENS)),
        }
        write_json(args.run / "recall.json", report["recall"])
        console.print(f"recall of trained records (share of the first {CHARACTERS} characters right, greedy)")
        for source, entry in report["recall"]["sources"].items():
            console.print(f"  {source:<26}{100 * entry['recall']:6.1f} %   {entry['records']} records")
    write_report(args.json, report)
    return 0
