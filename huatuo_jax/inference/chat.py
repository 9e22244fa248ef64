"""A conversation with a model: its history within the context, and the loop of `huatuo chat` that reads and prints it.

`Conversation` renders history and question in the model's dialogue format, as training did, and streams the answer from the
engine. What must hold: the model reads what the person sees, so when the context is full, whole questions and answers are
dropped, the oldest first, and a line says how many. `talk` is the part that knows a terminal. Next to read: `engine.py`.
"""

import contextlib
import sys
from collections.abc import Generator
from dataclasses import replace

from huatuo_jax.config import require
from huatuo_jax.data.dialogue import prompt_tokens
from huatuo_jax.errors import ConfigError, RecordError
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.model import Model
from huatuo_jax.inference.requests import Request
from huatuo_jax.inference.sampling import Sampling

COMMANDS = """/clear   forget the conversation
/exit    leave (Ctrl-D too)
/help    this list"""


class Conversation:
    """Turns so far and how the next answer is made.

    Attributes:
      turns: user, assistant, user, … of what is kept.
      dropped: turns that `ask` last left out of the prompt, for good.
    """

    def __init__(self, model: Model, engine: Engine, sampling: Sampling, max_new_tokens: int, stop: tuple[str, ...] = ()) -> None:
        self.turns: list[str] = []
        self.dropped = 0
        self._model, self._engine = model, engine
        self._sampling, self._max_new_tokens, self._stop = sampling, max_new_tokens, stop
        self._asked = 0

    def clear(self) -> None:
        """Forgets all turns."""
        self.turns = []

    def ask(self, question: str) -> Generator[str, None, None]:
        """The pieces of the answer. A stream that is closed in the middle leaves what it gave out as the answer.

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
            # Of a stopped answer too: turns must alternate, and the model should know what the person has read.
            self.turns.append(answer)

    def _fit(self, question: str) -> list[int]:
        """Token ids of history and question, without the oldest turns where they would leave no room for the answer."""
        room = self._model.config.max_length - self._max_new_tokens
        self.dropped = 0
        while True:
            kept = self.turns[self.dropped :]
            prompt = prompt_tokens([*kept, question], self._model.tokenizer, self._model.dialogue_format)
            if len(prompt) <= room:
                self.turns = kept
                return prompt
            require(
                bool(kept),
                f"the question has {len(prompt)} tokens; with {self._max_new_tokens} for the answer the context of "
                f"{self._model.config.name} holds {room}: shorten it, or start with a lower --max-new-tokens",
            )
            self.dropped += 2  # a question and its answer: a dialogue begins with a question


def talk(conversation: Conversation) -> int:
    """Reads questions from stdin and prints the answers until the input ends; returns the number of questions."""
    asked = 0
    while True:
        line = _read_line()
        if line is None or line == "/exit":
            return asked
        if line == "/clear":
            conversation.clear()
            print("the conversation is forgotten")
        elif line == "/help":
            print(COMMANDS)
        elif line.startswith("/"):
            print(f"no command {line.split()[0]}; there are:\n{COMMANDS}")
        elif line:
            asked += _answer(conversation, line)


def _read_line() -> str | None:
    """The next line, None at the end of the input; "" where Ctrl-C was pressed at the prompt or the line is not text."""
    terminal = sys.stdin.isatty()
    try:
        if terminal:
            return input("问> ").strip()
        # As bytes, so that one line that is not UTF-8 costs that line and not the program.
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8").strip() if line else None
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print("\n/exit or Ctrl-D leaves")
        return ""
    except UnicodeDecodeError as error:
        print(f"that line is not valid UTF-8 (byte {error.start + 1}); it is left out", flush=True)
        return ""


def _answer(conversation: Conversation, question: str) -> bool:
    """Prints one answer as it comes; returns whether the question could be asked."""
    try:
        # Closed at once when Ctrl-C stops it: only then does the conversation note the answer so far.
        with contextlib.closing(conversation.ask(question)) as pieces:
            for place, piece in enumerate(pieces):
                if place == 0 and conversation.dropped:
                    print(f"(the context is full: the {conversation.dropped} oldest turns are dropped)")
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(" … stopped", flush=True)
    except (ConfigError, RecordError) as error:
        print(f"error: {error}", flush=True)
        return False
    return True
