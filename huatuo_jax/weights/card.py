"""The model card of an exported folder: README.md with YAML front matter, from the facts of the checkpoint and the run's metrics.

The last file that `hf_write.py` writes. What must hold: every sentence follows from recorded facts or from what the user gave,
and a section that has nothing to say of this model (a base has no recipe, no mixture, no figures) is left out. Next to read:
`hf_write.py`, which writes everything else.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from huatuo_jax import __version__
from huatuo_jax.io.files import read_log
from huatuo_jax.weights.hf_names import Layout
from huatuo_jax.weights.open import StoredModel

HEAD = """\
# {name}

> **A research artefact, not a medical device and not an adviser.** Its answers can be wrong, incomplete or dangerous.
> It must not decide on a diagnosis, a treatment, a law case or an investment, and replaces no professional's advice.

{parameters} parameters ({model.num_layers} layers, hidden size {model.hidden_size}, vocabulary {model.vocab_size:,}), \
exported in {dtype} as a {layout} model
by huatuo-jax {version}, a JAX reimplementation of [HuatuoGPT-II](https://arxiv.org/abs/2311.09774).
"""

LOADING = """\
## Loading

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder{remote})
model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto"{remote})
messages = [{{"role": "user", "content": {question}}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""

REMOTE_CODE = """
transformers has no Baichuan model, so the folder brings its own modelling file: read it before you trust it.
"""

NO_FORMAT = """\
## Prompt format

A base model that was not trained on dialogues: it continues text.
"""

PROMPT_FORMAT = """\
## Prompt format

The dialogue format `{format}`; `tokenizer.apply_chat_template` writes it.
{example}
`tokenizer.json` gives the ids of the tokenizer that the model was trained with. With `split_special_tokens` (on where
the format allows it) a text that spells `</s>` stays plain characters: to append the end token, append its id.
"""

HUATUO_EXAMPLE = """
```text
<问>：first question
<答>：first answer
<问>：second question
<答>：
```

No begin token, nothing between the turns but a line break; the model ends an answer with its end token.
"""

RECIPE = """\
## Recipe

One run: the domain's passages as questions and answers, mixed with dialogues by priority sampling, loss on answers.

| | |
|---|---|
| optimizer | AdamW, β {optimizer[beta1]}/{optimizer[beta2]}, weight decay {optimizer[weight_decay]} |
| learning rate | {optimizer[learning_rate]:g}, schedule {optimizer[schedule]}, warm-up {optimizer[warmup]:g} |
| gradient clipping | {optimizer[clip_norm]:g} |
| batch | {batch_size} rows of {data[sequence_length]:,} tokens, packing {data[packing]}, loss {loss} |
| precision | computed in {compute[dtype]}, parameters in {stored} |
"""

MIXTURE = """\
## Data mixture

Records are drawn without replacement, with a probability proportional to their priority: high priorities come early.

| source | priority | epochs |
|---|---:|---:|
"""


@dataclass(frozen=True)
class CardFacts:
    """What the card says.

    Attributes:
      source: the checkpoint. layout, dtype: of the exported weights.
      license, name, base_model: as the user gave them; "" = not given.
    """

    source: StoredModel
    layout: Layout
    dtype: str
    license: str
    name: str
    base_model: str


def model_card(facts: CardFacts) -> str:
    """README.md: what the model is, how to load and prompt it, and, if it was trained here, recipe, mixture and figures."""
    # A base has the facts of its import, and none of a training: no optimizer, no mixture.
    sections = [_front_matter(facts), _head(facts), _loading(facts), _prompt_format(facts)]
    config = facts.source.meta["config"]
    if "optimizer" in config:
        sections.append(RECIPE.format(**config, stored=", ".join(sorted(facts.source.stored_dtypes()))))
        if config.get("init"):
            sections[-1] += f"| started from | `{config['init']}` |\n"
    mixture: dict[str, Any] = config.get("data", {}).get("mixture", {})
    if mixture:
        lines = [f"| {source} | {mix['priority']:g} | {mix['epochs']:g} |\n" for source, mix in mixture.items()]
        sections.append(MIXTURE + "".join(lines))
    if "optimizer" in config:
        sections.append(_figures(facts.source))
    return "\n".join(sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    # JSON strings are YAML strings, whatever the user typed.
    lines = ["---", f"license: {json.dumps(facts.license, ensure_ascii=False)}"]
    if facts.base_model:
        lines.append(f"base_model: {json.dumps(facts.base_model, ensure_ascii=False)}")
    if facts.source.dialogue_format() == "huatuo":
        lines.append("language: [zh, en]")
    tags = "tags: [huatuo-jax, domain-adaptation]"
    return "\n".join([*lines, "library_name: transformers", "pipeline_tag: text-generation", tags, "---"])


def _head(facts: CardFacts) -> str:
    model = facts.source.config
    # Counted from the checkpoint's facts, so that the card needs no weights. A fingerprint reads "float32[2,3]:1f0c93aa".
    shapes = [text.split("[")[1].split("]")[0].split(",") for text in facts.source.meta["fingerprints"]["params"].values()]
    parameters = _size(sum(math.prod(map(int, shape)) for shape in shapes))
    text = HEAD.format(
        name=facts.name, parameters=parameters, model=model, dtype=facts.dtype, layout=facts.layout.title(), version=__version__
    )
    if facts.layout == "llama" and model.head == "norm":
        text += "The rows of the output matrix were normalised in training (NormHead); here they are stored normalised.\n"
    return text


def _loading(facts: CardFacts) -> str:
    questions = facts.source.meta["config"].get("questions") or [{"prompt": "你好，你能做什么？"}]
    remote = ", trust_remote_code=True" if facts.layout == "baichuan" else ""
    text = LOADING.format(remote=remote, question=json.dumps(questions[0]["prompt"], ensure_ascii=False))
    return text + REMOTE_CODE if remote else text


def _prompt_format(facts: CardFacts) -> str:
    name = facts.source.dialogue_format()
    return PROMPT_FORMAT.format(format=name, example=HUATUO_EXAMPLE if name == "huatuo" else "") if name else NO_FORMAT


def _figures(source: StoredModel) -> str:
    """The last figures of the run up to the checkpoint's step."""
    # The run may have gone on after the checkpoint that is exported; what came later is not about these weights.
    lines = [line for line in read_log(source.root / "metrics.jsonl") if line["step"] <= source.step]
    trained = [line for line in lines if line.get("tokens") is not None]
    held_out = [line["eval_loss"] for line in lines if line.get("eval_loss") is not None]
    losses = [line["loss"] for line in trained if line.get("loss") is not None]
    total = source.meta.get("total_steps")
    figures = {"steps": f"{source.step:,}" + (f" of {total:,}" if total else "")}
    if trained:
        figures |= {"tokens": f"{trained[-1]['tokens']:,}", "target tokens": f"{trained[-1]['target_tokens']:,}"}
    if losses:
        figures["training loss, last logged"] = f"{losses[-1]:.4f}"
    if held_out:
        figures["held-out loss, last"] = f"{held_out[-1]:.4f}"
    rows = "".join(f"| {name} | {figure} |\n" for name, figure in figures.items())
    return f"## Training figures\n\n| | |\n|---|---:|\n{rows}"


def _size(parameters: int) -> str:
    for unit, name in ((1e9, " B"), (1e6, " M")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{name}"
    return f"{parameters:,}"
