"""The facts of an exported checkpoint in, its model card (README.md with YAML front matter) out."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from huatuo_jax import __version__
from huatuo_jax.io.jsonl import read_log
from huatuo_jax.weights.hf_names import Layout
from huatuo_jax.weights.open import StoredModel

PAPER = "[HuatuoGPT-II](https://arxiv.org/abs/2311.09774)"

TAGS = ("huatuo-jax", "domain-adaptation")


@dataclass(frozen=True)
class CardFacts:
    """What the card tells of.

    Attributes:
      source: the checkpoint. layout, dtype: of the exported weights.
      license, name, base_model: as the user gave them; "" = not told.
    """

    source: StoredModel
    layout: Layout
    dtype: str
    license: str
    name: str
    base_model: str


def model_card(facts: CardFacts) -> str:
    """README.md: what the model is, how to load and prompt it, and, if it was trained here, recipe, mixture and figures."""
    sections = (_front_matter, _head, _load, _prompt, _recipe, _mixture, _figures)
    return "\n".join(line for section in sections for line in section(facts)) + "\n"


def _front_matter(facts: CardFacts) -> Iterator[str]:
    # JSON strings are YAML strings, whatever the user typed.
    yield "---"
    yield f"license: {json.dumps(facts.license, ensure_ascii=False)}"
    if facts.base_model:
        yield f"base_model: {json.dumps(facts.base_model, ensure_ascii=False)}"
    if facts.source.meta["template"] == "huatuo":
        yield "language: [zh, en]"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield f"tags: [{', '.join(TAGS)}]"
    yield "---"


def _head(facts: CardFacts) -> Iterator[str]:
    model = facts.source.config
    parameters = sum(_count(text) for text in facts.source.meta["fingerprints"]["params"].values())
    yield f"# {facts.name}"
    yield ""
    yield "> **A research artefact, not a medical device and not an adviser.** Its answers can be wrong, incomplete or dangerous."
    yield "> It must not decide on a diagnosis, a treatment, a law case or an investment, and replaces no professional's advice."
    yield ""
    shape = f"{model.num_layers} layers, hidden size {model.hidden_size}, vocabulary {model.vocab_size:,}"
    yield f"{_size(parameters)} parameters ({shape}), exported in {facts.dtype} as a {facts.layout.title()} model"
    yield f"by huatuo-jax {__version__}, a JAX reimplementation of {PAPER}."
    if facts.layout == "llama" and model.head == "norm":
        yield "The rows of the output matrix were normalised in training (NormHead); here they are stored normalised."
    yield ""


def _load(facts: CardFacts) -> Iterator[str]:
    remote = ", trust_remote_code=True" if facts.layout == "baichuan" else ""
    yield "## Loading"
    yield ""
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'folder = "."  # this folder'
    yield f"tokenizer = AutoTokenizer.from_pretrained(folder{remote})"
    yield f'model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto"{remote})'
    questions = facts.source.meta["config"].get("questions") or [{"prompt": "你好，你能做什么？"}]
    yield f'messages = [{{"role": "user", "content": {json.dumps(questions[0]["prompt"], ensure_ascii=False)}}}]'
    yield 'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)'
    yield "output = model.generate(**prompt)"
    yield 'print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))'
    yield "```"
    yield ""
    if remote:
        yield "transformers has no Baichuan model, so the folder brings its own modelling file: read it before you trust it."
        yield ""


def _prompt(facts: CardFacts) -> Iterator[str]:
    template = facts.source.meta["template"]
    yield "## Prompt format"
    yield ""
    if template is None:
        yield "A base model that was not trained on dialogues: it continues text."
        yield ""
        return
    yield f"The dialogue format `{template}`; `tokenizer.apply_chat_template` writes it."
    if template == "huatuo":
        yield ""
        yield "```text"
        yield "<问>：first question"
        yield "<答>：first answer"
        yield "<问>：second question"
        yield "<答>："
        yield "```"
        yield ""
        yield "No begin token, nothing between the turns but a line break; the model ends an answer with its end token."
    yield ""
    yield "`tokenizer.json` gives the ids of the tokenizer that the model was trained with. With `split_special_tokens` (on where"
    yield "the format allows it) a text that spells `</s>` stays plain characters: to append the end token, append its id."
    yield ""


def _recipe(facts: CardFacts) -> Iterator[str]:
    config = facts.source.meta["config"]
    if "optimizer" not in config:
        return
    optimizer, data, stored = config["optimizer"], config["data"], ", ".join(sorted(facts.source.stored_dtypes()))
    length = data["sequence_length"]
    yield "## Recipe"
    yield ""
    yield "One run: the domain's passages as questions and answers, mixed with dialogues by priority sampling, loss on answers."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| optimizer | AdamW, β {optimizer['beta1']}/{optimizer['beta2']}, weight decay {optimizer['weight_decay']} |"
    yield f"| learning rate | {optimizer['learning_rate']:g}, schedule {optimizer['schedule']}, warm-up {optimizer['warmup']:g} |"
    yield f"| gradient clipping | {optimizer['clip_norm']:g} |"
    yield f"| batch | {config['batch_size']} rows of {length:,} tokens, packing {data['packing']}, loss {config['loss']} |"
    yield f"| precision | computed in {config['compute']['dtype']}, parameters in {stored} |"
    if config.get("init"):
        yield f"| started from | `{config['init']}` |"
    yield ""


def _mixture(facts: CardFacts) -> Iterator[str]:
    mixture: dict[str, Any] = facts.source.meta["config"].get("data", {}).get("mixture", {})
    if not mixture:
        return
    yield "## Data mixture"
    yield ""
    yield "Records are drawn without replacement, with a probability proportional to their priority: high priorities come early."
    yield ""
    yield "| source | priority | epochs |"
    yield "|---|---:|---:|"
    for source, mix in mixture.items():
        yield f"| {source} | {mix['priority']:g} | {mix['epochs']:g} |"
    yield ""


def _figures(facts: CardFacts) -> Iterator[str]:
    if "optimizer" not in facts.source.meta["config"]:
        return
    step = facts.source.meta["step"]
    lines = [line for line in read_log(facts.source.root / "metrics.jsonl") if line["step"] <= step]
    trained = [line for line in lines if line.get("tokens") is not None]
    held_out = [line["eval_loss"] for line in lines if line.get("eval_loss") is not None]
    losses = [line["loss"] for line in trained if line.get("loss") is not None]
    total = facts.source.meta.get("total_steps")
    yield "## Training figures"
    yield ""
    yield "| | |"
    yield "|---|---:|"
    yield f"| steps | {step:,}" + (f" of {total:,}" if total else "") + " |"
    if trained:
        yield f"| tokens | {trained[-1]['tokens']:,} |"
        yield f"| target tokens | {trained[-1]['target_tokens']:,} |"
    if losses:
        yield f"| training loss, last logged | {losses[-1]:.4f} |"
    if held_out:
        yield f"| held-out loss, last | {held_out[-1]:.4f} |"
    yield ""


def _count(description: str) -> int:
    """Elements of an array described as "dtype[2,3]:sum"."""
    product = 1
    for size in description.split("[")[1].split("]")[0].split(","):
        product *= int(size)
    return product


def _size(parameters: int) -> str:
    for unit, name in ((1e9, " B"), (1e6, " M")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{name}"
    return f"{parameters:,}"
