"""A token dataset, a plan and a config so small that a whole run takes seconds; made with the real tools.

As a script it is `huatuo train` with slow input, so that a test can stop it in the middle; where the environment names a file
in BATCHES_SEEN, it writes down what this process saw of each batch:

    python tiny_run.py SECONDS_PER_BATCH CONFIG.py --run DIR …
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SEQUENCE = 64
MIXTURE = {"medical_books_cn": 4.0, "sft": 1.0}
CONFIG = """
from huatuo_jax.config import CheckpointConfig, ComputeConfig, DataConfig, LoggingConfig, MeshConfig, RunConfig, SourceMix
from huatuo_jax.models.presets import preset

def config():
    return RunConfig(
        "tiny",
        preset("tiny-llama2", vocab_size={vocab_size}, num_layers=1, hidden_size=32, head_dim=8, ffn_size=64),
        data=DataConfig(
            tokens="{folder}/tokens", plan="{folder}/plan", sequence_length={sequence}, threads=2,
            mixture={{"medical_books_cn": SourceMix(4.0), "sft": SourceMix(1.0, 2)}},
        ),
        mesh=MeshConfig(fsdp=4),
        compute=ComputeConfig(dtype="float32", remat="none", loss_chunks=2),
        checkpoint=CheckpointConfig(every=4, keep=3),
        logging=LoggingConfig(every=3, eval_every=6, eval_rows=4, tensorboard=False),
        batch_size=8,
        steps=14,
    )
"""


def make_data(folder: Path, seed: int = 0) -> Path:
    """Writes data and plan into `folder`; returns the path of a config file."""
    from data_tools.planning.planner import make_plan
    from data_tools.records.unified import UnifiedWriter
    from data_tools.tokens.build import BuildRequest, build
    from data_tools.tokens.tokenizer_training import train_tokenizer
    from huatuo_jax.config_files import load_config
    from huatuo_jax.data.dialogue import Record
    from huatuo_jax.data.token_store import TokenDataset

    herbs = ["甘草", "黄芪", "当归", "人参", "茯苓", "白术", "川芎", "陈皮", "麦冬", "枸杞"]
    records = [
        Record(
            f"{source}-{i}", source, (f"{herb}第{i}味有什么功效？", f"{herb}性味{'甘苦辛酸咸'[i % 5]}，归经第{i}，" * (1 + i % 4))
        )
        for source in MIXTURE
        for i, herb in enumerate(herbs * 12)
    ]
    with UnifiedWriter(folder / "unified") as writer:
        for record in records:
            writer.write(record)
        writer.finish()
    texts = [turn for record in records for turn in record.turns]
    tokenizer = train_tokenizer(texts, 400, folder / "tiny.model", at_most=True)
    build(BuildRequest((folder / "unified",), folder / "tiny.model", folder / "tokens", holdout=6))
    file = folder / "configs" / "tiny.py"
    file.parent.mkdir()
    file.write_text(CONFIG.format(folder=folder, vocab_size=tokenizer.vocab_size, sequence=SEQUENCE), encoding="utf-8")
    make_plan(TokenDataset.open(folder / "tokens"), load_config(file).data).save(folder / "plan")
    return file


TIMES = ("time", "tokens_per_second", "step_seconds", "input_wait_seconds")
"""Figures of a log line that differ from run to run."""


def logged_lines(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl without their times: what two runs of the same steps have in common."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def row_hash(row: Mapping[str, np.ndarray]) -> str:
    """Of all arrays of one row, bit for bit."""
    return hashlib.sha256(b"".join(row[name].tobytes() for name in sorted(row))).hexdigest()


def rows_held(batch) -> dict[int, str]:
    """Hash of every row of a batch that the devices of this process hold, by its place in the batch."""
    rows: dict[int, dict[str, np.ndarray]] = {}
    for name, array in batch.items():
        for shard in array.addressable_shards:
            for place, row in enumerate(np.asarray(shard.data), start=shard.index[0].start or 0):
                rows.setdefault(place, {})[name] = row
    return {place: row_hash(row) for place, row in rows.items()}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until the process has made `path`."""
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.1)
    raise AssertionError(f"{path} never appeared")


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process, once it has ended."""
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def train_slowly(seconds: float, words: list[str]) -> int:
    """`huatuo train` with a pause before every batch, and a line about it in the file BATCHES_SEEN."""
    from huatuo_jax import cli
    from huatuo_jax.training import hosts, trainer

    hosts.NEW_FILE_SECONDS = 3.0  # the disk is local: what is not there at once never comes
    make_loader = trainer.make_loader

    @contextlib.contextmanager
    def slow_loader(*args, **kwargs):
        def slowed(batches):
            for step, batch in enumerate(batches, start=kwargs.get("start_step", 0)):
                time.sleep(seconds)
                if seen := os.environ.get("BATCHES_SEEN"):
                    with open(seen, "a") as file:
                        file.write(json.dumps([step, rows_held(batch)]) + "\n")
                yield batch

        with make_loader(*args, **kwargs) as batches:
            yield slowed(batches)

    trainer.make_loader = slow_loader
    return cli.main(["train", *words])


if __name__ == "__main__":
    sys.exit(train_slowly(float(sys.argv[1]), sys.argv[2:]))
