"""`huatuo-data tokenizer train`: a SentencePiece model that keeps every character and works with the huatuo dialogue format.

Needed only where there is no base model, whose tokenizer one would take; `huatuo-data build` is next on the way. What must hold:
the same text gives the same bytes, a text decodes to itself, and the model is written only if the format works with it. The
library's defaults would break the second: see the options of `train_tokenizer`.
"""

import glob
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import SentencePieceTokenizer
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.io.files import open_bytes, written_aside
from huatuo_jax.io.jsonl import Fault, iterate_json

DIALOGUE_SYMBOLS = ("\n", "<问>：", "<答>：")
COMPRESSED = (".gz", ".xz", ".zst")
LONGEST_SENTENCE = 1000
"""Characters; SentencePiece silently drops sentences above 4,192 bytes."""
SAMPLE = 4096
"""Sentences that characters per token are measured on, at most twice as many."""
SEED = 42


@dataclass(frozen=True)
class TrainedTokenizer:
    """What a training came to; characters per token are measured on an even sample of its own sentences."""

    path: str
    fingerprint: str
    vocab_size: int
    sentences: int
    characters: int
    characters_per_token: float


def find_texts(patterns: Sequence[str]) -> list[Path]:
    """Files named by paths or globs, each once, sorted; ConfigError if a pattern matches none or another kind."""
    paths: set[Path] = set()
    for pattern in patterns:
        files = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
        if not files:
            folder = f"; it is a folder: give '{pattern.rstrip('/')}/**/*.jsonl'" if Path(pattern).is_dir() else ""
            raise ConfigError(f"no file matches {pattern!r}{folder}")
        paths.update(files)
    for path in paths:
        if _kind(path) not in (".txt", ".jsonl"):
            raise ConfigError(f"{path}: text is read from .txt and .jsonl, plain or as .gz, .xz or .zst")
    return sorted(paths)


def read_sentences(paths: Sequence[Path], on_read: Callable[[int], None] | None = None) -> Iterator[str]:
    """Lines of `.txt` files and of `title`, `text` and `turns` in `.jsonl` files, in pieces of at most 1,000 characters.

    Raises:
      DataError: a line is not UTF-8, not JSON or not an object; the file and line are named.
    """
    for path in paths:
        for text in _texts(path, on_read):
            for line in text.splitlines():
                for start in range(0, len(line), LONGEST_SENTENCE):
                    yield line[start : start + LONGEST_SENTENCE]


def train_tokenizer(
    sentences: Iterable[str],
    vocab_size: int,
    out: Path,
    *,
    model_type: str = "bpe",
    at_most: bool = False,
    limit: int = 0,
    symbols: Sequence[str] = (),
) -> TrainedTokenizer:
    """Trains a model and writes it to `out` if the huatuo format works with it. The same text gives the same bytes.

    Args:
      sentences: read once, never held in Python as a whole.
      at_most: take fewer pieces than `vocab_size` if the text has no more, instead of refusing.
      limit: learn from a random sample of so many sentences, above 100 (0 = all).
      symbols: further symbols that are single tokens, such as `<|im_start|>`; users' text cannot yield them.

    Raises:
      ConfigError: `vocab_size` is impossible for this text; the message names the limit.
      DataError: there is no text.
    """
    import sentencepiece

    watched = _Watched(sentences)
    content = io.BytesIO()
    sentencepiece.set_random_generator_seed(SEED)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(watched),
            model_writer=content,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=not at_most,
            input_sentence_size=limit,
            shuffle_input_sentence=limit > 0,
            # The marks of the format are single tokens that never merge with the text before or after them.
            user_defined_symbols=list(dict.fromkeys((*DIALOGUE_SYMBOLS, *symbols))),
            # Normalisation would turn `：` into `:` and drop line breaks; a dummy prefix and the removal of spaces alter answers.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            # A character that the text does not have becomes bytes, not "unknown"; a number becomes its digits.
            byte_fallback=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=3,
        )
    except Exception as error:
        raise watched.error or _explained(error, watched, vocab_size) from error
    if watched.error:
        raise watched.error
    with written_aside(out) as aside:
        aside.write_bytes(content.getvalue())
        tokenizer = SentencePieceTokenizer(str(aside))
        get_format("huatuo").check(tokenizer)
    tokens = sum(len(ids) for ids in tokenizer.encode_batch([("", sentence) for sentence in watched.sample]))
    return TrainedTokenizer(
        path=str(out),
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        sentences=watched.sentences,
        characters=watched.characters,
        characters_per_token=sum(map(len, watched.sample)) / tokens,
    )


class _Watched:
    """Passes sentences on to the trainer; counts them, keeps an even sample, and remembers an error of their source."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self._source = sentences
        self.sentences = self.characters = 0
        self.sample: list[str] = []
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        # Every stride-th sentence is kept; when twice too many are there, every other one goes and the stride doubles. So the
        # sample is even over the whole text, whose length is not known before.
        stride = 1
        try:
            for sentence in self._source:
                if self.sentences % stride == 0:
                    self.sample.append(sentence)
                    if len(self.sample) == 2 * SAMPLE:
                        self.sample, stride = self.sample[::2], 2 * stride
                self.sentences += 1
                self.characters += len(sentence)
                yield sentence
        except Exception as error:
            # The library's C++ loop would report it as a failure of its own.
            self.error = error


def _explained(error: Exception, watched: _Watched, vocab_size: int) -> Exception:
    # The library says what is possible, but not which of our options to change.
    message = str(error)
    if not watched.characters:
        return DataError("the files hold no text: .jsonl objects need `text`, `title` or `turns`")
    if limit := re.search(r"set it to a value <= (\d+)", message):
        return ConfigError(
            f"a vocabulary of {vocab_size} is too large for {watched.characters:,} characters of text: the largest possible is "
            f"{limit[1]}; ask for that (--vocab-size {limit[1]}), add text, or allow fewer pieces (--at-most)"
        )
    if limit := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return ConfigError(
            f"a vocabulary of {vocab_size} is too small: the text's characters, 256 bytes and the dialogue symbols alone "
            f"take {limit[1]}; ask for more (--vocab-size {int(limit[1]) * 2})"
        )
    return DataError(f"SentencePiece could not train on this text: {message}")


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _texts(path: Path, on_read: Callable[[int], None] | None) -> Iterator[str]:
    if _kind(path) == ".txt":
        with open_bytes(path, on_read) as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number} is not UTF-8 ({error.reason}); convert the file") from error
        return
    for number, value in iterate_json(path, on_read):
        if isinstance(value, Fault) or not isinstance(value, dict):
            reason = value.reason if isinstance(value, Fault) else f"{type(value).__name__}, not an object"
            raise DataError(f"{path}:{number} is {reason}; each line needs an object with `text`, `title` or `turns`")
        yield from _strings(value)


def _strings(record: dict[str, Any]) -> Iterator[str]:
    turns = record.get("turns")
    for value in (record.get("title"), record.get("text"), *(turns if isinstance(turns, list) else ())):
        if isinstance(value, str):
            # Lone surrogates are legal in JSON and in no encoding.
            yield value.encode("utf-8", "ignore").decode("utf-8")
