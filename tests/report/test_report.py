import json
from pathlib import Path

import pytest

from huatuo_jax.cli import main
from huatuo_jax.report.history import read_history
from huatuo_jax.report.run_page import write_run_report


def a_run(path: Path, steps: int = 40) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(
        json.dumps({"name": "测试 <run>", "batch_size": 2, "data": {"plan": str(path / "no-plan")}})
    )
    lines = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "loss": 5.0 / step,
                "learning_rate": 1e-4,
                "tokens": step * 100,
                "target_tokens": step * 60,
                "tokens_per_second": 1000.0,
                "loss/sft": 4.0 / step,
                "loss/medical_books_cn": 3.0 / step,
            }
        )
    lines.append({"step": steps, "eval_loss": 1.5, "eval_loss/sft": 1.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "answers.json").write_text(json.dumps([{"prompt": "头痛怎么办？", "answer": "多休息<b>", "recall": 0.5}]))
    recall = {"characters": 50, "sources": {"sft": {"recall": 0.9, "records": 10}, "books": {"recall": 0.25, "records": 4}}}
    (path / "recall.json").write_text(json.dumps(recall))
    return path


def test_report_writes_every_picture_and_one_page_that_needs_no_other_file(tmp_path):
    run = a_run(tmp_path / "run")
    written = write_run_report(run)
    for name in ("loss", "loss_per_source", "learning_rate", "throughput", "recall"):
        assert Path(written[name]).read_bytes().startswith(b"\x89PNG")
    page = Path(written["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert 'src="plots' not in page
    assert "测试 &lt;run&gt;" in page and "多休息&lt;b&gt;" in page
    assert "the plan could not be read" in page


def test_series_keep_training_and_held_out_lines_apart(tmp_path):
    history = read_history(a_run(tmp_path / "run"))
    assert history.sources == ["medical_books_cn", "sft"]
    steps, loss = history.series("loss")
    assert steps.tolist() == list(range(1, 41)) and loss[0] == 5.0
    assert history.series("eval_loss")[1].tolist() == [1.5]


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path, missing, capsys):
    run = a_run(tmp_path / "run")
    (run / missing).unlink()
    code = main(["report", str(run)])
    assert code == (2 if missing == "config.json" else 1)
    assert missing in capsys.readouterr().err


def test_a_line_cut_by_a_kill_and_an_interval_without_updates_are_drawn_around(tmp_path):
    run = a_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"loss": None})
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 41, "lo']))
    page = Path(write_run_report(run)["report"]).read_text(encoding="utf-8")
    assert "– → 0.125" in page
