"""Opening a model: the one way from a path to a model whose weights are still on disk.

    model = open_stored_model("runs/quickstart")          # facts are read and checked; the weights are not
    model.kind, model.config, model.step, model.tokenizer(), model.dialogue_format()
    params = model.params(mesh, jnp.bfloat16)             # the decoder's tree, on devices
    for name, array in model.arrays(): ...                # or one parameter at a time, in host memory

A path may be, in the order in which it is tried:

    hf      a Hugging Face folder: its config.json has a `model_type`
    run     a directory of `huatuo train`: checkpoints/ and the run's config.json; its newest checkpoint is opened
    base    a directory of `huatuo convert from-hf`: checkpoints/ alone
    step    one checkpoint of a run or base: RUN/checkpoints/STEP

Training (`init`), inference, comparison and export all start here, so none of them asks again what a path is. What must hold:
what is returned belongs together (weights, tokenizer, format), by fingerprints where ours recorded them. Reading goes on in
`checkpoint.py` (ours) and `hf_config.py`, `hf_read.py` (Hugging Face).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Unpack

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, config_from_dict, require
from huatuo_jax.data.tokenizers import Tokenizer, load_tokenizer
from huatuo_jax.errors import DataError
from huatuo_jax.io.files import PathLike, sha256_file
from huatuo_jax.weights.checkpoint import absolute, complete_steps, latest_checkpoint, read_arrays, read_meta
from huatuo_jax.weights.hf_config import FolderOptions, is_hf_folder, read_config
from huatuo_jax.weights.hf_names import parameter_shapes
from huatuo_jax.weights.hf_tokenizer import recorded_format

if TYPE_CHECKING:
    from huatuo_jax.models.decoder import Convert, Params

Kind = Literal["hf", "run", "base", "step"]

PADDED_SHARE = 0.9
"""Vocabularies are padded (Qwen2.5: 151,936 rows for 151,665 tokens), but not by more than a tenth."""


@dataclass
class StoredModel:
    """A model on disk.

    Attributes:
      path: as it was given. kind: what it is.
      root: the directory that holds the tokenizer: of the run or base, or the Hugging Face folder.
      config: the architecture.
      checkpoint: the folder of the step; None for a Hugging Face folder.
      meta: the facts of that checkpoint (`checkpoint.read_meta`); {} for a Hugging Face folder.
    """

    path: PathLike
    kind: Kind
    root: epath.Path
    # What a run computed in, its schedule and its data are in `meta`: a model is opened by its architecture alone.
    config: ModelConfig
    checkpoint: epath.Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Of the checkpoint; 0 for a Hugging Face folder and a base."""
        return self.meta.get("step", 0)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
          ConfigError: there is none, or it has more tokens than the model.
          DataError: it is not the one that the checkpoint was trained with.
        """
        if self.kind == "hf":
            tokenizer = load_tokenizer(self.root)
        else:
            recorded = self.meta["tokenizer"]
            tokenizer = load_tokenizer(self.root / recorded["path"])
            if tokenizer.fingerprint != recorded["fingerprint"]:
                raise DataError(
                    f"{tokenizer.path} is not the tokenizer that {self.root} was trained with (its SHA-256 differs); restore the "
                    "original file"
                )
        check_vocabulary(tokenizer.path, tokenizer.vocab_size, self.config)
        return tokenizer

    def tokenizer_fingerprints(self) -> list[str]:
        """SHA-256 of the tokenizer file; of all of them where a Hugging Face folder has several. Raises ConfigError for none."""
        if self.kind != "hf":
            return [self.meta["tokenizer"]["fingerprint"]]
        files = [self.root / "tokenizer.json", *sorted(self.root.glob("*.model"))]
        fingerprints = [sha256_file(file) for file in files if file.is_file()]
        require(
            bool(fingerprints),
            f"{self.path} holds no tokenizer, so nothing says that the token dataset was made with the model's own; put "
            "tokenizer.model or tokenizer.json there, or import it with `huatuo convert from-hf --tokenizer`",
        )
        return fingerprints

    def dialogue_format(self) -> str:
        """Name of the dialogue format that the directory records, "" if it records none.

        Raises:
          ConfigError: a Hugging Face folder records a format that is not ours. DataError: its tokenizer_config.json is broken.
        """
        return recorded_format(self.root) if self.kind == "hf" else self.meta.get("template") or ""

    def params(
        self, placement: Mesh | Sharding | None = None, dtype: DTypeLike | None = jnp.float32, convert: "Convert | None" = None
    ) -> "Params":
        """The verified parameters on devices: nested dictionaries, the tree of `huatuo_jax.models.decoder`.

        If the newest checkpoint of a run or base is torn or altered, a warning on stderr says so, the one before it is read, and
        `checkpoint`, `meta` and `step` change to it.

        Args:
          placement: a mesh (sharded by the rules of `huatuo_jax.sharding`), one sharding for all arrays, or None = the first
            device.
          dtype: of the parameters; None = as stored, which changes no number.
          convert: what is kept of each parameter (`huatuo_jax.inference.quantize`). They are then read one by one, so that a
            model fits which would not fit whole.

        Raises:
          DataError: no whole checkpoint, or files that are truncated or do not belong to the config.
        """
        # Imported here because it brings the decoder and flax along, which opening and exporting a model do without.
        from huatuo_jax.weights.load import load_params, restore_params

        if self.kind == "hf":
            from huatuo_jax.weights.hf_read import open_weights

            return load_params(open_weights(self.root, self.config), placement, dtype, convert=convert)
        assert self.checkpoint is not None
        # A step that was named is meant and no other; of a run or base, the newest that is whole.
        directory, folders = self.checkpoint.parent, [self.checkpoint]
        if self.kind != "step":
            folders = [directory / str(step) for step in reversed(complete_steps(directory)) if step <= self.step]
        for folder, before in zip(folders, [*folders[1:], None], strict=True):
            try:
                meta = self.meta if folder == self.checkpoint else read_meta(folder)
                params = restore_params(folder, self.config, meta, placement, dtype, convert)
            except DataError as error:
                if before is None:
                    raise
                print(f"warning: {error}; reading the one before it, of step {before.name}", file=sys.stderr)
            else:
                self.checkpoint, self.meta = folder, meta
                return params
        raise AssertionError("unreachable: the oldest checkpoint is returned or raises")

    def arrays(self) -> Iterator[tuple[str, jax.Array]]:
        """Each parameter of a checkpoint by its dotted name, as stored, verified, in host memory.

        One exists at a time: the caller lets go of it before it asks for the next.

        Raises:
          DataError: the checkpoint is torn or altered, or holds other arrays than its model has.
        """
        assert self.checkpoint is not None, "only checkpoints are read array by array"
        return read_arrays(self.checkpoint, parameter_shapes(self.config), self.meta)

    def stored_dtypes(self) -> set[str]:
        """Names of the dtypes in which a checkpoint stores the parameters."""
        return {text.split("[")[0] for text in self.meta["fingerprints"]["params"].values()}


def open_stored_model(
    path: PathLike, *, name: str = "", like: ModelConfig | None = None, **options: Unpack[FolderOptions]
) -> StoredModel:
    """Opens a run, a base, a step or a Hugging Face folder; reads its facts and none of its weights.

    Args:
      path: see the module's docstring.
      name: of the model; only for a Hugging Face folder, whose own name is the default.
      like: the model that the weights are meant for: it decides what the config.json of a Hugging Face folder leaves open.
      options: what the user says of a Hugging Face folder; see `FolderOptions`.

    Raises:
      ConfigError: nothing of these kinds is there, `options` are given for a checkpoint, or a config.json is not understood.
      DataError: there is no complete checkpoint, or its facts cannot be read.
    """
    kind, folder = kind_of(path), absolute(path)
    if kind == "hf":
        return StoredModel(path, kind, folder, read_config(path, name=name, like=like, **options))
    refuse_options(path, options)
    # A step lies in RUN/checkpoints, and the tokenizer of its model in RUN.
    if kind == "step":
        root, checkpoint, meta = folder.parent.parent, folder, read_meta(folder)
    else:
        root, (checkpoint, meta) = folder, _newest_readable(latest_checkpoint(folder))
    return StoredModel(path, kind, root, config_from_dict(ModelConfig, meta["config"]["model"]), checkpoint, meta)


def _newest_readable(newest: epath.Path) -> tuple[epath.Path, dict[str, Any]]:
    """The newest checkpoint whose facts can be read, and these; a damaged one is warned of on stderr.

    Raises:
      DataError: that of the oldest, if none can be read.
    """
    steps = complete_steps(newest.parent)
    for step in reversed(steps):
        folder = newest.parent / str(step)
        try:
            return folder, read_meta(folder)
        except DataError as error:
            if step == steps[0]:
                raise
            print(f"warning: {error}; looking at the one before it", file=sys.stderr)
    raise AssertionError("unreachable: latest_checkpoint has found one")


def refuse_options(path: PathLike, options: FolderOptions) -> None:
    """Raises ConfigError if options of a Hugging Face folder are given for `path`, a checkpoint."""
    flags = ", ".join(f"--{option}" for option, value in options.items() if value)
    require(not flags, f"{path} is a checkpoint, which records everything about its model; leave out {flags}")


def kind_of(path: PathLike) -> Kind:
    """What a path is; see the module's docstring. Raises ConfigError if it is none of these."""
    folder = absolute(path)
    if is_hf_folder(path):
        return "hf"
    if (folder / "checkpoints").exists():
        return "run" if (folder / "config.json").exists() else "base"
    # Last, because only its place says what it is: a folder of Orbax's within checkpoints/.
    require(folder.is_dir(), f"no directory {path}; give a run, a checkpoint of one, a base directory or a Hugging Face folder")
    require(
        folder.parent.name == "checkpoints",
        f"{path} is neither a run or base directory (it has no checkpoints/), nor one of its checkpoints (RUN/checkpoints/STEP), "
        "nor a Hugging Face folder (it has no config.json with a model_type)",
    )
    return "step"


def check_vocabulary(path: str, size: int, config: ModelConfig, remedy: str = "", warn: bool = True) -> None:
    """Raises ConfigError if a tokenizer of `size` tokens is larger than the model's vocabulary.

    Args:
      path: of the tokenizer. remedy: what to do about it.
      warn: also prints a warning to stderr if it is smaller than padding explains.
    """
    # Too many tokens is certain harm, ids without an embedding; too few is not, for vocabularies are padded.
    numbers = f"the tokenizer {path} has {size} tokens and the model's vocabulary {config.vocab_size}"
    require(size <= config.vocab_size, f"{numbers}: they do not belong together{remedy}")
    if warn and size < PADDED_SHARE * config.vocab_size:
        print(f"warning: {numbers}, more than padding explains: they may not belong together{remedy}", file=sys.stderr)
