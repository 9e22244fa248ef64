"""One random model as a run directory, with a tokenizer that holds the dialogue format, for the tests of the commands."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `huatuo train` leaves behind, as far as answering needs it; the context holds 512 tokens."""
    from data_tools.tokens.tokenizer_training import train_tokenizer
    from huatuo_jax.config import config_to_dict
    from huatuo_jax.weights.checkpoint import write_checkpoint
    from tests.support.random_models import random_model

    folder = tmp_path_factory.mktemp("model")
    texts = [f"{herb}性味甘，归经第{i}，有什么功效？" for i, herb in enumerate(["甘草", "黄芪", "当归", "人参"] * 20)]
    tokenizer = train_tokenizer(texts, 400, folder / "tokenizer.model", at_most=True)
    config, params = random_model("tiny-baichuan2-7b", vocab_size=tokenizer.vocab_size)
    facts = {
        "config": {"model": config_to_dict(config)},
        "tokenizer": {"path": "tokenizer.model", "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "template": "huatuo",
    }
    write_checkpoint(folder / "checkpoints" / "3", 3, {"params": params}, facts)
    return folder
