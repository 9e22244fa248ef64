"""Loading and saving a 1 GB Hugging Face folder against transformers: seconds and peak host memory, each in a fresh process.

    python -m benchmarks.hf_files [--pairs 3] [--gigabytes 1]

The folder is a random Llama in bf16. "load" ends when every weight has been read into memory of the process's own (ours: on the
CPU device; transformers': summed, for it only maps the file). "save" writes a folder from a model: ours from a checkpoint on
disk, whose reading counts; transformers' from memory, after a load that does not count. Memory is the process's own (anonymous)
peak above what it held before the job: pages of a mapped file belong to the system. What must hold: both sides end with the
weights read, for a mapped file that nobody has read is not loaded. Next to read: `huatuo_jax/weights/load.py`, `hf_write.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

# Before the libraries are imported, which read them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


class Watch:
    """Seconds and the largest anonymous memory above the start of a with-block."""

    def __enter__(self) -> "Watch":
        self.before, self.peak, self._running = anonymous(), 0, True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def _sample(self) -> None:
        while self._running:
            # Sampled, because the kernel keeps a peak of all memory only, mapped files included.
            self.peak = max(self.peak, anonymous() - self.before)
            time.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._running = False
        self._thread.join()

    def show(self) -> None:
        """Prints both for the parent process."""
        print(json.dumps({"seconds": self.seconds, "gib": self.peak / 2**30}))


def ours_load(folder: Path) -> None:
    """`huatuo_jax.weights.open` and `load`."""
    import jax

    from huatuo_jax.weights.open import open_stored_model

    jax.devices()  # starting the backend is no part of loading
    with Watch() as watch:
        jax.block_until_ready(open_stored_model(folder).params(dtype=None))
    watch.show()


def theirs_load(folder: Path) -> None:
    """`AutoModelForCausalLM.from_pretrained`."""
    with Watch() as watch:
        _read_by_transformers(folder)
    watch.show()


def ours_save(folder: Path) -> None:
    """`huatuo convert to-hf` from the base beside the folder."""
    import jax

    from huatuo_jax.weights.hf_write import ExportRequest, export

    jax.devices()
    with tempfile.TemporaryDirectory(dir=folder.parent) as out, Watch() as watch:
        export(folder.parent / "base", Path(out) / "export", ExportRequest())
    watch.show()


def theirs_save(folder: Path) -> None:
    """`save_pretrained`."""
    model = _read_by_transformers(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as out, Watch() as watch:
        model.save_pretrained(Path(out) / "export")
    watch.show()


def _read_by_transformers(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    # transformers maps the file: only a sum makes it read every weight.
    with torch.no_grad():
        sum(float(parameter.sum()) for parameter in model.parameters())
    return model


JOBS = {"ours load": ours_load, "theirs load": theirs_load, "ours save": ours_save, "theirs save": theirs_save}


def make_folder(folder: Path, gigabytes: float) -> None:
    """A random bf16 Llama of about so many gigabytes with a small tokenizer, and the base imported from it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.corpora import dialogues
    from data_tools.tokens.tokenizer_training import train_tokenizer
    from huatuo_jax.cli import main

    # Two bytes a weight; what embedding and head leave of the size, in layers of 4 D² + 3 D·F weights.
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * 32_000 * 1536) / (4 * 1536**2 + 3 * 1536 * 4096)))
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        max_position_embeddings=4096,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    lines = (line for turns in dialogues(2_000) for turn in turns for line in turn.splitlines())
    train_tokenizer(lines, 6_000, folder / "tokenizer.model", at_most=True)
    assert main(["convert", "from-hf", str(folder), str(folder.parent / "base"), "--quiet"]) == 0


def main() -> None:
    """Runs all four jobs in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each job (default: 3)")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the folder (default: 1)")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        JOBS[args.job](args.folder)
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "hf"
        make_folder(folder, args.gigabytes)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB in bf16; {args.pairs} runs of each job in turn")
        figures: dict[str, list[dict[str, float]]] = {job: [] for job in JOBS}
        for _ in range(args.pairs):
            # A process for each job: memory that one has freed must not serve the next.
            for job in JOBS:
                words = [sys.executable, "-m", "benchmarks.hf_files", "--job", job, "--folder", str(folder)]
                out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                figures[job].append(json.loads(out.splitlines()[-1]))
        for verb in ("load", "save"):
            ours, theirs = figures[f"ours {verb}"], figures[f"theirs {verb}"]
            ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
            print(
                f"{verb}: ours {statistics.median(a['seconds'] for a in ours):.2f} s, {max(a['gib'] for a in ours):.2f} GiB; "
                f"transformers {statistics.median(b['seconds'] for b in theirs):.2f} s, {max(b['gib'] for b in theirs):.2f} GiB; "
                f"transformers' seconds / ours {ratio:.2f}"
            )


if __name__ == "__main__":
    main()
