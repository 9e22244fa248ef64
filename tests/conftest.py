"""Every test runs on 8 fake CPU devices; third-party data beside the repository is used where it is there."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.environment import keep_compiled_programs, use_devices

use_devices(8)
COMPILED = keep_compiled_programs()

if TYPE_CHECKING:
    from huatuo_jax.data.tokenizers import Tokenizer
    from tests.support.golden_tokenizers import KnownIds

REPOSITORY = Path(__file__).parents[1]


def pytest_unconfigure() -> None:
    """Removes the compiled programs, once all workers have ended."""
    if COMPILED is not None:
        shutil.rmtree(COMPILED, ignore_errors=True)


LONGEST = (
    "test_parallel_equals_serial.py",
    "test_hosts.py",
    "test_resume.py",
    "test_transformers_parity.py",
    "test_real_data.py",
)
"""Files that start first: one that began last would leave the other worker idle at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module")
def compiled_fast() -> Iterator[None]:
    """LLVM optimises nothing: a third less time to compile, and sums that differ in the last bit.

    Only for modules that compare numbers within a tolerance, never where bits or golden numbers are promised. XLA's own passes
    (fusion, partitioning over devices) stay on.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # no later module of this worker gets a program of this one


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora, exams and tokenizers; they never enter the repository."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real data is absent: {path}")
    return path


@pytest.fixture(scope="session")
def tokenizer_named(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The file of a tokenizer by name: "golden", "golden dummy prefix"; "baichuan2" and "llama2" where the real data is."""
    from tests.support.golden_tokenizers import FILES

    def file_of(name: str) -> Path:
        return FILES.get(name) or request.getfixturevalue("shared_data") / "tokenizers" / f"{name}.model"

    return file_of


@pytest.fixture(scope="session", params=["golden", "baichuan2"])
def baichuan_like(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], Path]) -> "Tokenizer":
    """A vocabulary without a dummy prefix, with Baichuan2's chat tokens; `known_ids` says which ids its dialogues have."""
    from huatuo_jax.data.tokenizers import load_tokenizer

    return load_tokenizer(tokenizer_named(request.param))


@pytest.fixture(scope="session")
def known_ids(baichuan_like: "Tokenizer") -> "KnownIds":
    """Ids of `baichuan_like`, from which expected tokens are put together."""
    from tests.support.golden_tokenizers import FILES, KNOWN_IDS

    return KNOWN_IDS["golden" if Path(baichuan_like.path) == FILES["golden"] else "baichuan2"]


@pytest.fixture(scope="session", params=["golden dummy prefix", "llama2"])
def llama_like(request: pytest.FixtureRequest, tokenizer_named: Callable[[str], Path]) -> "Tokenizer":
    """A vocabulary that puts a "▁" before every text, and has neither symbols nor chat tokens."""
    from huatuo_jax.data.tokenizers import load_tokenizer

    return load_tokenizer(tokenizer_named(request.param))
