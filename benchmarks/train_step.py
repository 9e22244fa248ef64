"""Training speed on a CPU against transformers + torch, alternating in one process.

Part 1: the same Llama-shaped model (25 M parameters, sequence 512, fp32, AdamW, clip), tokens a second on full rows.
Part 2: the same dialogues, target tokens a second; ours packed into rows of 512, torch in batches padded to their longest, once
with as many dialogues a step as ours (the same recipe), once with 8.
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.train_step [--pairs 7] [--steps 4]

The setting gives both sides large memory pages: without, the buffers that XLA makes anew each step cost a tenth in page faults.
Prints ratios ours / torch: the median over alternating pairs. What must hold: the same parameters, texts and optimizer on both
sides. Next to read: `huatuo_jax/training/step.py`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.corpora import encoded_dialogues
from huatuo_jax.config import ComputeConfig, DataConfig, MeshConfig, ModelConfig, OptimizerConfig, RunConfig
from huatuo_jax.data.dialogue import IGNORED, Examples
from huatuo_jax.data.packing import pack
from huatuo_jax.data.rows import assemble
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.step import build_step

SEQUENCE, ROWS = 512, 4
MODEL = ModelConfig("bench-25m", "llama", 8192, 7, 448, 7, 7, 64, 1216, norm_eps=1e-5)


def torch_stepper() -> tuple[Callable[..., float], int]:
    """A function that takes one torch step on [rows, length] ids, labels and mask; and the parameter count."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=MODEL.vocab_size,
            hidden_size=MODEL.hidden_size,
            intermediate_size=MODEL.ffn_size,
            num_hidden_layers=MODEL.num_layers,
            num_attention_heads=MODEL.num_heads,
            max_position_embeddings=MODEL.max_length,
            tie_word_embeddings=False,
            # torch's fastest on a CPU; "eager" would flatter us.
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def step(tokens: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None) -> float:
        attention_mask = None if mask is None else torch.from_numpy(mask)
        out = model(
            input_ids=torch.from_numpy(tokens), labels=torch.from_numpy(labels), attention_mask=attention_mask, use_cache=False
        )
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(out.loss.detach())

    return step, sum(p.numel() for p in model.parameters())


def jax_stepper() -> Callable[[dict[str, np.ndarray]], float]:
    """A function that takes one of our steps on a packed batch."""
    config = RunConfig(
        name="bench",
        model=MODEL,
        data=DataConfig(sequence_length=SEQUENCE),
        optimizer=OptimizerConfig(schedule="constant"),
        mesh=MeshConfig(fsdp=1),
        # What suits a CPU and a small model, as the recipe of the quickstart has it: nothing recomputed, no loop over layers.
        compute=ComputeConfig(dtype="float32", remat="none", loss_chunks=8, unroll=MODEL.num_layers),
        batch_size=ROWS,
    )
    train = build_step(config, make_mesh(config.mesh), total_steps=10_000, sources=("data",))
    state = train.init(0)

    def step(batch: dict[str, np.ndarray]) -> float:
        nonlocal state
        state, metrics = train.step(state, jax.device_put(batch, train.batch_sharding))
        return float(metrics["loss"])  # waits for the step, as reading torch's loss does

    return step


def full_rows(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Random ids as one batch for both: torch's ids, and our batch with targets shifted."""
    tokens = rng.integers(3, MODEL.vocab_size, (ROWS, SEQUENCE)).astype(np.int32)
    ones = np.ones_like(tokens)
    batch = {
        "tokens": tokens,
        "targets": np.concatenate([tokens[:, 1:], np.full((ROWS, 1), IGNORED, np.int32)], axis=1),
        "segment_ids": ones,
        "positions": np.broadcast_to(np.arange(SEQUENCE, dtype=np.int32), tokens.shape).copy(),
        "source_ids": ones * 0,
    }
    return tokens.astype(np.int64), batch


def packed_batches(documents: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Dialogues packed first-fit into batches of full rows, as training reads them."""
    lengths = np.array([min(len(tokens), SEQUENCE) for tokens, _ in documents])
    # Whole dialogues in training's own packing; what padding costs torch is the point of the second part.
    row_starts, order = pack(lengths, SEQUENCE, "first_fit")
    examples = Examples.join([documents[i] for i in order]).cut(SEQUENCE)
    rows = assemble(examples, np.zeros(len(order), np.int32), np.diff(row_starts).tolist(), SEQUENCE, "first_fit")
    starts = range(0, len(row_starts) - ROWS, ROWS)
    return [{name: array[i : i + ROWS] for name, array in rows.items()} for i in starts]


def padded_batches(documents: list[tuple[np.ndarray, np.ndarray]], size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same dialogues in their order, `size` a batch, padded to the longest: what a general trainer's collator does."""
    batches = []
    for start in range(0, len(documents) - size + 1, size):
        group = [(tokens[:SEQUENCE], targets[:SEQUENCE]) for tokens, targets in documents[start : start + size]]
        shape = (size, max(len(tokens) for tokens, _ in group))
        ids, labels, mask = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64), np.zeros(shape, np.int64)
        for i, (tokens, targets) in enumerate(group):
            ids[i, : len(tokens)], labels[i, : len(tokens)], mask[i, : len(tokens)] = tokens, targets, 1
        batches.append((ids, labels, mask))
    return batches


def seconds(step: Callable[[Any], Any], batches: list[Any]) -> float:
    """Wall-clock seconds of a step on each batch, after one untimed step: the other side's turn has taken caches and pages."""
    step(batches[0])
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    return time.perf_counter() - start


def main() -> None:
    """Runs both parts and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of each part (default: 7)")
    parser.add_argument("--steps", type=int, default=4, help="steps of each side in a pair (default: 4)")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    torch_step, parameters = torch_stepper()
    our_step = jax_stepper()
    print(f"{parameters / 1e6:.1f} M parameters, rows of {SEQUENCE}, {ROWS} rows a step, fp32, {torch.get_num_threads()} threads")

    ids, batch = full_rows(rng)
    torch_step(ids, ids), our_step(batch)  # compiles ours, and warms both
    tokens, ours, theirs = args.steps * ROWS * SEQUENCE, [], []
    for _ in range(args.pairs):
        ours.append(tokens / seconds(our_step, [batch] * args.steps))
        theirs.append(tokens / seconds(lambda pair: torch_step(*pair), [(ids, ids)] * args.steps))
    show("full rows, tokens/s", ours, theirs)

    documents = encoded_dialogues(MODEL.vocab_size, count=4000)
    packed = packed_batches(documents)
    a_step = round(np.mean([batch["segment_ids"].max(axis=1).sum() for batch in packed]))
    fill = np.mean([(b["segment_ids"] > 0).mean() for b in packed])
    print(f"{len(documents)} dialogues, {a_step} in a packed batch, whose rows are {fill:.3f} full")
    for size in (a_step, 8):
        padded = padded_batches(documents, size)
        padded_fill = np.mean([mask.mean() for _, _, mask in padded])
        ours, theirs = [], []
        for pair in range(args.pairs):
            mine = [packed[(pair * args.steps + i) % len(packed)] for i in range(args.steps)]
            other = [padded[(pair * args.steps + i) % len(padded)] for i in range(args.steps)]
            count = sum(int((b["targets"] != IGNORED).sum()) for b in mine)
            ours.append(count / seconds(our_step, mine))
            count = sum(int((b[1][:, 1:] != IGNORED).sum()) for b in other)
            theirs.append(count / seconds(lambda batch: torch_step(*batch), other))
        show(f"target tokens/s against padded batches of {size}, {padded_fill:.3f} full", ours, theirs)


def show(name: str, ours: list[float], theirs: list[float]) -> None:
    """Prints one line: both medians, and the median of the ratios pair by pair."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} pairs"
    medians = f"ours {statistics.median(ours):,.0f}, torch {statistics.median(theirs):,.0f}"
    print(f"{name}: {medians}, ratio {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
