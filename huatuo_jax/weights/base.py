"""Importing a Hugging Face folder as a base: its weights, tokenizer and small files, laid out as a run directory.

    BASE/checkpoints/0/                      params and meta (no optimizer), for whatever reads a run's checkpoint
    BASE/tokenizer.model | tokenizer.json    what `load_tokenizer(BASE)` finds
    BASE/hf/                                 config.json, generation_config.json, … of the folder; no program reads them

The first step of a run that starts from a released model (`huatuo convert from-hf`). What must hold: everything that can be
refused is refused before the weights are read, no number changes unless a dtype is asked for, and BASE appears when it is whole.
Next to read: `hf_config.py`, `hf_read.py`, `load.py`; the way back is `hf_write.py`, which exports a base like a run.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, config_to_dict, require
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import Tokenizer, copy_tokenizer, load_tokenizer
from huatuo_jax.errors import ConfigError
from huatuo_jax.io.files import PathLike, check_room, directory_aside, sha256_file
from huatuo_jax.weights.checkpoint import write_checkpoint
from huatuo_jax.weights.hf_config import FolderOptions, read_config
from huatuo_jax.weights.hf_read import open_weights
from huatuo_jax.weights.hf_tokenizer import recorded_format
from huatuo_jax.weights.load import load_params
from huatuo_jax.weights.open import check_vocabulary

KEPT = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja", "LICENSE", "README.md"),
)
"""Small files of a folder that tell what the base was. Its Python files are not among them: no remote code is carried along."""

DEFAULT_FORMAT = "huatuo"


class Imported(NamedTuple):
    """What was imported.

    Attributes:
      size: bytes of the weights. dtypes: in which they are stored.
      remark: why the base has no dialogue format, "" if it has one.
      facts: of its checkpoint, as `checkpoint.read_meta(BASE/checkpoints/0)` returns them, without the fingerprints.
    """

    config: ModelConfig
    size: int
    dtypes: list[str]
    remark: str
    facts: dict[str, Any]


def import_folder(
    folder: Path,
    out: Path,
    mesh: Mesh,
    dtype: DTypeLike | None = None,
    *,
    tokenizer_path: PathLike | None = None,
    format_name: str | None = None,
    name: str = "",
    advance: Callable[[int, int], None] = lambda done, total: None,
    **options: Unpack[FolderOptions],
) -> Imported:
    """Writes a base directory. Everything that can be refused is refused before the weights are read.

    Args:
      folder: of a Hugging Face model. out: the base directory; must not exist.
      mesh: over which the weights are spread until they are written.
      dtype: of the stored weights; None = bfloat16 where the folder has it, else float32, which changes no number.
      tokenizer_path: default: the folder. format_name: the dialogue format; default: what the folder records, else huatuo.
      name: of the model; default: the folder's.
      advance: called as (parts of tensors read, parts in all).

    Raises:
      ConfigError: the folder is not understood, `out` exists, or the tokenizer does not belong to the model or the format.
      DataError: the weights are truncated or do not belong to the config.
      DoesNotFitError: the disk has no room.
    """
    # Every check first: reading the weights of a 7B takes minutes.
    config = read_config(folder, name=name, **options)
    weights = open_weights(folder, config)
    tokenizer = load_tokenizer(tokenizer_path or folder)
    check_vocabulary(tokenizer.path, tokenizer.vocab_size, config, "; give the model's own tokenizer with --tokenizer")
    recorded, remark = _choose_format(tokenizer, tokenizer_path or folder, format_name)
    require(not out.exists(), f"{out} exists; choose another directory, or remove it")
    check_room(out, weights.size(dtype))
    params = load_params(weights, mesh, dtype, advance)
    with directory_aside(out) as aside:
        copied = copy_tokenizer(tokenizer.path, aside)
        (aside / "hf").mkdir()
        for file in KEPT:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, aside / "hf" / file)
        facts = {
            "config": {"model": config_to_dict(config)},
            "tokenizer": {"path": copied, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
            "template": recorded,  # the dialogue format, under the name that it has in every checkpoint
            # A base is no run: it has no plan and nothing to go on with.
            "plan_hash": "",
            "total_steps": 0,
            "origin": {
                "folder": str(folder.resolve()),
                "layout": weights.layout,
                "config_json": sha256_file(folder / "config.json"),
                "dtypes": sorted({tensor.dtype_name for tensor in weights.tensors.values()}),
            },
            "time": time.time(),
        }
        write_checkpoint(aside / "checkpoints" / "0", 0, {"params": params}, facts)
    dtypes = sorted({str(array.dtype) for array in jax.tree.leaves(params)})
    return Imported(config, weights.size(dtype), dtypes, remark, facts)


def _choose_format(tokenizer: Tokenizer, path: PathLike, wanted: str | None) -> tuple[str | None, str]:
    """Name of the dialogue format to ask the base in; (None, why) where the default does not work with its tokenizer.

    Raises:
      ConfigError: the tokenizer cannot carry the format that was asked for.
    """
    name = wanted or recorded_format(path) or DEFAULT_FORMAT
    try:
        get_format(name).check(tokenizer)
    except ConfigError as error:
        # huatuo is only assumed: where it does not fit, the base can still be trained on, in a format that is given then.
        if wanted is not None:
            raise
        return None, str(error)
    return name, ""
