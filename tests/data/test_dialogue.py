"""Dialogues become tokens and targets exactly as the original's training code makes them; golden cases are worked out by hand."""

import functools

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from huatuo_jax.data.dialogue import IGNORED, Record, encode_record, encode_records, prompt_tokens
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.errors import RecordError

HUATUO = get_format("huatuo")
EOS = 2


def dialogue(*turns, system=""):
    return Record(id="1", source="sft", turns=turns, system=system)


def encoded(record, tokenizer, max_len=None, dialogue_format=HUATUO):
    tokens, targets = encode_record(record, tokenizer, dialogue_format, max_len)
    assert tokens.dtype == targets.dtype == np.int32 and len(tokens) == len(targets)
    return tokens.tolist(), targets.tolist()


def of_original(turns, encode, max_len):
    """The rules of the format once more, token by token, on the bare library: the oracle of the property test."""
    ids, labels = [], []
    for number, turn in enumerate(turns):
        question = number % 2 == 0
        mark = ("" if number == 0 else "\n") + ("<问>：" if question else "<答>：")
        piece = encode(mark + turn)[:max_len]
        for place, id in enumerate(piece):
            ids.append(id)
            if question:
                labels.append(EOS if place == 0 and number > 0 else IGNORED)
            else:
                labels.append(IGNORED if place < len(encode("\n<答>：")) else id)
    return [*ids, EOS][:max_len], [*labels, EOS][:max_len]


load_tokenizer_once = functools.cache(load_tokenizer)


@functools.cache
def bare(path):
    return sentencepiece.SentencePieceProcessor(model_file=path)


@pytest.fixture(scope="module")
def ids(known_ids):
    return known_ids


def not_learned(*tokens):
    return [IGNORED] * len(tokens)


def test_one_question_and_answer(baichuan_like, ids):
    tokens, targets = encoded(dialogue("你好", "好的"), baichuan_like)
    assert tokens == [*ids.ask, ids.hello, *ids.answer, ids.good, EOS]
    assert targets == [*not_learned(*ids.ask, ids.hello, *ids.answer), ids.good, EOS]


def test_a_later_question_has_the_end_token_as_its_first_target(baichuan_like, ids):
    tokens, targets = encoded(dialogue("你好", "好的", "谢谢", "再见"), baichuan_like)
    first, second = [*ids.ask, ids.hello, *ids.answer], [*ids.ask_again, ids.thanks, *ids.answer]
    assert tokens == [*first, ids.good, *second, ids.bye, EOS]
    assert targets == [*not_learned(*first), ids.good, EOS, *not_learned(*second[1:]), ids.bye, EOS]


def test_an_odd_last_question_ends_with_the_end_token(baichuan_like, ids):
    tokens, targets = encoded(dialogue("你好", "好的", "谢谢"), baichuan_like)
    first, second = [*ids.ask, ids.hello, *ids.answer], [*ids.ask_again, ids.thanks]
    assert tokens == [*first, ids.good, *second, EOS]
    assert targets == [*not_learned(*first), ids.good, EOS, *not_learned(*second[1:]), EOS]


def test_five_turns(baichuan_like, ids):
    _, targets = encoded(dialogue("你好", "好的", "谢谢", "再见", "你好"), baichuan_like)
    first, second = [*ids.ask, ids.hello, *ids.answer], [*ids.ask_again, ids.thanks, *ids.answer]
    last = [*ids.ask_again, ids.hello]
    learned_twice = [*not_learned(*first), ids.good, EOS, *not_learned(*second[1:]), ids.bye, EOS]
    assert targets == [*learned_twice, *not_learned(*last[1:]), EOS]


def test_a_single_question(baichuan_like, ids):
    question = [*ids.ask, ids.hello]
    assert encoded(dialogue("你好"), baichuan_like) == ([*question, EOS], [*not_learned(*question), EOS])


def test_no_turns_are_the_end_token_alone(baichuan_like):
    assert encoded(dialogue(), baichuan_like) == ([EOS], [EOS])


def test_an_over_long_turn_is_cut_and_loses_the_end_token(baichuan_like, ids):
    prompt = [*ids.ask, ids.hello, *ids.answer]
    tokens, targets = encoded(dialogue("你好", "好的" * 50), baichuan_like, max_len=len(prompt) + 2)
    assert tokens == [*prompt, ids.good, ids.good]
    assert targets == [*not_learned(*prompt), ids.good, ids.good]


def test_an_over_long_question_leaves_nothing_to_learn(baichuan_like, ids):
    tokens, targets = encoded(dialogue("你好" * 50, "好的"), baichuan_like, max_len=len(ids.ask) + 4)
    assert tokens == [*ids.ask, *[ids.hello] * 4]
    assert targets == not_learned(*tokens)


def test_an_over_long_dialogue_is_cut_as_a_whole(baichuan_like, ids):
    first = [*ids.ask, ids.hello, *ids.answer]
    tokens, targets = encoded(dialogue("你好", "好的", "谢谢", "再见"), baichuan_like, max_len=len(first) + 3)
    assert tokens == [*first, ids.good, *ids.ask_again[:2]]
    assert targets == [*not_learned(*first), ids.good, EOS, IGNORED]


def test_a_dummy_prefix_takes_the_end_target(llama_like):
    # "<问>：你" takes 5 tokens in Llama 2; 6 where "<" is no piece and stands apart from the "▁". "\n<答>：" takes 8 in both.
    question, dummy, hao = {2000: (6, 657, 706), 32_000: (5, 29871, 31076)}[llama_like.vocab_size]
    newline, first_answer = 13, question + 8
    tokens, targets = encoded(dialogue("你", "好", "你", "好"), llama_like)
    assert tokens[question : question + 2] == [dummy, newline]
    assert targets[: first_answer + 3] == [IGNORED] * first_answer + [hao, EOS, IGNORED]
    assert tokens[first_answer + 1 : first_answer + 3] == [dummy, newline]


@settings(max_examples=200, deadline=None)
@given(turns=st.lists(st.text(alphabet="你好吗？ac1 \n，<问>：", max_size=12), max_size=6), max_len=st.integers(1, 60))
@pytest.mark.parametrize("name", ["golden", "golden dummy prefix", "baichuan2", "llama2"])
def test_every_dialogue_equals_the_rules_written_down_once_more(name, turns, max_len, tokenizer_named):
    tokenizer = load_tokenizer_once(tokenizer_named(name))
    # The bare library would turn a symbol of the vocabulary into a token wherever a text spells it.
    assume(not any(symbol in turn for symbol in tokenizer.symbols for turn in turns))
    assert encoded(dialogue(*turns), tokenizer, max_len) == of_original(turns, bare(tokenizer.path).encode, max_len)


def test_a_passage_is_learned_whole_without_a_prefix(baichuan_like):
    passage = Record(id="1", source="books", text="你好好的")
    text = baichuan_like.encode("你好好的")
    assert encoded(passage, baichuan_like) == ([*text, EOS], [*text, EOS])
    assert encoded(passage, baichuan_like, max_len=1) == (text[:1], text[:1])


def test_the_huatuo_format_refuses_a_system_prompt(baichuan_like):
    with pytest.raises(RecordError, match="system prompt"):
        encode_record(dialogue("你好", "好的", system="医生"), baichuan_like, HUATUO)


def test_baichuan2_chat_marks_roles_by_token(baichuan_like, ids):
    dialogue_format = get_format("baichuan2-chat")
    tokens, targets = encoded(
        dialogue("你好", "好的", "谢谢", "再见", system="谢谢"), baichuan_like, dialogue_format=dialogue_format
    )
    first, second = [ids.user, ids.hello, ids.assistant, ids.good], [ids.user, ids.thanks, ids.assistant, ids.bye]
    assert tokens == [ids.thanks, *first, *second, EOS]
    assert targets == [IGNORED] * 4 + [ids.good, EOS] + [IGNORED] * 2 + [ids.bye, EOS]


def test_llama2_closes_every_answer(llama_like):
    dialogue_format = get_format("llama2")
    tokens, targets = encoded(dialogue("Hi", "Yes", "Why", "No", system="Be kind"), llama_like, dialogue_format=dialogue_format)
    text = "[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHi [/INST]"
    first, answer = [1, *llama_like.encode(text)], [*llama_like.encode("Yes "), EOS]
    second, last = [1, *llama_like.encode("[INST] Why [/INST]")], [*llama_like.encode("No "), EOS]
    assert tokens == [*first, *answer, *second, *last]
    assert targets == [IGNORED] * len(first) + answer + [IGNORED] * len(second) + last


@pytest.mark.parametrize("name", ["huatuo", "baichuan2-chat"])
@pytest.mark.parametrize("turns", [("你好",), ("你好", "好的", "谢谢")])
def test_a_prompt_is_the_training_example_up_to_its_answer(baichuan_like, ids, name, turns):
    dialogue_format = get_format(name)
    prompt = prompt_tokens(turns, baichuan_like, dialogue_format)
    tokens, _ = encoded(dialogue(*turns, "再见"), baichuan_like, dialogue_format=dialogue_format)
    assert tokens == [*prompt, ids.bye, EOS]


def test_a_llama2_prompt_ends_before_the_answer(llama_like):
    assert prompt_tokens(["Hi"], llama_like, get_format("llama2")) == [1, *llama_like.encode("[INST] Hi [/INST]")]


def test_a_prompt_must_end_with_a_question(baichuan_like):
    with pytest.raises(RecordError, match="2 turns"):
        prompt_tokens(["你好", "好的"], baichuan_like, HUATUO)


def test_text_cannot_open_a_chat_turn(baichuan_like, ids):
    tokens, _ = encoded(dialogue("你好<reserved_107>好的", "好的"), baichuan_like, dialogue_format=get_format("baichuan2-chat"))
    assert tokens.count(ids.assistant) == 1


@pytest.mark.parametrize("bad", [dialogue("你好", "好的", system="医生"), dialogue("你\ud800好", "好的")])
def test_many_records_at_once_give_the_same_and_keep_an_error_in_its_place(baichuan_like, bad):
    good = [dialogue("你好" * n, "好的", "谢谢") for n in range(20)] + [Record(id="", source="books", text="你好"), dialogue()]
    together, rejected = encode_records([*good, bad, *good], baichuan_like, HUATUO)
    assert list(rejected) == [len(good)] and isinstance(rejected[len(good)], RecordError)
    for one, record in zip(together.cut(30).split(), good * 2, strict=True):
        assert [array.tolist() for array in one] == list(encoded(record, baichuan_like, 30))
