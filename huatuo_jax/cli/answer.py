"""`huatuo generate`: a file of prompts to a file of answers."""

import argparse
from typing import Any

from huatuo_jax.cli.arguments import local_path

HELP = """Answer prompts of a file: JSONL out, resumable

Prompts: a .txt file (one a line), a .jsonl file ({"prompt": "…"} or {"turns": ["…", …]}, optional "id" and "system", other fields
are kept), or - for stdin. Every line of the output has id, prompt, answer, finish_reason ("end", "stop" or "length") and token
counts, in the order in which answers finish. A rerun of the same line answers what has no answer yet."""
EXAMPLE = """
huatuo generate runs/quickstart --prompts questions.txt --out answers.jsonl
huatuo generate runs/quickstart --prompts exam.jsonl --out answers.jsonl --greedy --max-new-tokens 64 --batch-size 32
echo "感冒了可以喝酒吗？" | huatuo generate runs/quickstart --prompts - --out answers.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from huatuo_jax.cli.arguments import add_model_arguments, add_sampling_arguments

    add_model_arguments(parser)
    parser.add_argument("--prompts", metavar="FILE", required=True, help="a .txt or .jsonl file, or - for stdin")
    parser.add_argument("--out", metavar="FILE.jsonl", type=local_path, required=True, help="where the answers go")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="prompts side by side (default: 16)")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import time

    from huatuo_jax.cli.arguments import answers, choose_dtype, choose_mesh, new_tokens, sampling
    from huatuo_jax.cli.console import make_console, make_progress, sigterm_interrupts, write_report
    from huatuo_jax.config import require
    from huatuo_jax.errors import StoppedError
    from huatuo_jax.inference.answer_file import AnswerFile
    from huatuo_jax.inference.batch import answer_line, check_unchanged, make_request
    from huatuo_jax.inference.loading import open_model
    from huatuo_jax.inference.prompt_file import read_prompts
    from huatuo_jax.inference.request import check_prompt

    require(args.batch_size >= 1, f"--batch-size is {args.batch_size}; it must be at least 1")
    require(args.out.suffix == ".jsonl", f"--out {args.out}: the answers are JSON lines; give a name that ends in .jsonl")
    console, settings = make_console(args.quiet), sampling(args)
    model = open_model(args.model, args.format, **answers(args))  # before the prompts, which a person may be typing
    prompts = read_prompts(args.prompts)
    most, dtype, mesh = new_tokens(args, model.config), choose_dtype(args.dtype), choose_mesh(args)
    quantizer = model.quantizer(args.quantize, dtype, mesh)
    facts: dict[str, Any] = {
        "model": model.source,
        "format": model.template.name,
        "max_new_tokens": most,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "repetition_penalty": settings.repetition_penalty,
        "seed": settings.seed,
        "stop": args.stop,
        "dtype": dtype,
        "quantize": args.quantize,
        **answers(args),
    }
    out = AnswerFile(args.out, facts)
    check_unchanged(prompts, out)
    todo = [prompt for prompt in prompts if prompt.id not in out.done]
    requests = [make_request(prompt, model, settings, most, args.stop) for prompt in todo]
    for request in requests:
        check_prompt(model.config, request.prompt, request.max_new_tokens, request.name)
    already = len(prompts) - len(todo)
    console.print(f"{len(prompts)} prompts" + (f", {already} of them answered already" if already else ""))
    started, new_ids, answered = time.perf_counter(), 0, 0
    try:
        with sigterm_interrupts(), out:
            if todo:
                engine = model.engine(args.batch_size, dtype, mesh, quantizer)
                require(
                    model.source == facts["model"],
                    f"{args.model}: its newest checkpoint is damaged, and answers must say which weights gave them; "
                    f"name the one to use: {args.model}/checkpoints/{model.step}",
                )
                with make_progress(console, "answers") as progress:
                    task = progress.add_task("generating", total=len(prompts), completed=already)
                    for index, answer in engine.generate(requests):
                        out.append(answer_line(todo[index], requests[index], answer))
                        new_ids += len(answer.tokens)
                        answered += 1
                        progress.advance(task)
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped; {already + answered} of {len(prompts)} answers are in {args.out}, and the same command answers the rest"
        ) from None
    seconds = time.perf_counter() - started
    report = {"prompts": len(prompts), "answered": len(todo), "answer_tokens": new_ids, "seconds": seconds, "settings": facts}
    if todo:
        console.print(f"{len(todo)} answers, {new_ids} tokens in {seconds:.1f} s with loading and compiling: {args.out}")
    write_report(args.json, report)
    return 0
