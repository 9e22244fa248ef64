"""The quickstart: its content, its questions, the losses of its first steps, and (slow) the whole script."""

import collections
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from huatuo_jax.config_files import load_config
from huatuo_jax.data.loader import make_loader
from huatuo_jax.data.plan import Plan
from huatuo_jax.data.rows import PlannedRows
from huatuo_jax.data.token_store import TokenDataset
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.sharding import make_mesh
from huatuo_jax.training.step import build_step
from tests.support.quickstart_data import CONFIG, EXAMPLES, REPOSITORY, make_quickstart_data

GOLDEN = Path(__file__).parent / "golden" / "quickstart_losses.json"
"""Made by `python tests/test_quickstart.py`; a change needs a reason in its commit."""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return make_quickstart_data(tmp_path_factory.mktemp("quickstart"))


def first_losses(config, steps: int = 20) -> list[float]:
    """Losses of the first steps of the whole run: the schedule follows the run's length, so the run is not shortened."""
    dataset, plan = TokenDataset.open(config.data.tokens), Plan.load(config.data.plan)
    mesh = make_mesh(dataclasses.replace(config.mesh, fsdp=1))
    train_step = build_step(config, mesh, len(plan) // config.batch_size, dataset.sources)
    state, losses = train_step.init(config.seed), []
    with make_loader(PlannedRows(plan, dataset), config.batch_size, train_step.batch_sharding, num_steps=steps) as batches:
        for batch in batches:
            state, metrics = train_step.step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses


def test_the_corpus_has_twelve_passages_a_source_and_sixty_dialogues():
    for path in (EXAMPLES / "corpus").glob("*.jsonl"):
        assert len(lines(path)) >= 12, path.name
    assert {path.stem for path in (EXAMPLES / "corpus").glob("*.jsonl")} == set(load_config(CONFIG).data.mixture) - {"sft"}
    dialogues = lines(EXAMPLES / "sft.jsonl")
    assert len(dialogues) >= 60
    assert sum(len(d["turns"]) > 2 for d in dialogues) >= 10


def test_the_exam_has_thirty_questions_in_the_four_types():
    exam = lines(EXAMPLES / "exam.jsonl")
    assert len(exam) == 30
    types = collections.Counter(question["question_type"] for question in exam)
    assert set(types) == {"最佳选择题", "配伍选择题", "综合分析选择题", "多项选择题"}
    for question in exam:
        assert set(question["answer"]) <= set(question["options"])
        assert (len(question["answer"]) > 1) == (question["question_type"] == "多项选择题")


def test_the_questions_of_the_config_are_training_records(config):
    dataset = TokenDataset.open(config.data.tokens)
    tokenizer = load_tokenizer(Path(config.data.tokens).parent / "tokenizer.model")
    for question in config.questions:
        index = dataset.sources.index(question.source)
        documents = dataset.read(dataset.offsets("train")[index] + np.arange(dataset.count(question.source)))
        texts = [tokenizer.decode(tokens.tolist()) for tokens, _ in documents]
        assert any(text.startswith(f"<问>：{question.prompt}\n<答>：{question.expected}") for text in texts), question.prompt


def test_the_first_losses_are_the_golden_ones(config):
    golden = json.loads(GOLDEN.read_text())["losses"]
    np.testing.assert_allclose(first_losses(config), golden, rtol=1e-3)


@pytest.mark.slow
def test_the_whole_script_answers_and_draws(tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / name)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    subprocess.run(["examples/quickstart/run.sh"], cwd=tmp_path, env=environment, check=True)
    run = tmp_path / "runs" / "quickstart"
    answers = json.loads((run / "answers.json").read_text())
    assert [a["source"] for a in answers] == ["sft", "medical_books_cn", "medical_encyclopedia_cn"]
    assert all(answer["recall"] >= 0.8 for answer in answers), answers
    recall = json.loads((run / "recall.json").read_text())["sources"]
    assert len(recall) == 9
    assert answers_of_the_export(run / "hf", [a["prompt"] for a in answers]) == [a["answer"] for a in answers]
    assert (run / "report.html").stat().st_size > 100_000
    for plot in ("loss", "loss_per_source", "mixing", "learning_rate", "throughput", "recall"):
        assert (run / "plots" / f"{plot}.png").is_file()


def answers_of_the_export(folder: Path, questions: list[str]) -> list[str]:
    """Greedy answers by transformers, which knows nothing but the folder."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**prompt, do_sample=False, repetition_penalty=1.0, max_new_tokens=256)
        answers.append(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        losses = first_losses(make_quickstart_data(Path(folder)))
    GOLDEN.write_text(json.dumps({"config": "configs/quickstart.py", "steps": len(losses), "losses": losses}, indent=1) + "\n")
    print(losses)
