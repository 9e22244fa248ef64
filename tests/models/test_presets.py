import subprocess
import sys

import pytest

from huatuo_jax.errors import ConfigError
from huatuo_jax.models.presets import preset


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("baichuan2-7b", 7_505_973_248),
        ("baichuan2-13b", 13_896_668_160),
        ("baichuan-7b", 7_000_559_616),
        ("yi-34b", 34_388_917_248),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama3-8b", 8_030_261_248),
        ("llama3.2-1b", 1_235_814_400),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    import jax

    from huatuo_jax.models.decoder import abstract_params

    assert sum(spec.size for spec in jax.tree.leaves(abstract_params(preset(name)))) == parameters


def test_quickstart_is_a_few_million_parameters():
    import jax

    from huatuo_jax.models.decoder import abstract_params

    assert 3e6 < sum(spec.size for spec in jax.tree.leaves(abstract_params(preset("quickstart")))) < 8e6


def test_changes_are_checked_and_unknown_names_refused():
    assert preset("tiny-yi", vocab_size=99).vocab_size == 99
    with pytest.raises(ConfigError, match=r"not a multiple of model\.num_kv_heads"):
        preset("tiny-yi", num_kv_heads=3)
    with pytest.raises(ConfigError, match="no model preset named 'yi'"):
        preset("yi")


def test_presets_do_not_import_jax():
    code = "import sys; import huatuo_jax.models.presets; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
