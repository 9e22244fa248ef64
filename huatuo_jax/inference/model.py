"""A model ready to be asked: a stored model of any kind (`huatuo_jax.weights.open`) with its tokenizer and dialogue format.

    model = open_model("runs/quickstart")         # prompts can be checked before minutes are spent on loading
    engine = model.engine(num_rows=8)             # reads the weights

What must hold: a model is asked in the format that it was trained with, through the tokenizer that it was trained with; where a
directory does not say so, the user must. Next to read: `engine.py` answers requests; `chat.py`, `batch.py` and `recall.py` make
requests of conversations, files and training records.
"""

from dataclasses import dataclass
from typing import TypedDict, Unpack

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.data.formats import FORMATS, DialogueFormat, get_format
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.quantize import Quantizer, parse_quantization
from huatuo_jax.io.files import PathLike
from huatuo_jax.models.decoder import Params
from huatuo_jax.weights.hf_config import FolderOptions
from huatuo_jax.weights.open import StoredModel, open_stored_model


class EngineOptions(TypedDict, total=False):
    """How an engine computes; see `Engine`. A quantizer changes the weights while they are read."""

    dtype: DTypeLike
    mesh: Mesh | None
    quantizer: Quantizer | None


@dataclass
class Model:
    """A stored model, the tokenizer that it was trained with, and its dialogue format; the weights are not read yet."""

    stored: StoredModel
    tokenizer: Tokenizer
    dialogue_format: DialogueFormat

    # Properties and not fields: `stored` falls back to an earlier step where the newest proves damaged, and they must follow.
    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.stored.config

    @property
    def step(self) -> int:
        """Of the checkpoint; `params` may change it (`StoredModel.params`)."""
        return self.stored.step

    @property
    def source(self) -> str:
        """Path and step, as printed and as recorded in the settings of an answer file."""
        return f"{self.stored.path}, step {self.step}"

    def quantizer(self, kind: str | None, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None) -> Quantizer | None:
        """Of `--quantize KIND`; None for None. Raises ConfigError for a kind that is unknown or fits neither model nor mesh."""
        if kind is None:
            return None
        quantizer = Quantizer(self.config, parse_quantization(kind), dtype)
        quantizer.check(mesh)
        return quantizer

    def params(self, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32, quantizer: Quantizer | None = None) -> Params:
        """The decoder's parameters, sharded over `mesh` (None = on the first device), in `dtype` or as `quantizer` keeps them."""
        return self.stored.params(mesh, dtype, quantizer)

    def engine(
        self, num_rows: int, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None, quantizer: Quantizer | None = None
    ) -> Engine:
        """An engine of so many rows with these weights, tokenizer and end tokens."""
        config = quantizer.quantized_config if quantizer else self.config
        params, end_ids = self.params(mesh, dtype, quantizer), self.dialogue_format.end_ids(self.tokenizer)
        return Engine(config, params, end_ids, tokenizer=self.tokenizer, num_rows=num_rows, dtype=dtype, mesh=mesh)


def open_model(path: PathLike, format: str = "", **options: Unpack[FolderOptions]) -> Model:
    """Everything of a stored model but its weights.

    Args:
      path: of a run, one of its checkpoints, a base directory or a Hugging Face folder.
      format: name of the dialogue format, where the directory does not record it or another one is wanted.
      options: for a Hugging Face folder.

    Raises:
      ConfigError: no model is there, it does not record its dialogue format, or the tokenizer cannot carry it.
      DataError: there is no whole checkpoint, or the tokenizer is gone or not the one that the model was trained with.
    """
    # All that can be refused is refused here, before the minutes of loading.
    stored = open_stored_model(path, **options)
    tokenizer, name = stored.tokenizer(), format or stored.dialogue_format()
    # Never guessed: a model that is asked in another format answers, only worse.
    require(bool(name), f"{path} does not say its dialogue format; give it with --format: {', '.join(FORMATS)}")
    dialogue_format = get_format(name)
    dialogue_format.check(tokenizer)
    return Model(stored, tokenizer, dialogue_format)
