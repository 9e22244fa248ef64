"""A directory in, a model ready to be asked out: a run, a base directory, one checkpoint, or a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import jax.numpy as jnp
from jax.sharding import Mesh

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.config_files import config_from_dict
from huatuo_jax.data.formats import FORMATS, DialogueFormat, get_format
from huatuo_jax.data.tokenizers import Tokenizer, load_tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.quantize import Quantizer, parse_quantization
from huatuo_jax.weights.base import check_vocabulary
from huatuo_jax.weights.checkpoint import is_checkpoint, locate_checkpoint, read_meta, restore_params
from huatuo_jax.weights.hf_config import Answers, is_hf_folder, read_config, refuse_answers
from huatuo_jax.weights.hf_read import load_params, open_weights
from huatuo_jax.weights.hf_tokenizer import recorded_template


@dataclass
class Model:
    """A model directory whose weights are not read yet: prompts can be checked before minutes are spent on loading.

    Attributes:
      path: a run or base directory, the folder of one step, or a Hugging Face folder.
      config: the architecture.
      tokenizer: that the model was trained with.
      template: its dialogue format.
      step: of the checkpoint; 0 for a Hugging Face folder. Reading the weights sets it to the step before where the newest
        checkpoint of a run turns out to be damaged (`restore_params`).
    """

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    template: DialogueFormat
    step: int

    @property
    def source(self) -> str:
        """Path and step: for people, and for the settings of an output."""
        return f"{self.path}, step {self.step}"

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's end token, and what the format puts behind an answer."""
        pieces = self.template.render(("", ""), "")
        after = [self.template.token_id(name, self.tokenizer) for piece in pieces if piece.learned for name in piece.after[:1]]
        return tuple(dict.fromkeys([self.tokenizer.eos_id, *after]))

    def quantizer(self, kind: str | None, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Quantizer | None:
        """Of `--quantize KIND`; None for None. Raises ConfigError for a kind that is unknown or fits neither model nor mesh."""
        if kind is None:
            return None
        quantizer = Quantizer(self.config, parse_quantization(kind), dtype)
        quantizer.check(mesh)
        return quantizer

    def params(self, mesh: Mesh | None = None, dtype: Any = jnp.float32, quantizer: Quantizer | None = None) -> Any:
        """The decoder's parameters, sharded over `mesh` (None = on the first device), in `dtype` or as `quantizer` keeps them."""
        if not is_hf_folder(self.path):
            _, params, meta = restore_params(self.path, mesh, dtype, quantizer)
            self.step = meta["step"]
            return params
        return load_params(open_weights(self.path, self.config), mesh, dtype, convert=quantizer)

    def engine(
        self, num_rows: int, dtype: Any = jnp.float32, mesh: Mesh | None = None, quantizer: Quantizer | None = None
    ) -> Engine:
        """An engine with these weights, tokenizer and end tokens."""
        config = quantizer.quantized_config if quantizer else self.config
        params = self.params(mesh, dtype, quantizer)
        return Engine(config, params, self.end_ids, tokenizer=self.tokenizer, num_rows=num_rows, dtype=dtype, mesh=mesh)


def open_model(path: Path, template: str = "", **answers: Unpack[Answers]) -> Model:
    """Everything of a model directory but its weights.

    Args:
      template: name of the dialogue format, where the directory does not say it or another one is wanted.
      answers: of `read_config`, for a Hugging Face folder.

    Raises:
      ConfigError: no model is there, it does not say its dialogue format, or the tokenizer cannot carry it.
      DataError: there is no whole checkpoint, or the tokenizer is gone or not the one that the model was trained with.
    """
    require(path.is_dir(), f"no directory {path}; give a run, a base directory or a Hugging Face folder")
    if is_hf_folder(path):
        config, tokenizer, step = read_config(path, **answers), load_tokenizer(path), 0
        template = template or recorded_template(path)
        require(bool(template), f"{path} does not say its dialogue format; give it with --format: {', '.join(FORMATS)}")
    else:
        folder, meta = _folder_and_meta(path)
        refuse_answers(path, answers)
        config = config_from_dict(ModelConfig, meta["config"]["model"])
        tokenizer, step = _trained_tokenizer(folder, meta), meta["step"]
        template = template or meta.get("template") or ""
        require(
            bool(template),
            f"{path} names no dialogue format that works with its tokenizer; give one with --format: {', '.join(FORMATS)}",
        )
    found = get_format(template)
    found.check(tokenizer)
    check_vocabulary(tokenizer, config)
    return Model(path, config, tokenizer, found, step)


def load_model(
    path: Path, mesh: Mesh | None = None, dtype: Any = jnp.float32, template: str = ""
) -> tuple[ModelConfig, Any, Tokenizer, DialogueFormat]:
    """`open_model` and its weights at once: config, parameters, tokenizer, dialogue format."""
    model = open_model(path, template)
    return model.config, model.params(mesh, dtype), model.tokenizer, model.template


def _folder_and_meta(path: Path) -> tuple[Path, dict[str, Any]]:
    """The run directory of `path`, which may be one of its checkpoints, and the checkpoint's facts."""
    require(
        is_checkpoint(path),
        f"{path} is neither a run or base directory (it has no checkpoints) nor a Hugging Face folder (no config.json with a "
        "model_type)",
    )
    run, folder = locate_checkpoint(path)
    return Path(run), read_meta(folder)


def _trained_tokenizer(folder: Path, meta: dict[str, Any]) -> Tokenizer:
    trained_with = meta["tokenizer"]
    tokenizer = load_tokenizer(folder / trained_with["path"])
    if tokenizer.fingerprint != trained_with["fingerprint"]:
        raise DataError(
            f"{tokenizer.path} is not the tokenizer that {folder} was trained with (its SHA-256 differs); put the old file back"
        )
    return tokenizer
