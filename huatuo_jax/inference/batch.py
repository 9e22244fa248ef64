"""Between files and engine: a prompt becomes a request, its answer a line of the output."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.errors import ConfigError, DataError, RecordError
from huatuo_jax.inference.answer_file import AnswerFile
from huatuo_jax.inference.loading import Model
from huatuo_jax.inference.prompt_file import Prompt
from huatuo_jax.inference.request import Answer, Request
from huatuo_jax.inference.sampling import Sampling


def make_request(prompt: Prompt, model: Model, sampling: Sampling, max_new_tokens: int, stop: Sequence[str]) -> Request:
    """The request of a prompt; its seed follows from the given one and the id, so order and reruns change no answer.

    Raises:
      DataError: the dialogue format cannot express the prompt; names file and line.
    """
    try:
        ids = prompt_tokens(prompt.turns, model.tokenizer, model.template, prompt.system)
    except RecordError as error:
        raise DataError(f"{prompt.place}: {error}") from error
    own = dataclasses.replace(sampling, seed=zlib.crc32(f"{sampling.seed} {prompt.id}".encode()))
    return Request(ids, max_new_tokens, own, tuple(stop), prompt.place)


def answer_line(prompt: Prompt, request: Request, answer: Answer) -> dict[str, Any]:
    """A line of the output: the prompt's own fields, then ours."""
    return {
        **prompt.fields,
        "id": prompt.id,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": len(request.prompt),
        "answer_tokens": len(answer.tokens),
    }


def check_unchanged(prompts: Sequence[Prompt], out: AnswerFile) -> None:
    """Raises ConfigError if an answer in the file belongs to a prompt that reads otherwise now."""
    for prompt in prompts:
        line = out.done.get(prompt.id, {})
        for name in ("prompt", "turns", "system"):
            if line and line.get(name) != prompt.fields.get(name):
                raise ConfigError(
                    f"{prompt.place}: {out.path} has an answer for id {prompt.id!r}, but to another {name}; give the prompts "
                    "other ids, choose another file or remove it"
                )
