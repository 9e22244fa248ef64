"""One tiny token dataset with its plan, and one finished run on it, for all tests of this folder."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def compile_once(tmp_path_factory: pytest.TempPathFactory):
    """Compiled programs are kept on disk for the session: the runs of these tests differ in data and files, not in programs."""
    import jax

    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture(scope="session")
def tiny_config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file whose data and plan are there."""
    from tests.support.tiny_run import make_data

    return make_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_config(tiny_config_file: Path):
    """The config of `tiny_config_file`."""
    from huatuo_jax.config_files import load_config

    return load_config(tiny_config_file)


@pytest.fixture(scope="session")
def finished_run(tiny_config, compile_once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory after its 14 steps: checkpoints 8, 12, 14. Tests copy it before they touch it."""
    from huatuo_jax.cli.console import make_console
    from huatuo_jax.training.trainer import train

    run = tmp_path_factory.mktemp("finished") / "run"
    assert train(tiny_config, run, make_console(quiet=True))["case"] == "fresh"
    return run
