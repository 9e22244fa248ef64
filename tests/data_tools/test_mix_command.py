import csv
import json

import numpy as np
import pytest

from data_tools.cli import main
from data_tools.planning.mixing import closed_form
from huatuo_jax.mixtures import PAPER, PAPER_RECORDS
from tests.support.token_folder import dialogue, write_tokens


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    return header, np.array(lines, float)


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_paper_curve_agrees_with_the_closed_form_everywhere(tmp_path, seed):
    file = tmp_path / "curve.csv"
    assert main(["mix", "--mixture", "paper", "--windows", "33", "--csv", str(file), "--seed", str(seed), "--quiet"]) == 0
    header, table = read_csv(file)
    assert header == ["duration", *PAPER]
    assert table[:, 0] == pytest.approx(np.arange(33) / 33, abs=1e-6)
    expected = np.stack(list(closed_form(PAPER_RECORDS, PAPER, 33).values()), axis=1)
    assert np.abs(table[:, 1:] - expected).max() < 0.01
    assert table[:, 1:].sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_equal_priorities_give_a_flat_curve(tmp_path):
    report = tmp_path / "r.json"
    records = tmp_path / "records.json"
    records.write_text(json.dumps({source: count // 20 for source, count in PAPER_RECORDS.items()}))
    flags = ["--records", str(records), "--windows", "5", "--equal-priorities", "--json", str(report)]
    assert main(["mix", "--mixture", "paper", *flags, "--quiet"]) == 0
    shares = json.loads(report.read_text())["shares"]["sft"]
    assert shares == pytest.approx([3 * 142_248 / 5_679_638] * 5, abs=0.005)


@pytest.fixture
def plan(tmp_path):
    examples = {"books": [dialogue(2, 6)] * 60, "sft": [dialogue(2, 6)] * 20, "web": [dialogue(1, 1)]}
    tokens = write_tokens(tmp_path / "tokens", examples)
    mixture = tmp_path / "mixture.json"
    mixture.write_text('{"books": {"priority": 1000000}, "sft": {"priority": 1, "epochs": 2}}')
    flags = ["--mixture-file", str(mixture), "--sequence-length", "16", "--out", str(tmp_path / "plan"), "--quiet"]
    assert main(["plan", str(tokens), *flags]) == 0
    return tmp_path / "plan"


def test_the_curve_of_a_plan_is_that_of_its_draws(plan, tmp_path, capsys):
    assert main(["mix", "--plan", str(plan), "--windows", "5", "--csv", str(tmp_path / "c.csv")]) == 0
    header, table = read_csv(tmp_path / "c.csv")
    assert header == ["duration", "books", "sft"]
    assert table.tolist() == [[0, 1, 0], [0.2, 1, 0], [0.4, 1, 0], [0.6, 0, 1], [0.8, 0, 1]]
    assert "0.600" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_plot_is_written_in_the_format_of_its_name(plan, tmp_path, ending):
    assert main(["mix", "--plan", str(plan), "--plot", str(tmp_path / f"p.{ending}"), "--quiet"]) == 0
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert (tmp_path / f"p.{ending}").read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mixture", "paperr"], "no mixture 'paperr'; there are paper"),
        (["--mixture", "paper", "--windows", "0"], "--windows is 0"),
        (["--mixture", "paper", "--plot", "p.bmp"], "ends in .png, .svg or .pdf"),
    ],
)
def test_wrong_usage_is_explained(flags, message, capsys):
    assert main(["mix", *flags]) == 2
    assert message in capsys.readouterr().err


def test_more_windows_than_draws_are_refused(plan, capsys):
    assert main(["mix", "--plan", str(plan), "--windows", "101"]) == 2
    assert "only 100 draws" in capsys.readouterr().err
