"""Two models and the same token ids in, how far their predictions differ out: the gate that every conversion must pass.

A side is a directory of ours or a Hugging Face folder through our code, or a Hugging Face folder through transformers. The gate
is the mean Kullback–Leibler divergence of the next-token distributions, in nats: 1e-6 in fp32, where only the order of sums may
differ; 0.015 in bf16 (the bound that MaxText uses for conversions).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.config_files import config_from_dict
from huatuo_jax.data.tokenizers import Tokenizer, load_tokenizer
from huatuo_jax.errors import ConfigError
from huatuo_jax.weights.checkpoint import is_checkpoint, locate_checkpoint, read_meta
from huatuo_jax.weights.forward import check_finite, check_rows, load_any, row_logits
from huatuo_jax.weights.hf_config import Answers, read_config, read_config_file, refuse_answers

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
    **answers: Unpack[Answers],
) -> Comparison:
    """Runs both sides on the texts, one after the other, so that one model is in memory at a time.

    Args:
      a, b: a directory, or "transformers:DIR".
      texts: encoded by the tokenizer of `a`, or of `b` where `a` has none.
      dtype: of the computation on both sides.
      trust_remote_code: lets transformers run the modelling file of a native Baichuan folder.
      answers: of `read_config`, for the Hugging Face folders among the two; positions and head for a Baichuan's.

    Raises:
      ConfigError: a side is no model, the vocabularies differ, a text is longer than the context.
      DataError: a logit is NaN or infinite.
    """
    if all(is_checkpoint(_folder(side)) for side in (a, b)):
        refuse_answers(f"{a} like {b}", answers)
    config, other = _config(a, answers), _config(b, answers)
    require(
        config.vocab_size == other.vocab_size,
        f"{a} has a vocabulary of {config.vocab_size} and {b} of {other.vocab_size}: they are not the same model",
    )
    rows = [row for row in _encode(_tokenizer(a, b), texts) if row]
    for side in (config, other):
        check_rows(side, rows)
    reference = list(_side(a, dtype, trust_remote_code, answers)(rows))
    return measure(reference, _side(b, dtype, trust_remote_code, answers)(rows), KL_GATE[dtype])


def measure(reference: Sequence[np.ndarray], other: Iterator[np.ndarray], gate: float) -> Comparison:
    """Compares logits [tokens, vocabulary] row by row; arithmetic is fp64."""
    errors, scales, divergences, agreements = [], [], [], []
    for a, b in zip(reference, other, strict=True):
        errors.append(float(np.abs(a - b).max()))
        scales.append(float(np.abs(a).max()))
        log_p, log_q = _log_softmax(a), _log_softmax(b)
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
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def _folder(side: str) -> Path:
    return Path(side.removeprefix(TRANSFORMERS))


def _of_folder(folder: Path, answers: Answers) -> Answers:
    """What of the answers is said of this side: one may be the llama export of the other, whose head was a NormHead."""
    if is_checkpoint(folder):
        return {}
    if read_config_file(folder).get("model_type") == "baichuan":
        return answers
    return {"ignore": answers.get("ignore", ())}


def _config(side: str, answers: Answers) -> ModelConfig:
    folder = _folder(side)
    require(folder.is_dir(), f"{side}: there is no directory {folder}")
    if not is_checkpoint(folder):
        return read_config(folder, **_of_folder(folder, answers))
    require(not side.startswith(TRANSFORMERS), f"{side}: transformers cannot read a checkpoint of ours; export it first")
    return config_from_dict(ModelConfig, read_meta(locate_checkpoint(folder)[1])["config"]["model"])


def _tokenizer(*sides: str) -> Tokenizer:
    reasons = []
    for side in sides:
        folder = _folder(side)
        try:
            return load_tokenizer(folder.parent.parent if folder.parent.name == "checkpoints" else folder)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("neither side has a tokenizer to encode the text with: " + "; ".join(reasons))


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [[int(i) for i in tokenizer.encode(text)] for text in texts]


def _side(side: str, dtype: str, trust_remote_code: bool, answers: Answers) -> Logits:
    if side.startswith(TRANSFORMERS):
        return _through_transformers(_folder(side), dtype, trust_remote_code)
    config, params = load_any(_folder(side), dtype=jnp.dtype(dtype), **_of_folder(_folder(side), answers))
    return lambda rows: row_logits(config, params, rows, jnp.dtype(dtype))


def _through_transformers(folder: Path, dtype: str, trust_remote_code: bool) -> Logits:
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ConfigError(
            f"transformers:{folder} needs torch and transformers (pip install 'huatuo-jax[torch]'): {error}"
        ) from error
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
                found = model(input_ids=torch.tensor([list(row)])).logits[0].float().numpy()
            check_finite(found, index, f"transformers:{folder}")
            yield found

    return logits
