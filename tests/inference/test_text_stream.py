"""Streams of text: their pieces are the whole text, and never end in half a character or half a stop string."""

import random

import pytest

from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.errors import ConfigError
from huatuo_jax.inference.requests import TextStream

TEXT = "发热39℃，咳嗽三日。Take 2 tablets (500 mg) daily. 🧑‍⚕️ 龘龘 naïve café\n下一行  two spaces"


@pytest.fixture(scope="module", params=["golden", "golden dummy prefix", "baichuan2", "llama2"])
def tokenizer(request, tokenizer_named):
    return load_tokenizer(tokenizer_named(request.param))


def pieces_of(tokenizer, ids, stop=()):
    stream = TextStream(tokenizer, stop)
    return [*(stream.push(token) for token in ids), stream.finish()], stream


def test_pieces_are_the_text_and_whole_characters(tokenizer):
    ids = tokenizer.encode(TEXT)
    pieces, stream = pieces_of(tokenizer, ids)
    assert "".join(pieces) == stream.text == tokenizer.decode(ids) == TEXT
    assert not any("�" in piece for piece in pieces)
    # 龘 and the emoji are bytes in all vocabularies: their first bytes give nothing out.
    assert "" in pieces


def test_tokens_of_any_kind_stream_as_they_decode_together(tokenizer):
    random.seed(0)
    for _ in range(200):
        ids = [random.choice([random.randrange(3, 259), random.randrange(3, tokenizer.vocab_size)]) for _ in range(30)]
        pieces, _ = pieces_of(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)


def test_text_ends_before_a_stop_string_and_no_piece_holds_part_of_it(tokenizer):
    ids = tokenizer.encode("甲状腺\n<问>：乙")
    pieces, stream = pieces_of(tokenizer, ids, stop=["\n<问>："])
    assert stream.stopped
    assert "".join(pieces) == "甲状腺"
    assert not any("<" in piece or "\n" in piece for piece in pieces)


def test_what_only_began_like_a_stop_string_comes_out_in_the_end(tokenizer):
    ids = tokenizer.encode("体温<问")
    pieces, stream = pieces_of(tokenizer, ids, stop=["<问>"])
    assert "".join(pieces) == "体温<问"
    assert "".join(pieces[:-1]) == "体温"
    assert not stream.stopped


def test_the_first_of_several_stop_strings_counts(tokenizer):
    pieces, _ = pieces_of(tokenizer, tokenizer.encode("一二三四五"), stop=["四", "二三"])
    assert "".join(pieces) == "一"


def test_an_id_beyond_the_tokenizer_has_no_text(tokenizer):
    ids = tokenizer.encode("一二")
    pieces, stream = pieces_of(tokenizer, [*ids, tokenizer.vocab_size, *tokenizer.encode("三")])
    assert "".join(pieces) == stream.text == tokenizer.decode([*ids, *tokenizer.encode("三")])


def test_an_empty_stop_string_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="stop string is empty"):
        TextStream(tokenizer, [""])
