"""The shipped configs compile for a pod that is not here."""

from pathlib import Path

import pytest

from huatuo_jax.config_files import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.slow
@pytest.mark.parametrize(("config", "attention"), [("huatuo2_7b", "splash"), ("huatuo2_13b", "blocked")])
def test_the_step_compiles_for_v5p_and_fits(config, attention, capsys):
    pytest.importorskip("libtpu", reason="the tpu extra is not installed")
    from benchmarks.pods import GIB, compile_for

    report = compile_for(load_config(CONFIGS / f"{config}.py"), "v5p:2x4x4")
    with capsys.disabled():
        print(f"\n{config}: {report['peak_bytes'] / GIB:.2f} GiB per device, attention {report['attention']}")
    assert report["attention"] == attention
    assert report["chips"] == 32
    assert 1 * GIB < report["peak_bytes"] < 95 * GIB
