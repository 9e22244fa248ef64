"""A conversation: questions in, streamed answers out; the oldest turns are dropped when the context is full."""

from collections.abc import Generator
from dataclasses import replace

from huatuo_jax.config import require
from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.loading import Model
from huatuo_jax.inference.request import Request
from huatuo_jax.inference.sampling import Sampling


class Conversation:
    """Turns so far and how the next answer is made.

    Attributes:
      turns: user, assistant, user, … of what was said and kept.
      dropped: turns that `ask` last left out of the prompt, for good.
    """

    def __init__(self, model: Model, engine: Engine, sampling: Sampling, max_new_tokens: int, stop: tuple[str, ...] = ()) -> None:
        self.turns: list[str] = []
        self.dropped = 0
        self._model, self._engine = model, engine
        self._sampling, self._max_new_tokens, self._stop = sampling, max_new_tokens, stop
        self._asked = 0

    def clear(self) -> None:
        """Forgets everything that was said."""
        self.turns = []

    def ask(self, question: str) -> Generator[str, None, None]:
        """The pieces of the answer. A stream that is left in the middle leaves what it gave out as the answer.

        Raises:
          ConfigError: the question alone does not fit the context.
          RecordError: it is not valid Unicode.
        """
        prompt = self._fit(question)
        # Each answer has draws of its own, or the same question would get the same answer.
        sampling = replace(self._sampling, seed=(self._sampling.seed + self._asked) % 2**32)
        self._asked += 1
        request = Request(prompt, self._max_new_tokens, sampling, self._stop, "the question")
        self.turns.append(question)
        answer = ""
        try:
            for piece in self._engine.stream(request):
                answer += piece
                yield piece
        finally:
            self.turns.append(answer)

    def _fit(self, question: str) -> list[int]:
        """Token ids of history and question, without the oldest turns where they would leave no room for the answer."""
        room = self._model.config.max_length - self._max_new_tokens
        self.dropped = 0
        while True:
            kept = self.turns[self.dropped :]
            prompt = prompt_tokens([*kept, question], self._model.tokenizer, self._model.template)
            if len(prompt) <= room:
                self.turns = kept
                return prompt
            require(
                bool(kept),
                f"the question has {len(prompt)} tokens; with {self._max_new_tokens} for the answer the context of "
                f"{self._model.config.name} holds {room}: shorten it, or start with a lower --max-new-tokens",
            )
            self.dropped += 2
