"""What the quickstart's commands write, byte for byte: pairs, token records, plan, collected passages, exported folders.

The hashes are meant to hold on any CPU: the weights are exact in every dtype they pass through.
`python -m tests.test_golden_hashes` makes the golden file; a change of it needs a reason in its commit.
"""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import zstandard

from benchmarks.output_hashes import array_hash, documents_hash, export_hashes, file_hash
from data_tools.cli import main as huatuo_data
from huatuo_jax.data.token_store import SPLITS, TokenDataset
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.models.decoder import abstract_params
from huatuo_jax.models.presets import preset
from huatuo_jax.weights.hf_write import ExportRequest, export
from tests.support.export_checkpoint import write_run
from tests.support.quickstart_data import EXAMPLES, REPOSITORY, make_quickstart_data

GOLDEN = Path(__file__).parent / "golden" / "quickstart_hashes.json"

EXPORTS = {
    "baichuan2_7b_llama": ("tiny-baichuan2-7b", "llama", "bfloat16"),
    "baichuan2_7b_native": ("tiny-baichuan2-7b", "native", "float32"),
    "baichuan2_13b_native": ("tiny-baichuan2-13b", "native", "float32"),
    "yi_native": ("tiny-yi", "native", "float32"),
    "qwen3_native": ("tiny-qwen3", "native", "bfloat16"),
}
"""Name → preset, format, dtype: both heads, both kinds of positions, grouped heads, norms of queries and keys."""


def data_hashes(folder: Path) -> dict[str, str]:
    """Of the pairs, of every token record by source and split and in the plan's order, and of the plan's arrays."""
    dataset = TokenDataset.open(folder / "tokens")
    hashes = {"pairs.jsonl": file_hash(folder / "pairs.jsonl"), "tokenizer.model": file_hash(folder / "tokenizer.model")}
    for split in SPLITS:
        offsets = dataset.offsets(split)
        for source, first, end in zip(dataset.sources, offsets[:-1], offsets[1:], strict=True):
            hashes[f"records/{source}/{split}"] = documents_hash(dataset.read(np.arange(first, end), split))
    row_docs = np.load(folder / "plan" / "row_docs.npy")
    hashes["row_starts"] = array_hash(np.load(folder / "plan" / "row_starts.npy"))
    hashes["row_docs"] = array_hash(row_docs)
    hashes["records in the plan's order"] = documents_hash(dataset.read(row_docs))
    return hashes


def collect_hashes(folder: Path) -> dict[str, str]:
    """Of each file of passages, uncompressed: another zstandard may compress the same text to other bytes."""
    command = ["collect", EXAMPLES / "corpus", "--domain", "medicine", "--out", folder, "--quiet"]
    assert huatuo_data(list(map(str, command))) == 0
    hashes = {}
    for path in sorted((folder / "passages").iterdir()):
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as text:
            hashes[path.name] = hashlib.sha256(text.read()).hexdigest()
    return hashes


def exact_params(model) -> dict:
    """Parameters that no rounding touches, made without random numbers: integers times a power of two.

    A NormHead's rows hold one magnitude, so that their length is a power of two and normalising them is exact.
    """
    named = jax.tree_util.tree_leaves_with_path(abstract_params(model))
    salts = {jax.tree_util.keystr(path): salt for salt, (path, _) in enumerate(named)}

    def leaf(path, shape) -> jax.Array:
        name = jax.tree_util.keystr(path)
        # Multiplicative hashing by place and array: a transposed, swapped or shifted tensor has other bytes.
        mixed = (np.arange(1, np.prod(shape.shape) + 1, dtype=np.uint64) * 2654435761 + 40503 * salts[name]) % 2**32 >> 20
        values = mixed.astype(np.int64) - 2048
        if "head" in name and model.head == "norm":
            values = np.where(values < 0, -1024, 1024)
        # Eight bits, so that bfloat16 holds each number too.
        return jax.numpy.asarray((values // 16 / 256).astype(np.float32).reshape(shape.shape))

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(model))


def exports(tokenizer: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Of every export: each tensor and each file but the card."""
    found = {}
    size = load_tokenizer(tokenizer).vocab_size
    for name, (preset_name, layout, dtype) in EXPORTS.items():
        model = preset(preset_name, vocab_size=size)
        run = write_run(folder / name, model, exact_params(model), tokenizer)
        export(run, folder / name / "hf", ExportRequest(layout, dtype))
        found[name] = export_hashes(folder / name / "hf")
    return found


def all_hashes(folder: Path) -> dict[str, dict]:
    make_quickstart_data(folder)
    return {
        "data": data_hashes(folder),
        "collect": collect_hashes(folder / "collected"),
        "export": exports(folder / "tokenizer.model", folder / "exports"),
    }


@pytest.fixture(scope="module")
def hashes(tmp_path_factory):
    return all_hashes(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("part", ["data", "collect", "export"])
def test_every_byte_is_the_golden_one(hashes, part):
    assert hashes[part] == json.loads(GOLDEN.read_text())[part]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(all_hashes(Path(folder)), indent=1, ensure_ascii=False) + "\n")
    print(GOLDEN.relative_to(REPOSITORY))
