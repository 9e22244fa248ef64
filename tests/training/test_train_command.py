"""`huatuo train`: fields on the command line, exit codes, what it says."""

import json
from pathlib import Path

import pytest

from huatuo_jax.cli import main


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert "4 stopped by a signal" in capsys.readouterr().out


def test_fields_are_listed_with_their_values(tiny_config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config_file), "--help"]) == 0
    out = capsys.readouterr().out
    assert "--optimizer.learning-rate" in out and "--data.mixture.sft.priority" in out


def test_an_unknown_field_is_wrong_usage(tiny_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config_file), "--run", str(tmp_path / "run"), "--optimizer.lr", "1"]) == 2
    assert "--optimizer.lr" in capsys.readouterr().err


def test_an_impossible_value_is_wrong_usage(tiny_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config_file), "--run", str(tmp_path / "run"), "--optimizer.learning-rate", "-1"]) == 2
    assert "must be above 0" in capsys.readouterr().err


def test_a_missing_config_and_a_missing_run_directory_are_wrong_usage(
    tiny_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / "none.py"), "--run", str(tmp_path)]) == 2
    assert main(["train", str(tiny_config_file)]) == 2
    assert "--run" in capsys.readouterr().err


def test_half_a_coordinator_is_wrong_usage(tiny_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(tiny_config_file), "--run", str(tmp_path / "run")]
    assert main([*words, "--coordinator", "localhost:1"]) == 2
    assert main([*words, "--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "2"]) == 2
    assert "--process-id is 2" in capsys.readouterr().err


def test_a_mesh_larger_than_the_devices_does_not_fit(tiny_config_file: Path, tmp_path: Path) -> None:
    assert main(["train", str(tiny_config_file), "--run", str(tmp_path / "run"), "--mesh.fsdp", "16"]) == 3


def test_missing_data_fails_with_the_remedy(tiny_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(tiny_config_file), "--run", str(tmp_path / "run"), "--data.tokens", str(tmp_path / "nothing")]
    assert main(words) == 1
    assert "huatuo-data build" in capsys.readouterr().err


def test_a_finished_run_ends_at_once_with_its_report(
    tiny_config_file: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(tiny_config_file), "--run", str(finished_run), "--json", str(tmp_path / "report.json")]
    assert main(words) == 0
    assert "is finished: all 14 steps are done" in capsys.readouterr().out.replace("\n", " ")
    assert json.loads((tmp_path / "report.json").read_text()) == {"case": "finished", "steps": 14}


def test_quiet_says_nothing(tiny_config_file: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config_file), "--run", str(finished_run), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
