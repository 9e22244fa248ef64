"""Comparing two models: how far their predictions for the same token ids differ, the gate that every conversion must pass.

A side is a stored model of any kind (`huatuo_jax.weights.open`) computed by our code, or a Hugging Face folder computed by
transformers. Our logits come from the plain forward pass of training, without cache or engine, row by row; `huatuo logits` writes
them for other programs to check.

What must hold: both sides get the same ids, one model is in memory at a time, and no NaN passes as agreement. The gate is the
mean Kullback–Leibler divergence of the next-token distributions, in nats: 1e-6 in fp32, where only the order of sums may differ;
0.015 in bf16 (the bound that MaxText uses for conversions).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.models.attention import resolve_attention
from huatuo_jax.models.decoder import Decoder, Params, split_decoder
from huatuo_jax.weights.hf_config import FolderOptions, read_config_file
from huatuo_jax.weights.open import StoredModel, kind_of, open_stored_model, refuse_options

TRANSFORMERS = "transformers:"

KL_GATE = {"float32": 1e-6, "bfloat16": 0.015}
"""The largest mean divergence that passes, by the dtype of the computation."""

BUILT_IN_TEXTS = (
    "<问>：感冒了可以喝酒吗？\n<答>：不可以。酒精会加重鼻塞和咽喉充血，还会与退热药一起损伤肝脏。感冒期间应多饮水、休息，发热超过三天要就医。",
    "糖尿病足的预防：每天检查双脚，保持清洁干燥，穿合脚的鞋，不赤足行走；血糖控制目标为空腹4.4–7.0 mmol/L。",
    "Metformin is the first-line drug for type 2 diabetes unless the estimated glomerular filtration rate is below 30 mL/min.",
    "def dose(weight_kg: float) -> float:\n    return min(15 * weight_kg, 1000)  # paracetamol, mg per dose\n",
)
"""Chinese, English, numbers and code, written for this project."""

ROW_BUCKET = 64
"""Rows are padded to a multiple of it, so that few lengths are compiled."""

Logits = Callable[[Sequence[Sequence[int]]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Comparison:
    """Of all positions of all rows: A is the reference.

    Attributes:
      tokens: positions compared.
      max_error: largest |a − b| of a logit; relative_error: the same over the largest |a|.
      mean_kl, max_kl: KL(A ‖ B) of the next-token distributions, nats.
      top1_agreement: share of positions with the same likeliest token.
      gate: the largest mean_kl that passes.
    """

    tokens: int
    max_error: float
    relative_error: float
    mean_kl: float
    max_kl: float
    top1_agreement: float
    gate: float

    @property
    def passed(self) -> bool:
        """Whether the mean divergence is within the gate; NaN never is."""
        return self.mean_kl <= self.gate


def compare(
    a: str,
    b: str,
    texts: Sequence[str],
    dtype: str = "float32",
    trust_remote_code: bool = False,
    **options: Unpack[FolderOptions],
) -> Comparison:
    """Runs both sides on the texts, one after the other, so that one model is in memory at a time.

    Args:
      a, b: a path, or "transformers:DIR".
      texts: encoded by the tokenizer of `a`, or of `b` where `a` has none.
      dtype: of the computation on both sides.
      trust_remote_code: lets transformers run the modelling file of a native Baichuan folder.
      options: for the Hugging Face folders among the two; positions and head for a Baichuan's.

    Raises:
      ConfigError: a side is no model, the vocabularies differ, a text is longer than the context.
      DataError: a logit is NaN or infinite.
    """
    one, other = (_open(side, options) for side in (a, b))
    if "hf" not in (one.kind, other.kind):
        refuse_options(f"{a} like {b}", options)
    require(
        one.config.vocab_size == other.config.vocab_size,
        f"{a} has a vocabulary of {one.config.vocab_size} and {b} of {other.config.vocab_size}: they are not the same model",
    )
    tokenizer = _tokenizer(one, other)
    rows = [row for row in ([int(i) for i in tokenizer.encode(text)] for text in texts) if row]
    # Both, before either is computed: they may differ in their context.
    for model in (one, other):
        check_rows(model.config, rows)
    # A list: the first side's logits are kept and its parameters go before the second side's come.
    reference = list(_logits(a, one, dtype, trust_remote_code)(rows))
    return measure(reference, _logits(b, other, dtype, trust_remote_code)(rows), KL_GATE[dtype])


def read_texts(path: str | None) -> list[str]:
    """The lines of a UTF-8 file that are not blank, or the built-in texts for None; raises DataError for a file without text."""
    if not path:
        return list(BUILT_IN_TEXTS)
    try:
        texts = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert it") from error
    if not texts:
        raise DataError(f"{path} holds no text; give at least one line")
    return texts


def measure(reference: Sequence[np.ndarray], other: Iterator[np.ndarray], gate: float) -> Comparison:
    """Compares logits [tokens, vocabulary] row by row; arithmetic is fp64."""
    errors, scales, divergences, agreements = [], [], [], []
    for a, b in zip(reference, other, strict=True):
        errors.append(float(np.abs(a - b).max()))
        scales.append(float(np.abs(a).max()))
        log_p, log_q = _log_softmax(a), _log_softmax(b)
        # From logarithms throughout: a small probability divided by one that rounds to 0 would be infinite.
        divergences.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
        agreements.append(a.argmax(axis=-1) == b.argmax(axis=-1))
    kl, same = np.concatenate(divergences), np.concatenate(agreements)
    return Comparison(
        tokens=len(kl),
        max_error=float(np.max(errors)),  # unlike max(), NaN stays NaN
        relative_error=float(np.max(errors)) / max(float(np.max(scales)), 1e-38),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        top1_agreement=float(same.mean()),
        gate=gate,
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    # In fp64: the gate of 1e-6 nats is near the rounding of an fp32 sum over 125,696 tokens.
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def _open(side: str, options: FolderOptions) -> StoredModel:
    """One side with the options that are meant for it: one may be the llama export of the other, which has no NormHead."""
    path = Path(side.removeprefix(TRANSFORMERS))
    require(path.is_dir(), f"{side}: there is no directory {path}")
    if kind_of(path) != "hf":
        require(not side.startswith(TRANSFORMERS), f"{side}: transformers cannot read a checkpoint of ours; export it first")
        return open_stored_model(path)
    if read_config_file(path)["model_type"] != "baichuan":
        options = {"ignore": options.get("ignore", ())}
    return open_stored_model(path, **options)


def _tokenizer(*models: StoredModel) -> Tokenizer:
    reasons = []
    for model in models:
        try:
            return model.tokenizer()
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("neither side has a tokenizer to encode the text with: " + "; ".join(reasons))


def _logits(side: str, model: StoredModel, dtype: str, trust_remote_code: bool) -> Logits:
    if side.startswith(TRANSFORMERS):
        return _through_transformers(Path(model.path), dtype, trust_remote_code)
    params = model.params(dtype=jnp.dtype(dtype))
    return lambda rows: row_logits(model.config, params, rows, jnp.dtype(dtype))


def _through_transformers(folder: Path, dtype: str, trust_remote_code: bool) -> Logits:
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ConfigError(
            f"transformers:{folder} needs torch and transformers (pip install 'huatuo-jax[torch]'): {error}"
        ) from error
    # Refused here, because transformers' own refusal names an argument of Python and not our flag.
    remote = "auto_map" in read_config_file(folder)
    require(
        trust_remote_code or not remote,
        f"{folder} brings its own modelling file; allow transformers to run it with --trust-remote-code",
    )
    model: Any = (
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code).to(getattr(torch, dtype)).eval()
    )

    def logits(rows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        for index, row in enumerate(rows):
            with torch.no_grad():
                row_of_logits = model(input_ids=torch.tensor([list(row)])).logits[0].float().numpy()
            check_finite(row_of_logits, index, f"transformers:{folder}")
            yield row_of_logits

    return logits


def check_rows(config: ModelConfig, rows: Sequence[Sequence[int]]) -> None:
    """Raises ConfigError unless every row is a list of at least one id of the vocabulary and fits the context."""
    require(len(rows) > 0, "there are no rows of tokens; give at least one")
    for index, row in enumerate(rows):
        whole = isinstance(row, list | tuple) and all(isinstance(i, int) and not isinstance(i, bool) for i in row)
        require(whole and len(row) > 0, f"row {index} is not a list of token ids with at least one of them")
        require(
            min(row) >= 0 and max(row) < config.vocab_size,
            f"row {index} has a token id outside 0…{config.vocab_size - 1}, the vocabulary of {config.name}",
        )
        require(
            len(row) <= config.max_length,
            f"row {index} has {len(row)} tokens, above the context of {config.name}, {config.max_length}; cut it",
        )


def row_logits(
    config: ModelConfig, params: Params, rows: Sequence[Sequence[int]], dtype: DTypeLike = jnp.float32
) -> Iterator[np.ndarray]:
    """fp32 logits [tokens, vocabulary] of each row alone.

    Args:
      rows: token ids; checked as `check_rows` does.
      dtype: of activations and matrix products.

    Raises:
      DataError: as `check_finite`.
    """
    check_rows(config, rows)
    attention = resolve_attention("auto", config, jax.default_backend())
    forward = _compiled(split_decoder(config), jnp.dtype(dtype), attention)
    for index, row in enumerate(rows):
        length = -(-len(row) // ROW_BUCKET) * ROW_BUCKET
        # The padding behind a row is a segment of its own, 0, so that no token of the row sees it.
        tokens, segments = np.zeros((2, 1, length), np.int32)
        tokens[0, : len(row)], segments[0, : len(row)] = row, 1
        logits = np.asarray(forward(params, tokens, segments))[0, : len(row)]
        check_finite(logits, index, config.name)
        yield logits


def check_finite(logits: np.ndarray, row: int, model: str) -> None:
    """Raises DataError, which names the first such position, if a logit [tokens, vocabulary] is NaN or infinite."""
    finite = np.isfinite(logits).all(axis=-1)
    if finite.all():
        return
    position = int(finite.argmin())
    bad = int((~np.isfinite(logits[position])).sum())
    raise DataError(
        f"row {row}, position {position}: {bad} of the {logits.shape[-1]} logits of {model} are NaN or infinite; its weights are "
        "broken or too large: take an earlier checkpoint, or fetch the folder again"
    )


def _compiled(graphdef: nnx.GraphDef[Decoder], dtype: DTypeLike, attention: str) -> Callable[..., jax.Array]:
    def forward(params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        decoder = nnx.merge(graphdef, params)
        positions = jnp.arange(tokens.shape[1])[None]
        return decoder.logits(decoder(tokens, positions, segments, dtype=dtype, attention=attention))

    return jax.jit(forward)
