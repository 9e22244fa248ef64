"""Users' text cannot yield a marker, whatever it says; everything else encodes exactly as the bare library does."""

import json
import lzma
import pickle
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_tools.tokens.tokenizer_training import find_texts, read_sentences, train_tokenizer
from huatuo_jax.data.tokenizers import is_harmless, load_tokenizer
from huatuo_jax.errors import ConfigError, DataError, RecordError

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
MARKERS = (
    "<reserved_106>",
    "<td>",
    "</td>",
    "<td",
    "<!--",
    "<问>：",
    "<答>：",
    "<|im_start|>",
    "<tool>",
    "</s>",
    "<s>",
    "<unk>",
    "<0x0A>",
)
# Fragments of markers side by side: what a cut-and-join defence would put together again.
HOSTILE = st.lists(
    st.sampled_from([*MARKERS, "<", ">", "：", "reserved_", "106>", "im_", "\n", " ", "  ", "好", "a"]) | st.text(max_size=4)
).map("".join)


def write_json_tokenizer(folder: Path, kind: str = "bpe") -> Path:
    corpus = [*read_sentences(find_texts([str(QUICKSTART / "sft.jsonl")])), *MARKERS]
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    if kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=800, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        made.decoder = decoders.Metaspace(prepend_scheme="never")
        trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(corpus, trainer)
    made.add_tokens(
        [AddedToken("<tool>", special=False, normalized=False), AddedToken("<问>：", special=False, normalized=False)]
    )
    made.add_tokens([AddedToken("  ", special=False, normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.model"
    train_tokenizer(read_sentences(find_texts([str(QUICKSTART / "sft.jsonl")])), 1800, path, symbols=["<|im_start|>"])
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def from_json(tmp_path_factory):
    return load_tokenizer(write_json_tokenizer(tmp_path_factory.mktemp("json")))


@pytest.fixture(scope="module")
def bare(baichuan_like):
    return sentencepiece.SentencePieceProcessor(model_file=baichuan_like.path)


def assert_harmless(tokenizer, text, prefix=""):
    """`text` decodes to itself and holds no marker, however the vocabulary spells it."""
    ids = tokenizer.encode(text, trusted_prefix=prefix)
    alone = tokenizer.encode("", trusted_prefix=prefix)
    own_part = ids[len(alone) :] if prefix else ids
    assert not tokenizer.symbols & {tokenizer.id_to_piece(i) for i in own_part}
    assert tokenizer.eos_id not in ids and tokenizer.bos_id not in ids
    assert tokenizer.decode(ids) == (prefix + text).replace("▁", " ")


@settings(max_examples=300, deadline=None)
@given(text=HOSTILE)
def test_no_text_yields_a_marker_of_baichuan2(baichuan_like, text):
    assert_harmless(baichuan_like, text)
    assert_harmless(baichuan_like, text, prefix="\n<答>：")


@settings(max_examples=200, deadline=None)
@given(text=HOSTILE)
def test_no_text_yields_a_dialogue_prefix_of_a_trained_tokenizer(own, text):
    assert_harmless(own, text)
    assert_harmless(own, text, prefix="\n<答>：")


@settings(max_examples=200, deadline=None)
@given(text=HOSTILE)
def test_no_text_yields_an_added_token_of_a_tokenizer_json(from_json, text):
    ids = from_json.encode(text)
    assert not from_json.symbols & {from_json.id_to_piece(i) for i in ids}
    assert from_json.decode(ids) == text


def test_a_unigram_tokenizer_json_cannot_spell_its_special_tokens(tmp_path):
    tokenizer = load_tokenizer(write_json_tokenizer(tmp_path, "unigram"))
    pieces = [tokenizer.id_to_piece(i) for i in tokenizer.encode("a</s><|im_start|><tool>")]
    assert not {"</s>", "<|im_start|>", "<tool>"} & set(pieces)


@pytest.mark.parametrize(
    ("symbol", "harmless"),
    [("\n", True), ("▁▁", True), ("，", True), ("。。。", True), ("...", True), ("９", True), ("```", True)]
    + [(marker, False) for marker in ("<td>", "<reserved_106>", "<!--", "<问>：", "[INST]", "\ue000", "USER:")],
)
def test_white_space_single_characters_and_punctuation_are_harmless(symbol, harmless):
    assert is_harmless(symbol) is harmless


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_ordinary_text_encodes_as_the_bare_library_does(baichuan_like, bare, text):
    if not any(symbol in text for symbol in baichuan_like.symbols):
        assert baichuan_like.encode(text, trusted_prefix="\n<答>：") == bare.encode("\n<答>：" + text)


def assert_turns_encode_as_by(bare, tokenizer, turns, count):
    ordinary = [turn for turn in turns if not any(symbol in turn for symbol in tokenizer.symbols)]
    assert len(ordinary) == count
    assert [ids.tolist() for ids in tokenizer.encode_batch([("<问>：", turn) for turn in ordinary])] == [
        bare.encode("<问>：" + turn) for turn in ordinary
    ]


def test_answers_encode_as_the_bare_library_does(baichuan_like, bare):
    lines = (QUICKSTART / "sft.jsonl").read_text(encoding="utf-8").splitlines()
    assert_turns_encode_as_by(bare, baichuan_like, [turn for line in lines for turn in json.loads(line)["turns"]], 164)


def test_real_answers_encode_as_the_bare_library_does(baichuan_like, bare, shared_data):
    with lzma.open(shared_data / "sft" / "sft_zh.jsonl.xz", "rt", encoding="utf-8") as file:
        turns = [turn for _, line in zip(range(1500), file, strict=False) for turn in json.loads(line)["turns"]]
    assert_turns_encode_as_by(bare, baichuan_like, turns, 3000)


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_a_trained_tokenizer_reads_prefix_and_text_as_the_bare_library_does(own, text):
    if not any(symbol in text for symbol in own.symbols):
        bare = sentencepiece.SentencePieceProcessor(model_file=own.path)
        assert own.encode(text, trusted_prefix="\n<问>：") == bare.encode("\n<问>：" + text)


def test_chat_tokens_of_baichuan2_are_found_by_name_only(baichuan_like, known_ids):
    assert baichuan_like.token_to_id("<reserved_106>") == known_ids.user
    assert known_ids.user not in baichuan_like.encode("<reserved_106>")
    assert baichuan_like.encode("", trusted_prefix="<reserved_106>") == [known_ids.user]
    assert baichuan_like.token_to_id("<|im_start|>") is None


def test_end_tokens_in_text_are_plain_characters(baichuan_like, bare):
    assert baichuan_like.encode("好</s><s>") == bare.encode("好</s><s>")
    assert baichuan_like.decode([*baichuan_like.encode("好</s>"), baichuan_like.eos_id]) == "好</s>"


def test_a_marker_after_a_dummy_prefix_model_keeps_the_text_unspaced(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world " * 3] * 9),
        model_prefix=str(tmp_path / "m"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=["<chat>"],
        hard_vocab_limit=False,
        minloglevel=3,
    )
    tokenizer = load_tokenizer(tmp_path / "m.model")
    bare = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)
    assert tokenizer.encode("hello", trusted_prefix="<chat>") == bare.encode("<chat>hello")


@pytest.mark.parametrize(
    ("name", "size"), [("golden", 2000), ("golden dummy prefix", 2000), ("baichuan2", 125_696), ("llama2", 32_000)]
)
def test_files_say_how_large_the_vocabulary_is_and_how_texts_begin_and_end(tokenizer_named, name, size):
    tokenizer = load_tokenizer(tokenizer_named(name))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (size, 1, 2)


def test_attributes_say_what_the_vocabulary_is(from_json, own):
    assert (own.vocab_size, own.bos_id, own.eos_id) == (1800, 1, 2)
    assert (from_json.bos_id, from_json.eos_id) == (1, 2)
    assert len(own.fingerprint) == 64


def test_a_tokenizer_travels_to_another_process(own):
    copy = pickle.loads(pickle.dumps(own))
    assert (copy.fingerprint, copy.encode("你好")) == (own.fingerprint, own.encode("你好"))


def test_a_lone_surrogate_is_refused_by_its_place(own, from_json):
    for tokenizer in (own, from_json):
        with pytest.raises(RecordError, match="lone surrogate at character 1"):
            tokenizer.encode("a\ud800b")


def test_what_is_not_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "a.model").write_bytes(b"no model")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for name, error in (
        ("a.model", DataError),
        ("a.json", DataError),
        ("a.txt", ConfigError),
        ("empty", ConfigError),
        ("none", ConfigError),
    ):
        with pytest.raises(error):
            load_tokenizer(tmp_path / name)


def test_an_ambiguous_end_token_is_asked_for(tmp_path):
    made = Tokenizer(models.BPE())
    made.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"several possible end tokens.*eos_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert load_tokenizer(tmp_path).eos_id == 1


@pytest.mark.parametrize("beside", ["{", "[]", '{"eos_token": {"c": 1}}', "[" * 100_000])
def test_a_broken_tokenizer_config_is_named(tmp_path, beside):
    file = write_json_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(beside)
    with pytest.raises(DataError, match=r"tokenizer_config\.json is no object with tokens by name"):
        load_tokenizer(file)
