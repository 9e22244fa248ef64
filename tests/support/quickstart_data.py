"""The quickstart's data, made in a folder of the test's own by the same commands as `examples/quickstart/run.sh`."""

import dataclasses
from pathlib import Path

from data_tools.cli import main as huatuo_data
from huatuo_jax.config import RunConfig
from huatuo_jax.config_files import load_config

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples" / "quickstart"
CONFIG = REPOSITORY / "configs" / "quickstart.py"


def make_quickstart_data(folder: Path) -> RunConfig:
    """Runs unify, import, tokenizer train, build and plan in `folder`; returns the quickstart's config on that data."""
    pairs, sft, tokenizer = folder / "pairs.jsonl", EXAMPLES / "sft.jsonl", folder / "tokenizer.model"
    passages = sorted((EXAMPLES / "corpus").glob("*.jsonl"))
    for command in (
        ["unify", "--template", *passages, "--out", pairs],
        ["import", pairs, sft, "--out", folder / "unified"],
        ["tokenizer", "train", pairs, sft, "--vocab-size", 4000, "--out", tokenizer],
        ["build", folder / "unified", "--tokenizer", tokenizer, "--out", folder / "tokens", "--holdout", 1],
        ["plan", folder / "tokens", "--config", CONFIG, "--out", folder / "plan"],
    ):
        assert huatuo_data([*map(str, command), "--quiet"]) == 0
    config = load_config(CONFIG)
    data = dataclasses.replace(config.data, tokens=str(folder / "tokens"), plan=str(folder / "plan"))
    return dataclasses.replace(config, data=data)
