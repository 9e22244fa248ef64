"""`huatuo ask`, `generate`, `chat` and `logits`: what a model answers.

The end of a model's way, or a look at a run in between. What must hold: everything that a user can have mistaken is refused
before the weights are read. Next to read: `huatuo_jax/inference`, which does the work.
"""

import argparse
import time

from huatuo_jax.cli.arguments import (
    MODEL_HELP,
    Parser,
    add_dtype_argument,
    add_folder_arguments,
    add_model_arguments,
    add_sampling_arguments,
    engine_options,
    folder_options,
    local_path,
    new_tokens,
    sampling,
)
from huatuo_jax.cli.console import Report, make_console, make_progress, sigterm_interrupts
from huatuo_jax.config import Question, RunConfig, config_from_dict, require
from huatuo_jax.errors import StoppedError


def ask_arguments(parser: Parser) -> None:
    """Declares the arguments of `ask`."""
    add_model_arguments(parser)
    parser.add_argument("question", metavar="QUESTION", nargs="*", default=[], help="of your own (default: the run's)")
    parser.add_argument("--recall", metavar="N", type=int, default=0, help="also ask N training records of every source of a run")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=256, help="longest answer in tokens (default: 256)")


def ask(args: argparse.Namespace) -> Report:
    """Ask a model: the questions of its run, your own, or its training data (--recall)

    Answers greedily in the model's dialogue format and prints the answers. Where the expected answer is known, the share of its
    first 50 characters that are right is printed too. Of a run without QUESTION, the answers are saved as RUN/answers.json, and
    those of --recall as RUN/recall.json, where `huatuo report` finds them.

    Example:
    huatuo ask runs/quickstart --recall 16            # the config's questions, and 16 training records a source
    huatuo ask runs/quickstart "感冒了可以喝酒吗？"   # one question of your own
    """
    from huatuo_jax.data.token_store import TokenDataset
    from huatuo_jax.inference.model import open_model
    from huatuo_jax.inference.recall import CHARACTERS, ROWS_AT_ONCE, Asker
    from huatuo_jax.io.files import read_json, write_json

    require(args.max_new_tokens >= 1, f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1")
    require(args.recall >= 0, f"--recall is {args.recall}; it must be at least 0")
    require(all(text.strip() for text in args.question), f"a question for {args.model} is empty; write one between the quotes")
    model = open_model(args.model, args.format, **folder_options(args))
    # Questions and training data are the run's; a base or a folder has none.
    config = None
    if model.stored.kind == "run":
        config = config_from_dict(RunConfig, read_json(args.model / "config.json"))
    require(config is not None or not args.recall, f"--recall needs the training data of a run, and {args.model} is no run")
    questions = [Question(text) for text in args.question] or list(config.questions if config else ())
    remedy = f"give one: huatuo ask {args.model} 'QUESTION'"
    require(bool(questions) or args.recall > 0, f"{args.model} has no questions in a config; {remedy}")

    console = make_console(args.quiet)
    asker = Asker(model, model.engine(ROWS_AT_ONCE, **engine_options(args, model)), args.max_new_tokens)
    answers = asker.ask(questions)
    for entry in answers:
        known = f" [dim]({entry['source']}, {100 * (entry['recall'] or 0):.0f} % of {CHARACTERS} characters right)[/]"
        console.print(f"[bold cyan]问[/] {entry['prompt']}{'' if entry['recall'] is None else known}")
        console.print(f"[bold green]答[/] {entry['answer']}\n")
    report: Report = {"answers": answers}
    # Answers to questions of one's own are no part of the run, and `huatuo report` would draw them as if they were.
    if config and not args.question:
        write_json(args.model / "answers.json", answers)
    if config and args.recall:
        report["recall"] = asker.recall_per_source(TokenDataset.open(config.data.tokens), args.recall)
        write_json(args.model / "recall.json", report["recall"])
        console.print(f"recall of trained records (share of the first {CHARACTERS} characters right, greedy)")
        for source, entry in report["recall"]["sources"].items():
            console.print(f"  {source:<26}{100 * entry['recall']:6.1f} %   {entry['records']} records")
    return report


def generate_arguments(parser: Parser) -> None:
    """Declares the arguments of `generate`."""
    add_model_arguments(parser)
    parser.add_argument("--prompts", metavar="FILE", required=True, help="a .txt or .jsonl file, or - for stdin")
    parser.add_argument("--out", metavar="FILE.jsonl", type=local_path, required=True, help="where the answers go")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="prompts side by side (default: 16)")
    add_sampling_arguments(parser)


def generate(args: argparse.Namespace) -> Report:
    """Answer prompts of a file: JSONL out, resumable

    Prompts: a .txt file (one a line), a .jsonl file ({"prompt": "…"} or {"turns": ["…", …]}, optional "id" and "system", other
    fields are kept), or - for stdin. Every line of the output has id, prompt, answer, finish_reason ("end", "stop" or "length")
    and token counts, in the order in which answers finish. A rerun of the same line answers what has no answer yet.

    Example:
    huatuo generate runs/quickstart --prompts questions.txt --out answers.jsonl
    huatuo generate runs/quickstart --prompts exam.jsonl --out answers.jsonl --greedy --max-new-tokens 64 --batch-size 32
    echo "感冒了可以喝酒吗？" | huatuo generate runs/quickstart --prompts - --out answers.jsonl
    """
    from huatuo_jax.inference.batch import Batch, read_prompts
    from huatuo_jax.inference.model import open_model

    require(args.batch_size >= 1, f"--batch-size is {args.batch_size}; it must be at least 1")
    require(args.out.suffix == ".jsonl", f"--out {args.out}: the answers are JSON lines; give a name that ends in .jsonl")
    console, settings = make_console(args.quiet), sampling(args)
    model = open_model(args.model, args.format, **folder_options(args))  # before the prompts, which a person may be typing
    prompts, options = read_prompts(args.prompts), engine_options(args, model)
    recorded = {"dtype": options["dtype"], "quantize": args.quantize, **folder_options(args)}
    batch = Batch(model, prompts, args.out, settings, new_tokens(args, model.config), args.stop, recorded)
    already = len(prompts) - len(batch.requests)
    console.print(f"{len(prompts)} prompts" + (f", {already} of them answered already" if already else ""))
    # In two steps, so that settings, prompts and earlier answers are checked here, and the weights are read only if a prompt is
    # left to answer.
    started, lengths = time.perf_counter(), list[int]()
    try:
        with sigterm_interrupts(), make_progress(console, "answers") as progress:
            task = progress.add_task("generating", total=len(prompts), completed=already)
            for completion in batch.run(lambda: model.engine(args.batch_size, **options)):
                lengths.append(len(completion.tokens))
                progress.advance(task)
    except KeyboardInterrupt:
        done = f"{already + len(lengths)} of {len(prompts)} answers are in {args.out}"
        raise StoppedError(f"stopped; {done}, and the same command answers the rest") from None
    seconds = time.perf_counter() - started
    if lengths:
        console.print(f"{len(lengths)} answers, {sum(lengths)} tokens in {seconds:.1f} s with loading and compiling: {args.out}")
    return {
        "prompts": len(prompts),
        "answered": len(lengths),
        "answer_tokens": sum(lengths),
        "seconds": seconds,
        "settings": batch.settings,
    }


def chat_arguments(parser: Parser) -> None:
    """Declares the arguments of `chat`."""
    add_model_arguments(parser)
    add_sampling_arguments(parser)


def chat(args: argparse.Namespace) -> Report:
    """Talk to a model: answers stream, history is kept

    Draws tokens as HuatuoGPT-II was released (temperature 0.3, top-p 0.7, repetition penalty 1.1, at most 1024 new tokens) unless
    told otherwise. Ctrl-C stops an answer, not the program. Reads questions from a pipe too, one a line.

    Example:
    huatuo chat runs/quickstart
    huatuo chat runs/quickstart --greedy --max-new-tokens 128
    echo "感冒了可以喝酒吗？" | huatuo chat runs/quickstart
    """
    from huatuo_jax.inference.chat import Conversation, talk
    from huatuo_jax.inference.model import open_model

    console, settings = make_console(args.quiet), sampling(args)
    model = open_model(args.model, args.format, **folder_options(args))
    longest = new_tokens(args, model.config)
    engine = model.engine(1, **engine_options(args, model))  # one row: one person asks one question at a time
    console.print(f"{model.source}; answers up to {longest} tokens; /help lists the commands")
    conversation = Conversation(model, engine, settings, longest, tuple(args.stop))
    questions = talk(conversation)
    return {"model": model.source, "questions": questions, "turns": conversation.turns}


def logits_arguments(parser: Parser) -> None:
    """Declares the arguments of `logits`."""
    parser.add_argument("model", metavar="MODEL", type=local_path, help=MODEL_HELP)
    parser.add_argument("--token-ids", metavar="FILE.json", required=True, type=local_path, help="a list of lists of token ids")
    parser.add_argument("--out", metavar="FILE.npy", required=True, type=local_path, help="file to write")
    add_dtype_argument(parser, "of the computation", "float32", ("float32", "bfloat16"))
    add_folder_arguments(parser)


def logits(args: argparse.Namespace) -> Report:
    """Write the logits of given token ids, for checks by other programs

    FILE.json holds a list of lists of token ids, each a row of its own. FILE.npy gets the fp32 logits of all rows, concatenated:
    [total tokens, vocabulary]; np.load(FILE.npy, mmap_mode="r") reads it. Logits that are NaN or infinite are refused with row
    and position, and nothing is written.

    Example:
    echo '[[5, 60, 93, 1200], [1, 2]]' > ids.json
    huatuo logits runs/quickstart --token-ids ids.json --out logits.npy
    """
    import jax.numpy as jnp
    import numpy as np

    from huatuo_jax.errors import DataError
    from huatuo_jax.io.files import read_json, written_aside
    from huatuo_jax.weights.compare import check_rows, row_logits
    from huatuo_jax.weights.open import open_stored_model

    try:
        rows = read_json(args.token_ids)
    except ValueError as error:
        raise DataError(f"{args.token_ids} is not JSON ({error}); write a list of lists of token ids") from error
    if not isinstance(rows, list):
        raise DataError(f"{args.token_ids} holds {type(rows).__name__}; write a list of lists of token ids")
    dtype = jnp.dtype(args.dtype)
    model = open_stored_model(args.model, **folder_options(args))
    check_rows(model.config, rows)
    params = model.params(dtype=dtype)
    # Row by row into a mapped file: 4,096 positions of 125,696 logits are 2 GB.
    shape = (sum(map(len, rows)), model.config.vocab_size)
    console, start = make_console(args.quiet), 0
    with written_aside(args.out) as aside, make_progress(console, "rows") as progress:
        out = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
        for of_row in progress.track(row_logits(model.config, params, rows, dtype), total=len(rows), description="logits"):
            out[start : start + len(of_row)] = of_row
            start += len(of_row)
        out.flush()
    console.print(f"{args.out}: fp32 logits {list(shape)} of {model.config.name}")
    return {"model": str(args.model), "rows": len(rows), "tokens": shape[0], "vocabulary": shape[1]}
