"""Tokens and money: what is spent, what requests in flight may still take, and whether one more request fits under the caps.

The client asks `Budget` before each request and tells it afterwards what the request took. What must hold: the caps are never
passed, whatever the endpoint answers. So a request is counted with the most that it can take until its true usage is known; near
a cap fewer requests are in flight together.

    Cap 1,000 tokens, 700 spent, a request takes at most 250. The first goes out (700 + 250), the second waits (700 + 2 × 250).
    The first took 40: now the second fits (740 + 250). If it takes 100, a third does not fit (840 + 250): the run stops.

Next to read: `client.py`.
"""

import asyncio
from dataclasses import dataclass

from huatuo_jax.chat_client.calls import Messages, Usage
from huatuo_jax.config import require
from huatuo_jax.errors import StoppedError

PER_CHINESE, PER_OTHER = 1.0, 0.25
"""Tokens per Chinese and per other character: on the high side of today's tokenizers (0.6 to 1.2, 0.2 to 0.25)."""
PER_MESSAGE = 8
"""Tokens that the endpoint's own chat format adds to a message."""


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in whatever currency the caps are given."""

    prompt: float = 0.0
    output: float = 0.0

    def cost(self, usage: Usage) -> float:
        """What so many tokens cost."""
        return (usage.prompt * self.prompt + usage.output * self.output) / 1e6


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


class Budget:
    """Lets a request go out only if the caps hold even if it, and all that are in flight, take the most they can.

    Attributes:
      spent: tokens of all runs of the ledger.
    """

    def __init__(self, caps: Caps, spent: Usage | None = None) -> None:
        self.caps, self.spent, self._reserved = caps, spent or Usage(), Usage()
        self._changed = asyncio.Event()  # wakes those who wait when a request has ended

    @property
    def cost(self) -> float:
        """Money spent."""
        return self.caps.prices.cost(self.spent)

    async def reserve(self, most: Usage) -> None:
        """Waits until a request that takes at most so much fits.

        Raises:
          StoppedError: it does not fit although nothing else is in flight.
        """
        while excess := self._excess(most):
            # Nothing in flight can free anything any more, so waiting would never end.
            if self._reserved == Usage():
                raise StoppedError(
                    f"the budget is reached: {excess}; every answer is kept: give the same command with a larger cap to continue"
                )
            self._changed.clear()
            await self._changed.wait()
        self._reserved += most

    def settle(self, most: Usage, used: Usage) -> None:
        """Replaces what was reserved for a request by what it really took."""
        self._reserved -= most
        self.spent += used
        self._changed.set()

    def _excess(self, most: Usage) -> str:
        """Which cap one more request might pass, in words; "" if none."""
        caps, total = self.caps, self.spent + self._reserved + most
        if caps.tokens is not None and total.total > caps.tokens:
            return (
                f"{self.spent.total:,} tokens are spent and the next call may take {most.total:,}; --max-tokens {caps.tokens:,}"
            )
        if caps.cost is not None and caps.prices.cost(total) > caps.cost:
            return f"{self.cost:.4f} is spent and the next call may cost {caps.prices.cost(most):.4f}; --max-cost {caps.cost}"
        return ""


def estimated_tokens(text: str) -> float:
    """Tokens of a text, by its characters."""
    # Chinese characters take three bytes in UTF-8, nearly all others of our corpora one.
    chinese = (len(text.encode("utf-8", "replace")) - len(text)) // 2
    return PER_CHINESE * chinese + PER_OTHER * (len(text) - chinese)


def estimated_usage(messages: Messages, limit: int, text: str | None = None) -> Usage:
    """Tokens of a request that nobody counted; without its text, one half as long as the prompt is assumed."""
    prompt = sum(PER_MESSAGE + estimated_tokens(message["content"]) for message in messages)
    # A request that timed out or broke may have been answered and billed; charging nothing would let a run pass its caps.
    output = prompt / 2 if text is None else estimated_tokens(text)
    return Usage(round(prompt), min(limit, round(output)))


def most_usage(messages: Messages, limit: int) -> Usage:
    """More tokens than a request can take: vocabularies of bytes need at most one token a byte."""
    # An upper limit and no estimate: it decides whether a cap may be passed.
    prompt = sum(2 * PER_MESSAGE + len(message["content"].encode("utf-8", "replace")) for message in messages)
    return Usage(prompt, limit)
