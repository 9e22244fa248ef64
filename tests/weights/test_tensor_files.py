"""Files of weights, whole and broken: safetensors and pytorch_model.bin, single and sharded; a pickle is never run."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file

from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.weights.hf_read import open_tensors
from tests.support.hf_folders import as_bits

TENSORS = {
    "wide": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "narrow": torch.arange(8, dtype=torch.bfloat16) / 3,
    "half": torch.arange(4, dtype=torch.float16).reshape(2, 2) / 3,
}


def write_single(folder: Path, suffix: str) -> None:
    if suffix == "safetensors":
        save_file(TENSORS, folder / "model.safetensors")
    else:
        torch.save(TENSORS, folder / "pytorch_model.bin")


def write_sharded(folder: Path, suffix: str) -> Path:
    """A shard for each tensor, and the index, whose path is returned."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for i, (name, tensor) in enumerate(TENSORS.items(), 1):
        file = weight_map[name] = f"{stem}-0000{i}-of-00003.{suffix}"
        if suffix == "safetensors":
            save_file({name: tensor}, folder / file)
        else:
            torch.save({name: tensor}, folder / file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("write", [write_single, write_sharded])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_all_tensors_are_read_as_written(tmp_path, write, suffix):
    write(tmp_path, suffix)
    stored = open_tensors(tmp_path)
    assert {name: as_bits(tensor.read()) for name, tensor in stored.items()} == {n: as_bits(t) for n, t in TENSORS.items()}
    assert {name: tensor.shape for name, tensor in stored.items()} == {n: tuple(t.shape) for n, t in TENSORS.items()}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_tensors_are_views_of_the_mapped_file(tmp_path, suffix):
    write_single(tmp_path, suffix)
    array = open_tensors(tmp_path)["wide"].read()
    assert not array.flags.owndata


def test_safetensors_need_no_torch(tmp_path):
    write_single(tmp_path, "safetensors")
    code = "import sys; sys.modules['torch'] = None; from huatuo_jax.weights.hf_read import open_tensors; " + (
        f"print(open_tensors({str(tmp_path)!r})['narrow'].read()[3])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "1"


def test_a_bin_without_torch_says_what_to_install(tmp_path, monkeypatch):
    write_single(tmp_path, "bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'huatuo-jax\[torch\]'"):
        open_tensors(tmp_path)


def test_tensors_at_odd_addresses(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + np.float32([1.5, -2]).tobytes())
    assert len(header) % 2 == 1 and open_tensors(tmp_path)["x"].read().tolist() == [1.5, -2.0]


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no weights; looked for model.safetensors"):
        open_tensors(tmp_path)


def test_a_shard_that_is_gone(tmp_path):
    write_sharded(tmp_path, "safetensors")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 3 files .*model-00002-of-00003.safetensors"):
        open_tensors(tmp_path)


def test_a_shard_that_the_index_does_not_name(tmp_path):
    index = write_sharded(tmp_path, "safetensors")
    values = json.loads(index.read_text())
    del values["weight_map"]["half"]
    index.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"does not name model-00003-of-00003.safetensors"):
        open_tensors(tmp_path)


def test_shards_without_an_index(tmp_path):
    write_sharded(tmp_path, "safetensors").unlink()
    with pytest.raises(DataError, match=r"3 shards and no model.safetensors.index.json"):
        open_tensors(tmp_path)


def test_an_index_that_disagrees_with_its_files(tmp_path):
    index = write_sharded(tmp_path, "safetensors")
    values = json.loads(index.read_text())
    values["weight_map"]["half"] = values["weight_map"]["wide"]
    values["weight_map"]["other"] = "model-00003-of-00003.safetensors"
    index.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"disagree in 3 places: .* lacks half; .* lacks other; half of .* is not in the index"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("content", ['{"weight_map": ', "{}", '{"weight_map": ["a"]}', "[]"])
def test_an_unreadable_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DataError, match="no readable weight_map"):
        open_tensors(tmp_path)


def test_an_index_cannot_reach_outside_its_folder(tmp_path):
    index = write_sharded(tmp_path, "safetensors")
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(DataError, match="outside its folder"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("left", [0, 5, 40, 0.5, -1])
def test_a_truncated_safetensors_file(tmp_path, left):
    write_single(tmp_path, "safetensors")
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * left) if isinstance(left, float) else left])
    with pytest.raises(DataError, match=r"model.safetensors .*fetch it again"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b'{"x": 3}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        b'"y": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}',
        b"\xff\xfe",
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(DataError, match=r"model.safetensors is not a whole safetensors file .*header"):
        open_tensors(tmp_path)


def test_bytes_behind_the_last_tensor(tmp_path):
    write_single(tmp_path, "safetensors")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"model.safetensors is not a whole safetensors file .*not fully covered"):
        open_tensors(tmp_path)


class CreatesAFile:
    """A pickle that, when it is loaded carelessly, runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_malicious_pickle_would_run_if_it_were_loaded(tmp_path):
    pickle.loads(pickle.dumps(CreatesAFile(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()


def save_zip(value: object, path: Path) -> None:
    torch.save(value, path)


def save_plain(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def save_old(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_zip, save_plain, save_old])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, save, sharded):
    proof = tmp_path / "proof"
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    save({"wide": TENSORS["wide"], "evil": CreatesAFile(proof)}, tmp_path / name)
    if sharded:
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"wide": name}}))
    with pytest.raises(DataError, match=r"Nothing of it was run|was not unpickled"):
        open_tensors(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize("value", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"x": torch.ones(2)}}])
def test_a_pickle_that_is_not_tensors_by_name(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="not a dictionary of tensors by name"):
        open_tensors(tmp_path)


def test_a_truncated_bin(tmp_path):
    write_single(tmp_path, "bin")
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"truncated or no file of torch.save"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_another_dtype_is_refused_when_it_is_read(tmp_path, suffix):
    tensors = {"quantised": torch.ones(4, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors") if suffix == "safetensors" else torch.save(
        tensors, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(DataError, match=r"quantised is (I8|torch.int8)"):
        open_tensors(tmp_path)["quantised"].read()


def test_weights_behind_a_url_scheme_are_refused():
    with pytest.raises(ConfigError, match="copy the folder to a local disk"):
        open_tensors("gs://bucket/model")
