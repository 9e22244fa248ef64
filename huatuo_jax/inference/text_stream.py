"""Token ids in, one after another; text out as soon as it is certain: no half character, no part of a stop string."""

from collections.abc import Sequence

from huatuo_jax.config import require
from huatuo_jax.data.tokenizers import Tokenizer

INCOMPLETE = "�"
"""What tokenizers write for bytes that do not (yet) form a character."""


class TextStream:
    """The text of one answer.

    Attributes:
      stopped: a stop string was met; the text ends before it, and further tokens are ignored.
      text: all that was given out so far.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        require("" not in stop, "a stop string is empty; leave it out")
        self.stopped = False
        self.text = ""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        # Text of ids[:_read] is known. Decoding starts at _context, for a token's text may depend on the one before it.
        self._context = self._read = 0
        self._held = ""

    def push(self, token: int) -> str:
        """The text that has become certain with this token; often "", as while a character's bytes are incomplete."""
        # A model's vocabulary may be larger than its tokenizer's (padded): such an id has no text.
        if self.stopped or token >= self._tokenizer.vocab_size:
            return ""
        self._ids.append(token)
        return self._release(self._decode(whole=False), whole=False)

    def finish(self) -> str:
        """The rest of the text: no more tokens will come."""
        return "" if self.stopped else self._release(self._decode(whole=True), whole=True)

    def _decode(self, whole: bool) -> str:
        known = self._tokenizer.decode(self._ids[self._context : self._read])
        text = self._tokenizer.decode(self._ids[self._context :])
        if text.endswith(INCOMPLETE) and not whole:
            return ""
        self._context, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _release(self, new: str, whole: bool) -> str:
        text = self._held + new
        places = [place for place in map(text.find, self._stop) if place >= 0]
        if places:
            self.stopped, certain = True, min(places)
        else:
            certain = len(text) if whole else len(text) - self._possible_stop(text)
        self._held = text[certain:]
        self.text += text[:certain]
        return text[:certain]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)
