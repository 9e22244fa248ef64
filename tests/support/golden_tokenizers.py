"""Two tokenizers of 2,000 pieces that the repository carries, so that a plain clone can check token ids; and some of their ids.

`tests/golden/tokenizer.model` is what `huatuo-data tokenizer train` makes: identity normalisation, no dummy prefix, the marks of
the dialogue format as symbols; Baichuan2's two chat tokens are further symbols. `tests/golden/dummy_prefix.model` is of Llama 2's
kind: a "▁" before every text, no symbols, marks and line breaks spelled in characters and bytes. Both learn from the texts of
examples/quickstart and from four greetings, the words of the dialogues that tests work out by hand: each becomes one piece.

    python -m tests.support.golden_tokenizers

writes both again, byte for byte the same (`tests/data_tools/test_tokenizer_train.py` checks it). The ids below belong to them.
Fixtures of `tests/conftest.py` open these tokenizers, and the released ones beside them where the real data is.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from data_tools.tokens.tokenizer_training import find_texts, read_sentences, train_tokenizer

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"
FILES = {"golden": GOLDEN / "tokenizer.model", "golden dummy prefix": GOLDEN / "dummy_prefix.model"}
"""By the names that the fixture `tokenizer_named` takes."""

VOCABULARY = 2000
GREETINGS = ("你好", "好的", "谢谢", "再见")


@dataclass(frozen=True)
class KnownIds:
    """Ids of one vocabulary, read off its pieces once: what expected tokens are put together from.

    Attributes:
      ask, answer, ask_again: of "<问>：", "\\n<答>：" and "\\n<问>：" in front of a text.
      hello, good, thanks, bye: of 你好, 好的, 谢谢 and 再见, each one token, in the middle of a text.
      user, assistant: of Baichuan2's chat tokens.
    """

    ask: list[int]
    answer: list[int]
    ask_again: list[int]
    hello: int
    good: int
    thanks: int
    bye: int
    user: int
    assistant: int


KNOWN_IDS = {
    "golden": KnownIds([4], [3, 5], [3, 4], 393, 396, 398, 394, 6, 7),
    "baichuan2": KnownIds(
        [92655, 92614, 92574, 70], [5, 92655, 93140, 92574, 70], [5, 92655, 92614, 92574, 70], 16829, 2015, 6137, 20020, 195, 196
    ),
}


def golden_texts() -> list[str]:
    """Sentences of the quickstart's texts, and the greetings often enough to become pieces."""
    quickstart = REPOSITORY / "examples" / "quickstart"
    files = find_texts([str(quickstart / "sft.jsonl"), str(quickstart / "corpus" / "*.jsonl")])
    return [*read_sentences(files), *GREETINGS * 20]


def write_golden_tokenizers(folder: Path) -> None:
    """Trains both and writes them under the names that they have in `tests/golden`."""
    train_tokenizer(golden_texts(), VOCABULARY, folder / "tokenizer.model", symbols=["<reserved_106>", "<reserved_107>"])
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(golden_texts()),
        model_writer=content,
        model_type="bpe",
        vocab_size=VOCABULARY,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        minloglevel=3,
    )
    (folder / "dummy_prefix.model").write_bytes(content.getvalue())


if __name__ == "__main__":
    write_golden_tokenizers(GOLDEN)
