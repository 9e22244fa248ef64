"""A fault server, a small corpus in both languages, and the command run against them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_tools.cli import main
from tests.support.fault_server import KEY, PASSAGES, FaultServer


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(stall=2.0) as running:
        yield running


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [json.dumps({"id": name, "source": "books", "text": text}, ensure_ascii=False) for name, text in PASSAGES.items()]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def unify(server: FaultServer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command against the server; further options follow."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(*options: str, provider: str = "openai") -> int:
        fixed = ["--provider", provider, "--base-url", server.url, "--model", "tiny", "--out", str(tmp_path / "pairs.jsonl")]
        return main(["unify", str(corpus), *fixed, "--backoff-scale", "0.01", "--json", str(tmp_path / "report.json"), *options])

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[str], list[dict]]:
    """The rows of a file that the command wrote."""
    return lambda name: [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
