"""Tokens and money: what is spent, what is promised to requests in flight, and whether one more request fits under the caps."""

import asyncio
from dataclasses import dataclass

from huatuo_jax.chat_client.calls import Messages
from huatuo_jax.config import require
from huatuo_jax.errors import StoppedError

PER_CHINESE, PER_OTHER = 1.0, 0.25
"""Tokens per Chinese and per other character: on the high side of today's tokenizers (0.6 to 1.2, 0.2 to 0.25)."""
PER_MESSAGE = 8


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in whatever currency the caps are given."""

    prompt: float = 0.0
    output: float = 0.0

    def cost(self, prompt_tokens: float, output_tokens: float) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Caps:
    """The most that all runs of a ledger together may spend; None = no cap."""

    tokens: int | None = None
    cost: float | None = None
    prices: Prices = Prices()

    def __post_init__(self) -> None:
        require(self.tokens is None or self.tokens > 0, f"--max-tokens is {self.tokens}; it must be above 0")
        require(self.cost is None or self.cost > 0, f"--max-cost is {self.cost}; it must be above 0")
        require(min(self.prices.prompt, self.prices.output) >= 0, "--price-in and --price-out must not be negative")
        require(
            self.cost is None or self.prices != Prices(),
            "--max-cost needs the endpoint's prices: give --price-in and --price-out, per million tokens",
        )


@dataclass(frozen=True)
class Usage:
    """Tokens of one request or of many."""

    prompt: int = 0
    output: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.output + other.output)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt - other.prompt, self.output - other.output)


@dataclass(frozen=True)
class TokenRates:
    """Tokens per character."""

    chinese: float = PER_CHINESE
    other: float = PER_OTHER

    def tokens(self, text: str) -> float:
        """The estimated tokens of a text."""
        # Chinese characters take three bytes in UTF-8, nearly all others of our corpora one.
        chinese = (len(text.encode("utf-8", "replace")) - len(text)) // 2
        return self.chinese * chinese + self.other * (len(text) - chinese)

    def usage(self, messages: Messages, limit: int, answer: str | None = None) -> Usage:
        """The estimated usage of a call; without its answer, one as long as half its prompt."""
        prompt = sum(PER_MESSAGE + self.tokens(message["content"]) for message in messages)
        output = prompt / 2 if answer is None else self.tokens(answer)
        return Usage(round(prompt), min(limit, round(output)))

    def most(self, messages: Messages) -> int:
        """More tokens than the messages can have: byte-level vocabularies need at most one a byte."""
        return sum(2 * PER_MESSAGE + len(message["content"].encode("utf-8", "replace")) for message in messages)


class Budget:
    """Lets a request go out only if the caps hold even in its worst case, together with all that are in flight."""

    def __init__(self, caps: Caps, spent: Usage | None = None) -> None:
        self.caps, self.spent, self._promised = caps, spent or Usage(), Usage()
        self._changed = asyncio.Event()

    @property
    def cost(self) -> float:
        """Money spent."""
        return self.caps.prices.cost(self.spent.prompt, self.spent.output)

    async def reserve(self, worst: Usage) -> None:
        """Waits until the request fits.

        Raises:
          StoppedError: it does not fit although nothing else is in flight.
        """
        while (over := self._over(worst)) is not None:
            if self._promised == Usage():
                raise StoppedError(
                    f"the budget is reached: {over}; every answer is kept: give the same command with a larger cap to continue"
                )
            self._changed.clear()
            await self._changed.wait()
        self._promised += worst

    def settle(self, worst: Usage, used: Usage) -> None:
        """Replaces a promise by what the request really took."""
        self._promised -= worst
        self.spent += used
        self._changed.set()

    def _over(self, worst: Usage) -> str | None:
        total = self.spent + self._promised + worst
        caps = self.caps
        if caps.tokens is not None and total.prompt + total.output > caps.tokens:
            spent = self.spent.prompt + self.spent.output
            most = worst.prompt + worst.output
            return f"{spent:,} tokens are spent and the next call may take {most:,}; --max-tokens {caps.tokens:,}"
        if caps.cost is not None and caps.prices.cost(total.prompt, total.output) > caps.cost:
            next_cost = caps.prices.cost(worst.prompt, worst.output)
            return f"{self.cost:.4f} is spent and the next call may cost {next_cost:.4f}; --max-cost {caps.cost}"
        return None
