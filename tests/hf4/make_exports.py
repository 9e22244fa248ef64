"""Writes exported folders and what they must answer, for `test_transformers_4.py`, which runs where huatuo-jax is not installed.

    python -m tests.hf4.make_exports DIR

Each folder of DIR holds the export and `expected.npz` (tokens, our logits) or `expected.json` (texts, ids, prompts, answers).
"""

import json
import lzma
import sys
from pathlib import Path

import numpy as np

from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.weights.hf_tokenizer import export_tokenizer
from huatuo_jax.weights.hf_write import ExportRequest, export
from tests.support.export_checkpoint import (
    BAICHUAN,
    LLAMA_LIKE,
    byte_level_tokenizer,
    greedy_of,
    random_model,
    tiny_tokenizer,
    write_run,
)
from tests.support.random_models import logits_of

DATA = Path(__file__).parents[3] / "shared" / "data"
KNOWN_TO_4_46 = [name for name in LLAMA_LIKE if name != "tiny-qwen3"]
"""Qwen3 came with transformers 4.51."""


def write_models(out: Path, tokenizer: Path) -> None:
    """Random models: RoPE as plain Llama, Qwen2 as itself, Baichuans native."""
    byte_level = byte_level_tokenizer(out)
    exports = [(name, "auto", tokenizer, "huatuo") for name in KNOWN_TO_4_46]
    exports += [(name, "native", tokenizer, "huatuo") for name in BAICHUAN]
    for name, format, file, template in [*exports, ("tiny-qwen2", "auto", byte_level, "chatml")]:
        model, params = random_model(name, file)
        run = write_run(out / "runs" / f"{name}-{format}", model, params, file, template)
        folder = out / "models" / f"{name}-{format}"
        export(run, folder, ExportRequest(layout=format))
        tokens = np.random.default_rng(0).integers(3, model.vocab_size, (2, 50)).astype(np.int32)
        prompts = [tokens[0, :9].tolist(), tokens[1, :9].tolist()]
        np.savez(folder / "expected.npz", tokens=tokens, logits=logits_of(model, params, tokens))
        answers = greedy_of(model, params, prompts, 16, eos_id=2)
        (folder / "expected.json").write_text(json.dumps({"prompts": prompts, "answers": answers}), encoding="utf-8")


def write_tokenizers(out: Path, tokenizer: Path) -> None:
    """The tiny tokenizer, and the real ones on real turns where they are there."""
    dialogues = [["甘草第3味有什么功效？", "性味甘。", "</s><s>\n ？"]]
    files = {"tiny": tokenizer}
    if DATA.is_dir():
        with lzma.open(DATA / "sft" / "sft_zh.jsonl.xz", "rt", encoding="utf-8") as file:
            dialogues += [json.loads(line)["turns"] for line in file]
        files |= {name: DATA / "tokenizers" / f"{name}.model" for name in ("baichuan2", "llama2")}
    texts = [turn for dialogue in dialogues for turn in dialogue][:10_000]
    asked = [d[: len(d) - (len(d) % 2 == 0)] for d in dialogues[:300] + [d for d in dialogues if len(d) > 2][:300]]
    for name, file in files.items():
        folder = out / "tokenizers" / name
        folder.mkdir(parents=True)
        source = load_tokenizer(file)
        export_tokenizer(source, "huatuo", folder, 4096)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        prompts = [prompt_tokens(turns, source, get_format("huatuo")) for turns in asked]
        import sentencepiece

        ids = sentencepiece.SentencePieceProcessor(model_file=str(file)).encode(texts)
        expected = {"texts": texts, "ids": ids, "asked": asked, "prompts": prompts}
        (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    model_file = tiny_tokenizer(target)
    write_models(target, model_file)
    write_tokenizers(target, model_file)
