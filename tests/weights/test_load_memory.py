"""A folder of 1.2 GB: loading it needs less than two of its tensors beyond the mapped file and the parameters themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.models.presets import preset
from huatuo_jax.weights.hf_config import write_config
from huatuo_jax.weights.hf_names import tensors
from tests.support.environment import use_devices

save_file = pytest.importorskip("safetensors.numpy").save_file

CONFIG = preset("baichuan2-7b", num_layers=8, hidden_size=1536, num_heads=12, num_kv_heads=12, ffn_size=4096)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gigabyte")
    row = np.random.default_rng(0).normal(0, 0.02, CONFIG.vocab_size * CONFIG.hidden_size).astype(jnp.bfloat16)
    shapes = {name: parts[0][0].their_shape for name, parts in tensors(CONFIG, "baichuan").items()}
    save_file({name: row[: int(np.prod(shape))].reshape(shape) for name, shape in shapes.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(write_config(CONFIG, "baichuan", "bfloat16")))
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux's /proc")
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_above_file_and_parameters_is_under_two_tensors(folder: Path, dtype: str, devices: int) -> None:
    environment = {**os.environ}
    use_devices(devices, environment)
    command = [sys.executable, "-m", "tests.support.load_memory", str(folder), dtype]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(dtype, devices, {name: round(value / 1e6, 1) if value > 1e4 else round(value, 2) for name, value in found.items()})
    assert found["target"] >= 1.2e9
    assert found["above"] < 2 * found["largest"]
