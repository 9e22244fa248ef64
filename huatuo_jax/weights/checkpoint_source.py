"""A run directory, step folder or converted base in; its facts, its tokenizer, and its parameters one array at a time out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import SingleDeviceSharding

from huatuo_jax.config import ModelConfig
from huatuo_jax.config_files import config_from_dict
from huatuo_jax.data.tokenizers import Tokenizer, load_tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike
from huatuo_jax.models.params import abstract_params
from huatuo_jax.weights.checkpoint import locate_checkpoint, read_array, read_meta
from huatuo_jax.weights.fingerprint import describe, named_leaves


@dataclass(frozen=True)
class CheckpointSource:
    """One checkpoint, unread but for its facts.

    Attributes:
      run: the directory with `checkpoints/`, config and tokenizer. folder: the step's.
      meta: the facts. model: the architecture.
    """

    run: epath.Path
    folder: epath.Path
    meta: dict[str, Any]
    model: ModelConfig

    @classmethod
    def open(cls, path: PathLike) -> "CheckpointSource":
        """Reads the facts of a run's newest checkpoint, or of the given step's.

        Raises:
          DataError: there is no whole checkpoint.
        """
        run, folder = locate_checkpoint(path)
        meta = read_meta(folder)
        return cls(run, folder, meta, config_from_dict(ModelConfig, meta["config"]["model"]))

    def dtypes(self) -> set[str]:
        """Names of the dtypes that the parameters are stored in."""
        return {text.split("[")[0] for text in self.meta["fingerprints"]["params"].values()}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with; DataError if it is gone or altered."""
        named = self.meta["tokenizer"]
        tokenizer = load_tokenizer(self.run / named["path"])
        if tokenizer.fingerprint != named["fingerprint"]:
            raise DataError(f"{tokenizer.path} is not the tokenizer of {self.run} (its SHA-256 differs); put the old file back")
        return tokenizer

    def arrays(self) -> Iterator[tuple[str, jax.Array]]:
        """Each parameter by its dotted name, as stored, verified, in host memory; the one before must be let go first.

        Raises:
          DataError: the checkpoint is torn or altered, or holds other arrays than its model has.
        """
        wanted = {name: leaf.shape for name, leaf in named_leaves(abstract_params(self.model)).items()}
        saved = self.meta["fingerprints"]["params"]
        if wanted.keys() != saved.keys():
            raise DataError(f"{self.folder} holds other parameters than its model: {sorted(wanted.keys() ^ saved.keys())[:5]}")
        sharding = SingleDeviceSharding(_host())
        for name, shape in wanted.items():
            dtype = jnp.dtype(saved[name].split("[")[0])
            yield name, self._restore(name, jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))

    def _restore(self, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        saved = self.meta["fingerprints"]["params"][name]
        if saved.split(":")[0] != describe(leaf):
            raise DataError(f"{self.folder} holds {name} as {saved.split(':')[0]}; its model has {describe(leaf)}")
        return read_array(self.folder, "params", name, leaf, self.meta)


def _host() -> jax.Device:
    """A CPU device; where JAX_PLATFORMS rules them out, the first device there is."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]
