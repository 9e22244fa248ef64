"""A Hugging Face folder in, a base directory out: its weights, tokenizer and small files, laid out as a run directory.

    OUT/checkpoints/0/                      params and meta (no optimizer), read by everything that reads a run's checkpoint
    OUT/tokenizer.model | tokenizer.json    what `load_tokenizer(OUT)` finds
    OUT/hf/                                 config.json, generation_config.json, … of the folder: for people, nothing reads them

OUT appears when it is whole.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.config_files import config_to_dict
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import Tokenizer, copy_tokenizer, load_tokenizer
from huatuo_jax.errors import ConfigError, DoesNotFitError
from huatuo_jax.io.files import PathLike, directory_aside, sha256_file
from huatuo_jax.weights.checkpoint import write_checkpoint
from huatuo_jax.weights.hf_read import HFWeights
from huatuo_jax.weights.hf_tokenizer import recorded_format
from huatuo_jax.weights.open import check_vocabulary

KEPT = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja", "LICENSE", "README.md"),
)
"""Small files of a folder that tell what the base was. Its Python files are not among them: no remote code is carried along."""

DEFAULT_TEMPLATE = "huatuo"


@dataclass(frozen=True)
class BaseTokenizer:
    """The tokenizer that belongs to a base model.

    Attributes:
      template: name of the dialogue format to ask the base in; None where the default does not work with this tokenizer.
      remark: why it does not, "" otherwise.
    """

    tokenizer: Tokenizer
    template: str | None
    remark: str = ""


def choose_tokenizer(path: PathLike, config: ModelConfig, template: str | None) -> BaseTokenizer:
    """Loads the tokenizer of a folder (or a file) and checks it against the model and the dialogue format.

    Args:
      template: name of the format; None = the one that the folder records, else `DEFAULT_TEMPLATE`.

    Raises:
      ConfigError: there is none; it has more tokens than the model; it cannot carry the `template` that was asked for.
    """
    tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, config, "; give the model's own tokenizer with --tokenizer")
    chosen = template or recorded_format(path) or DEFAULT_TEMPLATE
    try:
        get_format(chosen).check(tokenizer)
    except ConfigError as error:
        if template is not None:
            raise
        return BaseTokenizer(tokenizer, None, str(error))
    return BaseTokenizer(tokenizer, chosen)


def check_target(out: PathLike, size: int) -> None:
    """Raises ConfigError if something is at `out`, DoesNotFitError if `size` bytes will not fit on its disk."""
    target = Path(out).absolute()
    require(not target.exists(), f"{out} exists; choose another directory, or remove it")
    there = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise DoesNotFitError(f"{out} needs {size / 1e9:.1f} GB and {there} has {free / 1e9:.1f} GB free; make room")


def write_base(out: PathLike, weights: HFWeights, params: Any, base: BaseTokenizer) -> dict[str, Any]:
    """Writes the base directory; call `check_target` before the weights are loaded.

    Returns:
      The facts of its checkpoint, as `checkpoint.read_meta(OUT/checkpoints/0)` gives them, without the fingerprints.
    """
    source, tokenizer = weights.files.folder, base.tokenizer
    with directory_aside(Path(out)) as aside:
        name = copy_tokenizer(tokenizer.path, aside)
        kept = [source / name for name in KEPT if (source / name).is_file()]
        (aside / "hf").mkdir()
        for file in kept:
            shutil.copyfile(file, aside / "hf" / file.name)
        facts = {
            "config": {"model": config_to_dict(weights.config)},
            "tokenizer": {"path": name, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
            "template": base.template,
            # A base is no run: it has no plan and nothing to go on with.
            "plan_hash": "",
            "total_steps": 0,
            "origin": {
                "folder": str(source.resolve()),
                "layout": weights.layout,
                "config_json": sha256_file(source / "config.json"),
                "dtypes": sorted({info.dtype_name for info in weights.files.tensors.values()}),
            },
            "time": time.time(),
        }
        write_checkpoint(aside / "checkpoints" / "0", 0, {"params": params}, facts)
    return facts
