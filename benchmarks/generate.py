"""Greedy decoding against transformers, and refilled rows against static batches of our own engine; alternating pairs.

    python -m benchmarks.generate                # tokens/s by wall clock, all cores; needs an otherwise idle machine
    python -m benchmarks.generate --cpu-seconds  # tokens per CPU second on one core: says less, but other work disturbs it less

What must hold: both sides have the same weights and make the same number of tokens. Next to read:
`huatuo_jax/inference/engine.py`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PROMPT, NEW = 64, 96
SHAPE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
}
ROWS = 32
RAGGED = (8, 96, 6)
"""Answer lengths of the second part: shortest, longest, prompts a row."""


def models() -> tuple[Any, Any, Any]:
    """One random Llama of 27 M parameters: transformers' model, our config and parameters."""
    import tempfile

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from huatuo_jax.weights.hf_config import read_config
    from huatuo_jax.weights.hf_read import open_weights
    from huatuo_jax.weights.load import load_params

    # Through a folder, so that ours and theirs are the same numbers. Without an end token, so that every answer has its full
    # length.
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=512, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    theirs = LlamaForCausalLM(config).eval()
    if theirs.config._attn_implementation != "sdpa":
        raise RuntimeError(f"transformers chose {theirs.config._attn_implementation} attention; the comparison is with sdpa")
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = read_config(folder)
        return theirs, ours, load_params(open_weights(folder, ours))


def alternate(clock: Callable[[], float], pairs: int, ours: Callable[[], int], theirs: Callable[[], int]) -> None:
    """Prints tokens/s of both and the median of the ratios of neighbouring runs; the first pair only compiles."""
    speeds: list[tuple[float, float]] = []
    for pair in range(pairs + 1):
        both = []
        # In turn and not one after the other: a neighbour's load then falls on both.
        for work in (ours, theirs):
            start = clock()
            tokens = work()
            both.append(tokens / (clock() - start))
        if pair:
            speeds.append((both[0], both[1]))
    ratios = [a / b for a, b in speeds]
    first, second = (statistics.median(column) for column in zip(*speeds, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {pairs} pairs"
    print(f"{first:,.0f} against {second:,.0f} tokens/s, ratio {statistics.median(ratios):.2f} ({spread})", flush=True)


def against_transformers(clock: Callable[[], float], pairs: int, theirs: Any, config: Any, params: Any) -> None:
    """The same prompts of equal length, the same number of new tokens, at 1, 8 and 32 rows."""
    import torch

    from huatuo_jax.inference.engine import Engine
    from huatuo_jax.inference.requests import Request

    for rows in (1, 8, 32):
        prompts = np.random.default_rng(rows).integers(1, SHAPE["vocab_size"], (rows, PROMPT))
        engine = Engine(config, params, (), num_rows=rows)
        requests = [Request(prompt, NEW) for prompt in prompts.tolist()]
        ids = torch.tensor(prompts)

        def our_run(engine: Engine = engine, requests: Sequence[Request] = requests) -> int:
            return sum(len(answer.tokens) for answer in engine.complete(requests))

        def their_run(ids: Any = ids) -> int:
            with torch.inference_mode():
                mask = torch.ones_like(ids)
                out = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=True)
            return out.shape[0] * (out.shape[1] - PROMPT)

        print(f"{rows} rows, against transformers: ", end="", flush=True)
        alternate(clock, pairs, our_run, their_run)


def refilled_against_static(clock: Callable[[], float], pairs: int, config: Any, params: Any) -> None:
    """Answers of unequal length: rows that take the next prompt at once, against batches that end with their longest row."""
    from huatuo_jax.inference.engine import Engine
    from huatuo_jax.inference.requests import Request

    shortest, longest, per_row = RAGGED
    rng = np.random.default_rng(0)
    # Most answers are short and a few are long, as real ones are.
    lengths = np.minimum(shortest + rng.exponential((longest - shortest) / 4, ROWS * per_row), longest).astype(int)
    requests = [Request(rng.integers(1, SHAPE["vocab_size"], PROMPT).tolist(), int(length)) for length in lengths]
    # One engine for both, so that only the order of the work differs, and nothing is compiled twice.
    engine = Engine(config, params, (), num_rows=ROWS)

    def refilled() -> int:
        return sum(len(answer.tokens) for answer in engine.complete(requests))

    def static() -> int:
        batches = [requests[start : start + ROWS] for start in range(0, len(requests), ROWS)]
        return sum(len(answer.tokens) for batch in batches for answer in engine.complete(batch))

    print(f"{len(requests)} answers of {lengths.min()} to {lengths.max()} tokens (mean {lengths.mean():.0f}) in {ROWS} rows, ")
    print("refilled against static: ", end="", flush=True)
    alternate(clock, pairs, refilled, static)


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="alternating pairs of each part (default: 5)")
    parser.add_argument("--cpu-seconds", action="store_true", help="one core, CPU time instead of wall clock")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if args.cpu_seconds:
        cores = cores[:1]
        os.sched_setaffinity(0, cores)  # before jax makes its threads
    import torch

    torch.set_num_threads(len(cores))
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    theirs, config, params = models()
    millions = sum(parameter.numel() for parameter in theirs.parameters()) / 1e6
    what = "CPU seconds" if args.cpu_seconds else "wall clock"
    print(f"{millions:.1f} M parameters, {PROMPT} + {NEW} tokens, fp32, greedy, {len(cores)} cores, {what}")
    against_transformers(clock, args.pairs, theirs, config, params)
    refilled_against_static(clock, args.pairs, config, params)


if __name__ == "__main__":
    main()
