"""One row of a plan as readable text: what the model reads, what it learns, and from which records the row is made.

`huatuo-data inspect` prints it. What must hold: the row is shown exactly as training gets it, so that a mask which is off by one
token is seen before a run is spent on it. Next to read: `huatuo_jax/data/rows.py`, which makes the row.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.text import Text

from huatuo_jax.data.dialogue import IGNORED
from huatuo_jax.data.rows import PlannedRows, RowArrays
from huatuo_jax.data.tokenizers import Tokenizer

COLORS = ("cyan", "green", "yellow", "magenta", "blue", "red")


@dataclass(frozen=True)
class Segment:
    """One example of a row: its record, its place in the row, and its tokens before the cut; `targets` are those it teaches."""

    source: str
    record: int
    start: int
    tokens: int
    uncut: int
    targets: int

    def title(self, number: int) -> str:
        """A line that names it."""
        cut = f", cut from {self.uncut:,}" if self.uncut > self.tokens else ""
        return f"{number} · {self.source} · record {self.record:,} · {self.tokens:,} tokens{cut}, {self.targets:,} targets"

    def to_json(self) -> dict[str, Any]:
        """The fields that a report shows."""
        return {name: value for name, value in asdict(self).items() if name != "start"}


def segments_of(rows: PlannedRows, index: int, row: RowArrays) -> list[Segment]:
    """The examples of row `index`, in order; `row` is that row, int32 [sequence_length] arrays by name."""
    dataset, segments, start = rows.dataset, [], 0
    offsets = dataset.offsets("train")
    for doc in rows.plan.docs(index).tolist():
        source_id = int(np.searchsorted(offsets, doc, side="right")) - 1
        source, record = dataset.sources[source_id], doc - int(offsets[source_id])
        uncut = int(dataset.lengths(source)[record])
        tokens = min(uncut, rows.sequence_length)
        # A target stands one place before its token, since rows are shifted: those of tokens 3 to 5 are at places 2 to 4.
        targets = int(np.count_nonzero(row["targets"][max(start - 1, 0) : start + tokens - 1] != IGNORED))
        segments.append(Segment(source, record, start, tokens, uncut, targets))
        start += tokens
    return segments


def render(row: RowArrays, start: int, stop: int, tokenizer: Tokenizer, color: str) -> Text:
    """The text of row[start:stop]; targets in `color`, or between « and » if it is ""."""
    text = Text()
    tokens = row["tokens"]
    # The targets unshifted again: the token that should stand in place of each token.
    targets = np.concatenate([[IGNORED], row["targets"][:-1]])
    for begin, end, kind in _runs(tokens[start:stop], targets[start:stop]):
        piece = _decoded(tokens, start, start + begin, start + end, tokenizer)
        if kind == "replaced":
            instead = int(targets[start + begin])
            name = "EOS" if instead == tokenizer.eos_id else tokenizer.id_to_piece(instead)
            text.append(f"⟨→{name}⟩", style=f"bold reverse {color}" if color else "")
            text.append(piece, style="dim" if color else "")
        elif kind == "target":
            text.append(piece if color else f"«{piece}»", style=f"bold {color}" if color else "")
        else:
            text.append(piece, style="dim" if color else "")
    return text


def _runs(tokens: np.ndarray, targets: np.ndarray) -> list[tuple[int, int, str]]:
    """Stretches (start, stop, kind) of one kind: "read", "target", or "replaced" (another token is the target; one at a time).

    Tokens 5 6 7 8 5 with targets - - 7 8 2 ("-" is -100): (0, 2, "read"), (2, 4, "target"), (4, 5, "replaced").
    """
    runs: list[tuple[int, int, str]] = []
    for i, (token, target) in enumerate(zip(tokens.tolist(), targets.tolist(), strict=True)):
        kind = "read" if target == IGNORED else "target" if target == token else "replaced"
        if runs and runs[-1][2] == kind and kind != "replaced":
            runs[-1] = (runs[-1][0], i + 1, kind)
        else:
            runs.append((i, i + 1, kind))
    return runs


def _decoded(tokens: np.ndarray, start: int, begin: int, end: int, tokenizer: Tokenizer) -> str:
    """Text of tokens[begin:end] as it reads within the example that begins at `start`; end tokens are written out.

    Decoding the stretch alone would lose its leading space.
    """
    text, first = "", begin
    # Decoders drop the end token, so the text is decoded up to each one, and what is new is appended.
    for i in range(begin, end + 1):
        if i == end or tokens[i] == tokenizer.eos_id:
            before, whole = tokenizer.decode(tokens[start:first].tolist()), tokenizer.decode(tokens[start:i].tolist())
            text += whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens[first:i].tolist())
            text += "⟨EOS⟩" if i < end else ""
            first = i + 1
    return text
