"""A trained run, exported, answers through transformers as `huatuo ask` does, and its card tells of the run."""

import json
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huatuo_jax import cli
from huatuo_jax.data.tokenizers import load_tokenizer

QUESTIONS = ["甘草第1味有什么功效？", "陈皮第3味有什么功效？", "没有学过的问题"]


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "hf"
    assert cli.main(["convert", "to-hf", str(finished_run), str(folder), "--quiet"]) == 0
    return folder


def test_greedy_answers_are_those_of_huatuo_ask(finished_run, exported, tmp_path):
    report = tmp_path / "answers.json"
    asked = ["ask", str(finished_run), *QUESTIONS, "--max-new-tokens", "24", "--json", str(report), "--quiet"]
    assert cli.main(asked) == 0
    ours = [entry["answer"] for entry in json.loads(report.read_text())["answers"]]
    ours_of = load_tokenizer(exported).decode
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    theirs = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**prompt, do_sample=False, repetition_penalty=1.0, max_new_tokens=24)
        # So short a run answers in torn characters, which the two libraries' decoders write differently: one decodes both.
        theirs.append(ours_of(output[0, prompt["input_ids"].shape[1] :].tolist()).strip())
    assert theirs == ours


def test_the_card_tells_of_the_run(exported):
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "| medical_books_cn | 4 | 1 |" in card and "| sft | 1 | 2 |" in card
    assert "| steps | 14 of 14 |" in card
    assert "| held-out loss, last |" in card and "| training loss, last logged |" in card
