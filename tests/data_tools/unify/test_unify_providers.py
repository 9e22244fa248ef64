"""Around the model: what runs without one, what the program imports, and whether the guide's arithmetic is right."""

import json
import re
import subprocess
import sys

import pytest

from data_tools.cli import main


def test_templates_report_and_draw_what_survives_too(corpus, tmp_path):
    out, picture, report = tmp_path / "pairs.jsonl", tmp_path / "plot.png", tmp_path / "report.json"
    assert (
        main(["unify", "--template", str(corpus), "--out", str(out), "--plot", str(picture), "--json", str(report), "--quiet"])
        == 0
    )
    assert json.loads(report.read_text())["coverage"]["books"]["mean"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_both_ways_to_ask_for_the_template_give_the_same(corpus, tmp_path):
    for name, option in (("a", ["--template"]), ("b", ["--provider", "template"])):
        assert main(["unify", *option, str(corpus), "--out", str(tmp_path / f"{name}.jsonl"), "--quiet"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--provider", "openai"], "--model is missing"),
        (["--provider", "template", "--estimate"], "need --provider openai"),
        (["--provider", "openai", "--model", "m", "--base-url", "https://me:secret@host/v1"], "without user name"),
        (["--provider", "openai", "--model", "m", "--base-url", "localhost:8000"], "must look like"),
        (["--provider", "openai", "--model", "m", "--concurrency", "0"], "--concurrency is 0"),
        (["--provider", "openai", "--model", "m", "--requests-per-minute", "0"], "must be above 0"),
        (["--provider", "openai", "--model", "m", "--tries", "0"], "--tries is 0"),
        (["--provider", "openai", "--model", "m", "--retry-rejected"], "holds no run yet"),
    ],
)
def test_wrong_usage_is_named_before_any_work(corpus, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    assert main(["unify", str(corpus), "--out", str(tmp_path / "o.jsonl"), *options]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert message in printed
    assert "secret" not in printed


def test_the_program_starts_without_client_jax_or_grain():
    code = "import sys; from data_tools.cli import main; main(['--help']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"'(jax|grain|openai|aiohttp|matplotlib)'", loaded)


def test_unify_itself_imports_neither_jax_nor_grain():
    code = "import sys; import data_tools.unify.pipeline; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'openai'" in loaded
    assert not re.search(r"'(jax|grain)'", loaded)


def test_the_guides_cost_table_is_passages_times_tokens_times_price(repository):
    """Rows: | model | price in | price out | cost |; the tokens per passage stand in the table above it."""
    text = (repository / "docs" / "unify.md").read_text(encoding="utf-8")
    number = lambda cell: float(cell.replace(",", "").strip())
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    kinds = [row for row in cells if row[0] in ("Chinese", "English")]
    assert sum(number(row[1]) for row in kinds) == 5_252_894
    prompt = sum(number(row[1]) * number(row[3]) for row in kinds)
    output = sum(number(row[1]) * number(row[4]) for row in kinds)
    prices = [row for row in cells if len(row) == 4 and re.fullmatch(r"[\d.]+", row[1])]
    assert len(prices) >= 3
    for _, price_in, price_out, cost in prices:
        assert number(cost) == pytest.approx((prompt * number(price_in) + output * number(price_out)) / 1e6, rel=0.005)
