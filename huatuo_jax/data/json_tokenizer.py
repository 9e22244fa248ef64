"""A `tokenizer.json` of the `tokenizers` library behind the interface of `tokenizer.py`: text in, token ids out."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from huatuo_jax.data.tokenizer import Tokenizer, is_harmless
from huatuo_jax.errors import ConfigError, DataError, RecordError

KNOWN_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|eot_id|>")
KNOWN_BOS = ("<s>", "<|begin_of_text|>", "<bos>")


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` of the `tokenizers` library.

    In the plain encoder all markers, special or not, are special tokens that encoding treats as text.
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
            out = [found.ids for found in self._plain.encode_batch_fast(texts, add_special_tokens=False)]
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
    """A copy of a tokenizer.json in which `markers` are special, and renamed where the model itself could spell them."""
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
