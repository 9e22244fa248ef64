"""Tokenizers: SentencePiece `.model` and `tokenizer.json` files behind one interface, safe against markers in users' text.

A *marker* is a string that the vocabulary matches as one token before it tokenises, such as `<reserved_106>` or `<|im_start|>`.
Dialogue formats (`formats.py`) write markers to say who speaks; a user who types one must not change who speaks. Deleting or
escaping markers in the text is no defence (`<rese<reserved_106>rved_106>`), so a tokenizer keeps two encoders of one vocabulary:

    the full encoder     knows every marker; reads only prefixes that a dialogue format wrote
    the plain encoder    can form no marker; reads all other text: a typed `<reserved_106>` becomes the tokens of its characters

What must hold: text without markers encodes exactly as the bare library encodes it, and every text decodes to itself. Next on a
record's way: `formats.py`, `dialogue.py`.
"""

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from etils import epath

from huatuo_jax.errors import ConfigError, DataError, RecordError
from huatuo_jax.io.files import PathLike, sha256_file, write_bytes

BRACKETS = frozenset("<>[]{}|")
# What end and begin tokens are called in released vocabularies, for a tokenizer.json that comes without its config.
KNOWN_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|eot_id|>")
KNOWN_BOS = ("<s>", "<|begin_of_text|>", "<bos>")


def load_tokenizer(path: PathLike) -> "Tokenizer":
    """Loads a SentencePiece `.model`, a `tokenizer.json`, or a folder that holds one (`tokenizer.model` goes first).

    Raises:
      ConfigError: nothing is there, or it has no end token.
      DataError: the file is not what its name says.
    """
    file = epath.Path(path)
    if file.is_dir():
        names = ["tokenizer.model", "tokenizer.json", *sorted(p.name for p in file.glob("*.model"))]
        inside = next((file / name for name in names if (file / name).exists()), None)
        if inside is None:
            raise ConfigError(f"{file} holds neither a SentencePiece .model nor a tokenizer.json")
        file = inside
    elif not file.exists():
        raise ConfigError(f"no tokenizer at {file}; give a SentencePiece .model, a tokenizer.json or a folder with one")
    if file.suffix not in (".model", ".json"):
        raise ConfigError(f"{file}: the name of a tokenizer ends in .model (SentencePiece) or .json (tokenizer.json)")
    return JsonTokenizer(str(file)) if file.suffix == ".json" else SentencePieceTokenizer(str(file))


def copy_tokenizer(path: PathLike, folder: PathLike) -> str:
    """Copies a tokenizer file, and what stands beside a `tokenizer.json`, into `folder`; returns the file's name there.

    Token datasets and run directories carry their tokenizer, so that they can be moved and `load_tokenizer(folder)` works.
    """
    source, target = epath.Path(path), epath.Path(folder)
    name = f"tokenizer{source.suffix}"
    beside = ("tokenizer_config.json", "special_tokens_map.json") if source.suffix == ".json" else ()
    for original, copy in ((source, target / name), *((source.parent / other, target / other) for other in beside)):
        if original.exists() and original != copy:
            write_bytes(copy, original.read_bytes())
    return name


def is_harmless(symbol: str) -> bool:
    """Whether users' text may yield `symbol` as one token: white space, one visible character, or a run of punctuation.

    Everything else that a vocabulary matches before tokenising (`<reserved_106>`, `<td>`, `<问>：`, `[INST]`) is a marker.
    """
    if not symbol.replace("▁", " ").strip():
        return True
    if len(symbol) == 1:
        return symbol.isprintable()
    return all(unicodedata.category(c)[0] in "PS" and c not in BRACKETS for c in symbol)


class Tokenizer(ABC):
    """One vocabulary.

    Attributes:
      vocab_size: ids are in [0, vocab_size).
      eos_id: id of the end token; bos_id: id of the begin token, None if there is none.
      path: the file it came from; fingerprint: hex SHA-256 of that file.
      symbols: the markers.
      dummy_prefix: whether the text after a marker needs an encoder without the "▁" that SentencePiece puts in front of a text.
    """

    vocab_size: int
    eos_id: int
    bos_id: int | None
    path: str
    fingerprint: str
    symbols: frozenset[str]
    dummy_prefix: bool = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.fingerprint = sha256_file(path)
        self._split_prefixes: dict[str, tuple[np.ndarray, str]] = {}
        self._prefix_lengths: dict[str, int] = {}

    # The libraries' objects do not pickle (or at great cost): another process loads the file again.
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return load_tokenizer, (self.path,)

    def encode(self, text: str, trusted_prefix: str = "") -> list[int]:
        """Ids of `trusted_prefix + text`, tokenised as one string, without BOS or EOS.

        Markers in `text` become plain characters (they still decode to themselves), markers in `trusted_prefix` are tokens.

        Raises:
          RecordError: `text` is not valid Unicode.
        """
        return self.encode_batch([(trusted_prefix, text)])[0].tolist()

    def encode_batch(self, pieces: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """`encode` of many (trusted_prefix, text) pairs, each as int32 [length]; the arrays may be read-only."""
        prefixes = {prefix: self._split_prefix(prefix) for prefix in {prefix for prefix, _ in pieces}}
        try:
            strings = [prefixes[prefix][1] + text for prefix, text in pieces]
            encoded = self._encode_plain(strings)
        except (RuntimeError, TypeError, UnicodeError) as error:
            raise _unencodable([text for _, text in pieces], error) from error
        # A prefix that ends in or holds a marker: its ids go in front of what the plain encoder made of the rest.
        with_marker = {prefix: ids for prefix, (ids, _) in prefixes.items() if len(ids)}
        for i, (prefix, _) in enumerate(pieces if with_marker else ()):
            if prefix in with_marker:
                rest = self._encode_after_marker(strings[i]) if self.dummy_prefix else encoded[i]
                encoded[i] = np.concatenate([with_marker[prefix], rest])
        return encoded

    def prefix_length(self, trusted_prefix: str) -> int:
        """Number of tokens of a prefix alone."""
        length = self._prefix_lengths.get(trusted_prefix)
        if length is None:
            length = self._prefix_lengths[trusted_prefix] = len(self.encode("", trusted_prefix))
        return length

    def _split_prefix(self, prefix: str) -> tuple[np.ndarray, str]:
        """Ids up to the end of the prefix's last marker, and the rest, which may merge with what follows.

        "\\n<答>：" is all rest for Baichuan2, which has no such token. Where `<答>：` is a marker, there is no rest.
        """
        if prefix not in self._split_prefixes:
            end = max((prefix.rfind(s) + len(s) for s in self.symbols if s in prefix), default=0)
            ids = np.array(self._encode_full(prefix[:end]) if end else [], np.int32)
            self._split_prefixes[prefix] = ids, prefix[end:]
        return self._split_prefixes[prefix]

    def _encode_after_marker(self, text: str) -> np.ndarray:
        return self._encode_plain([text])[0]

    @abstractmethod
    def _encode_full(self, text: str) -> list[int]: ...

    @abstractmethod
    def _encode_plain(self, texts: list[str]) -> list[np.ndarray]: ...

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; BOS and EOS are silent."""

    @abstractmethod
    def token_to_id(self, piece: str) -> int | None:
        """Id of the vocabulary's entry `piece`, None if there is none."""

    @abstractmethod
    def id_to_piece(self, id: int) -> str:
        """The vocabulary's entry with this id."""

    @abstractmethod
    def texts_of_vocabulary(self, characters: Iterable[str]) -> list[str]:
        """What ids read as, in the middle of a text: those with one of `characters`, without control tokens and lone bytes."""


def _unencodable(texts: list[str], error: Exception) -> Exception:
    """The error that names what is wrong with one of the texts, else the library's own."""
    for text in texts:
        if not isinstance(text, str):
            return RecordError(f"text is {type(text).__name__}, not a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as surrogate:
            place = surrogate.start
            return RecordError(f"text is not valid Unicode: a lone surrogate at character {place}; repair or drop it")
    return error


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece `.model` file (BPE or unigram).

    In the plain encoder markers are control pieces under another name, which no text can reach, as none can reach `</s>`. The
    full encoder is loaded when a marker is first needed: never, where the dialogue format has none, as HuatuoGPT-II's.
    """

    def __init__(self, path: str) -> None:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        schema: Any = sentencepiece_model_pb2
        super().__init__(path)
        self._content = epath.Path(path).read_bytes()
        model = schema.ModelProto()
        try:
            model.ParseFromString(self._content)
            markers = self._rename_markers(model, schema.ModelProto.SentencePiece)
            self._plain = self._after_marker = _processor(model.SerializeToString())
        except (DecodeError, RuntimeError) as error:
            raise DataError(f"{path} is not a SentencePiece model ({error}); give a .model file or a tokenizer.json") from error
        if model.trainer_spec.model_type == schema.TrainerSpec.WORD:
            raise ConfigError(f"{path} is a word-level model, where users' text can spell </s>; use a bpe or unigram model")
        if self._plain.eos_id() < 0:
            raise ConfigError(f"{path} has no end token; train it with an eos id")
        self.vocab_size = self._plain.vocab_size()
        self.eos_id = self._plain.eos_id()
        self.bos_id = self._plain.bos_id() if self._plain.bos_id() >= 0 else None
        self._markers = markers
        self._plain_names = {marker: _plain_name(i) for i, marker in markers.items()}
        self.symbols = frozenset(markers.values())
        self.dummy_prefix = bool(markers) and model.normalizer_spec.add_dummy_prefix
        if self.dummy_prefix:
            model.normalizer_spec.add_dummy_prefix = False
            self._after_marker = _processor(model.SerializeToString())

    # A processor cannot be told to leave user-defined pieces alone, so the plain one gets another model: the same ids, merges and
    # scores, with the markers out of reach.
    @staticmethod
    def _rename_markers(model: Any, kinds: Any) -> dict[int, str]:
        """Makes the plain model of `model`; returns the markers by id."""
        defined = [(i, piece) for i, piece in enumerate(model.pieces) if piece.type == kinds.USER_DEFINED]
        markers = {i: piece.piece for i, piece in defined if not is_harmless(piece.piece)}
        for i in markers:
            model.pieces[i].type = kinds.CONTROL
            model.pieces[i].piece = _plain_name(i)
        return markers

    @cached_property
    def _full(self) -> Any:
        return _processor(self._content) if self._markers else self._plain

    def _encode_full(self, text: str) -> list[int]:
        return self._full.encode(text)

    def _encode_plain(self, texts: list[str]) -> list[np.ndarray]:
        # The library starts a thread pool per list, which costs as much as encoding some ten texts.
        if len(texts) < 32:
            return [self._plain.encode(text, return_type="numpy") for text in texts]
        return self._plain.encode(texts, num_threads=1, return_type="numpy")

    def _encode_after_marker(self, text: str) -> np.ndarray:
        return self._after_marker.encode(text, return_type="numpy")

    def decode(self, ids: Iterable[int]) -> str:  # noqa: D102
        # The plain processor knows the markers under another name, and control pieces decode to nothing.
        numbers = [int(i) for i in ids]
        decoder = self._plain if self._markers.keys().isdisjoint(numbers) else self._full
        return decoder.decode(numbers) or ""

    def token_to_id(self, piece: str) -> int | None:  # noqa: D102
        # The library answers with the unknown token's id for what is not in the vocabulary.
        id = self._plain.piece_to_id(self._plain_names.get(piece, piece))
        return id if self.id_to_piece(id) == piece else None

    def id_to_piece(self, id: int) -> str:  # noqa: D102
        return self._markers.get(int(id)) or self._plain.id_to_piece(int(id))

    def texts_of_vocabulary(self, characters: Iterable[str]) -> list[str]:  # noqa: D102
        wanted = re.compile(f"[{''.join(map(re.escape, {c if c != ' ' else '▁' for c in characters}))}]").search
        pieces = self._plain.id_to_piece(list(range(self.vocab_size)))
        for i, marker in self._markers.items():
            pieces[i] = marker
        ids = [i for i, piece in enumerate(pieces) if wanted(piece)]
        silent = zip(self._plain.is_control(ids), self._plain.is_unknown(ids), self._plain.is_byte(ids), strict=True)
        readable = [i for i, kinds in zip(ids, silent, strict=True) if i in self._markers or not any(kinds)]
        return [pieces[i].replace("▁", " ") for i in readable]


def _plain_name(marker_id: int) -> str:
    return f"<plain {marker_id}>"


def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` of the `tokenizers` library.

    In the plain encoder all markers, special or not, are special tokens that encoding treats as text. Where the model itself
    could spell one (its vocabulary holds the string), it has another name there.
    """

    def __init__(self, path: str) -> None:
        import tokenizers

        super().__init__(path)
        try:
            spec = json.loads(epath.Path(path).read_text(encoding="utf-8"))
            self._full = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path} is not a readable tokenizer.json: {error}") from error
        self._full.no_truncation()
        self._full.no_padding()
        self.vocab_size = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id, self.bos_id = _end_and_begin(self._full, path)
        markers = [
            t for t in spec.get("added_tokens", []) if t["content"].strip() and (t["special"] or not is_harmless(t["content"]))
        ]
        self.symbols = frozenset(token["content"] for token in markers)
        # The unknown token is the one marker that ordinary text yields: characters outside the vocabulary become it.
        self._forbidden = frozenset(self._full.token_to_id(symbol) for symbol in self.symbols - {_unknown(spec["model"])})
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(_without_markers(spec, markers)))
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()

    def _encode_full(self, text: str) -> list[int]:
        return self._full.encode(text, add_special_tokens=False).ids

    def _encode_plain(self, texts: list[str]) -> list[np.ndarray]:
        if len(texts) == 1:
            out = [self._plain.encode(texts[0], add_special_tokens=False).ids]
        else:
            out = [encoding.ids for encoding in self._plain.encode_batch_fast(texts, add_special_tokens=False)]
        for text, ids in zip(texts, out, strict=True):
            if not self._forbidden.isdisjoint(ids):
                raise RecordError(f"text spells a control token that {self.path} cannot write as characters: {text[:80]!r}")
        return [np.array(ids, np.int32) for ids in out]

    def decode(self, ids: Iterable[int]) -> str:  # noqa: D102
        silent = (self.eos_id, self.bos_id)
        return self._full.decode([int(i) for i in ids if i not in silent], skip_special_tokens=False)

    def token_to_id(self, piece: str) -> int | None:  # noqa: D102
        return self._full.token_to_id(piece)

    def id_to_piece(self, id: int) -> str:  # noqa: D102
        piece = self._full.id_to_token(int(id))
        if piece is None:
            raise DataError(f"{self.path} has no token {id}; its ids are below {self.vocab_size}")
        return piece

    def texts_of_vocabulary(self, characters: Iterable[str]) -> list[str]:  # noqa: D102
        wanted = frozenset(characters)
        texts = self._full.decode_batch([[i] for i in range(self.vocab_size)])
        return [text for text in texts if not wanted.isdisjoint(text) and "�" not in text]


def _end_and_begin(tokenizer: Any, path: str) -> tuple[int, int | None]:
    """EOS and BOS of a tokenizer.json: named by the files beside it, else the one well-known name in the vocabulary."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        beside = epath.Path(path).parent / name
        if beside.exists():
            try:
                values = json.loads(beside.read_text(encoding="utf-8"))
                for key in ("eos_token", "bos_token"):
                    if value := values.get(key):
                        named[key] = str(value["content"] if isinstance(value, dict) else value)
            except (ValueError, AttributeError, KeyError, RecursionError) as error:
                raise DataError(f"{beside} is no object with tokens by name ({error!r}); fetch it again") from error
    known = [token for token in KNOWN_EOS if tokenizer.token_to_id(token) is not None]
    if "eos_token" not in named and len(known) != 1:
        what = f"several possible end tokens ({', '.join(known)})" if known else "no well-known end token"
        raise ConfigError(f'{path} has {what}; put a tokenizer_config.json beside it with "eos_token": "…"')
    eos = named.get("eos_token") or known[0]
    bos = named.get("bos_token") or next((token for token in KNOWN_BOS if tokenizer.token_to_id(token) is not None), "")
    eos_id = tokenizer.token_to_id(eos)
    if eos_id is None:
        raise ConfigError(f"{path} has no token {eos!r}, which the files beside it name as the end token")
    return eos_id, tokenizer.token_to_id(bos) if bos else None


def _unknown(model: dict[str, Any]) -> str | None:
    """The token that stands for characters outside the vocabulary: the one special token that text may yield."""
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _without_markers(spec: dict[str, Any], markers: list[dict[str, Any]]) -> dict[str, Any]:
    """A copy of a tokenizer.json in which `markers` are special, and renamed where the model itself could spell them.

    A vocabulary's entry `<tool>` with id 57 becomes `57` between U+10FFFE and U+10FFFF, and merges that make or use `<tool>` go.
    Unicode never assigns these two characters; a text that spells the new name all the same is refused (`_forbidden`).
    """
    spec = json.loads(json.dumps(spec))
    renamed = {token["content"]: f"\U0010fffe{token['id']}\U0010ffff" for token in markers}
    model = spec["model"]
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, dict):
        inside = renamed.keys() & vocabulary.keys()
        model["vocab"] = {renamed[piece] if piece in inside else piece: id for piece, id in vocabulary.items()}
    else:
        inside = renamed.keys() & {piece for piece, _ in vocabulary}
        model["vocab"] = [[renamed[piece] if piece in inside else piece, score] for piece, score in vocabulary]
    if "merges" in model:
        pairs = [(merge, merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"]]
        model["merges"] = [merge for merge, pair in pairs if "".join(pair) not in inside and inside.isdisjoint(pair)]
    for token in spec["added_tokens"]:
        if token["content"] in renamed:
            token["special"] = True
            token["content"] = renamed[token["content"]] if token["content"] in inside else token["content"]
    if model.get("unk_token") in inside:
        model["unk_token"] = renamed[model["unk_token"]]
    return spec
