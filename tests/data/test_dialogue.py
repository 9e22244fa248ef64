"""Dialogues become tokens and targets exactly as the original's training code makes them; golden cases are worked out by hand."""

import functools

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from huatuo_jax.data.dialogue import IGNORED, encode_record, encode_records, prompt_tokens
from huatuo_jax.data.formats import get_format
from huatuo_jax.data.record import Record
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.errors import RecordError

HUATUO = get_format("huatuo")
EOS = 2
# Baichuan2: 你好 = 16829, 好的 = 2015, 谢谢 = 6137, 再见 = 20020; "\n" = 5.
ASK, ANSWER, ASK_AGAIN = [92655, 92614, 92574, 70], [5, 92655, 93140, 92574, 70], [5, 92655, 92614, 92574, 70]


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


@functools.cache
def bare(path):
    return sentencepiece.SentencePieceProcessor(model_file=path)


@pytest.fixture(scope="module")
def baichuan(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "baichuan2.model")


@pytest.fixture(scope="module")
def llama(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "llama2.model")


def test_one_question_and_answer(baichuan):
    tokens, targets = encoded(dialogue("你好", "好的"), baichuan)
    assert tokens == [*ASK, 16829, *ANSWER, 2015, EOS]
    assert targets == [IGNORED] * 10 + [2015, EOS]


def test_a_later_question_has_the_end_token_as_its_first_target(baichuan):
    tokens, targets = encoded(dialogue("你好", "好的", "谢谢", "再见"), baichuan)
    assert tokens == [*ASK, 16829, *ANSWER, 2015, *ASK_AGAIN, 6137, *ANSWER, 20020, EOS]
    assert targets == [IGNORED] * 10 + [2015, EOS] + [IGNORED] * 10 + [20020, EOS]


def test_an_odd_last_question_ends_with_the_end_token(baichuan):
    tokens, targets = encoded(dialogue("你好", "好的", "谢谢"), baichuan)
    assert tokens == [*ASK, 16829, *ANSWER, 2015, *ASK_AGAIN, 6137, EOS]
    assert targets == [IGNORED] * 10 + [2015, EOS] + [IGNORED] * 5 + [EOS]


def test_five_turns(baichuan):
    _, targets = encoded(dialogue("你好", "好的", "谢谢", "再见", "你好"), baichuan)
    assert targets == [IGNORED] * 10 + [2015, EOS] + [IGNORED] * 10 + [20020, EOS] + [IGNORED] * 5 + [EOS]


def test_a_single_question(baichuan):
    assert encoded(dialogue("你好"), baichuan) == ([*ASK, 16829, EOS], [IGNORED] * 5 + [EOS])


def test_no_turns_are_the_end_token_alone(baichuan):
    assert encoded(dialogue(), baichuan) == ([EOS], [EOS])


def test_an_over_long_turn_is_cut_and_loses_the_end_token(baichuan):
    tokens, targets = encoded(dialogue("你好", "好的" * 50), baichuan, max_len=12)
    assert tokens == [*ASK, 16829, *ANSWER, 2015, 2015]
    assert targets == [IGNORED] * 10 + [2015, 2015]


def test_an_over_long_question_leaves_nothing_to_learn(baichuan):
    tokens, targets = encoded(dialogue("你好" * 50, "好的"), baichuan, max_len=8)
    assert tokens == [*ASK, 16829, 16829, 16829, 16829]
    assert targets == [IGNORED] * 8


def test_an_over_long_dialogue_is_cut_as_a_whole(baichuan):
    tokens, targets = encoded(dialogue("你好", "好的", "谢谢", "再见"), baichuan, max_len=13)
    assert tokens == [*ASK, 16829, *ANSWER, 2015, *ASK_AGAIN[:2]]
    assert targets == [IGNORED] * 10 + [2015, EOS, IGNORED]


def test_a_dummy_prefix_takes_the_end_target(llama):
    tokens, targets = encoded(dialogue("你", "好", "你", "好"), llama)
    dummy, newline, hao = 29871, 13, llama.encode("好")[-1]
    first_answer = 5 + 8
    assert tokens[5:7] == [dummy, newline]
    assert targets[: first_answer + 3] == [IGNORED] * first_answer + [hao, EOS, IGNORED]
    assert tokens[first_answer + 1 : first_answer + 3] == [dummy, newline]


@settings(max_examples=200, deadline=None)
@given(turns=st.lists(st.text(alphabet="你好吗？ac1 \n，<问>：", max_size=12), max_size=6), max_len=st.integers(1, 60))
@pytest.mark.parametrize("name", ["baichuan2", "llama2"])
def test_every_dialogue_equals_the_rules_written_down_once_more(name, turns, max_len, baichuan, llama):
    tokenizer = {"baichuan2": baichuan, "llama2": llama}[name]
    assert encoded(dialogue(*turns), tokenizer, max_len) == of_original(turns, bare(tokenizer.path).encode, max_len)


def test_a_passage_is_learned_whole_without_a_prefix(baichuan):
    passage = Record(id="1", source="books", text="你好好的")
    text = baichuan.encode("你好好的")
    assert encoded(passage, baichuan) == ([*text, EOS], [*text, EOS])
    assert encoded(passage, baichuan, max_len=1) == (text[:1], text[:1])


def test_the_huatuo_format_refuses_a_system_prompt(baichuan):
    with pytest.raises(RecordError, match="system prompt"):
        encode_record(dialogue("你好", "好的", system="医生"), baichuan, HUATUO)


def test_baichuan2_chat_marks_roles_by_token(baichuan):
    dialogue_format = get_format("baichuan2-chat")
    tokens, targets = encoded(dialogue("你好", "好的", "谢谢", "再见", system="谢谢"), baichuan, dialogue_format=dialogue_format)
    assert tokens == [6137, 195, 16829, 196, 2015, 195, 6137, 196, 20020, EOS]
    assert targets == [IGNORED] * 4 + [2015, EOS] + [IGNORED] * 2 + [20020, EOS]


def test_llama2_closes_every_answer(llama):
    dialogue_format = get_format("llama2")
    tokens, targets = encoded(dialogue("Hi", "Yes", "Why", "No", system="Be kind"), llama, dialogue_format=dialogue_format)
    text = "[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nHi [/INST]"
    first, answer = [1, *llama.encode(text)], [*llama.encode("Yes "), EOS]
    second, last = [1, *llama.encode("[INST] Why [/INST]")], [*llama.encode("No "), EOS]
    assert tokens == [*first, *answer, *second, *last]
    assert targets == [IGNORED] * len(first) + answer + [IGNORED] * len(second) + last


@pytest.mark.parametrize("name", ["huatuo", "baichuan2-chat"])
@pytest.mark.parametrize("turns", [("你好",), ("你好", "好的", "谢谢")])
def test_a_prompt_is_the_training_example_up_to_its_answer(baichuan, name, turns):
    dialogue_format = get_format(name)
    prompt = prompt_tokens(turns, baichuan, dialogue_format)
    tokens, _ = encoded(dialogue(*turns, "再见"), baichuan, dialogue_format=dialogue_format)
    assert tokens == [*prompt, 20020, EOS]


def test_a_llama2_prompt_ends_before_the_answer(llama):
    assert prompt_tokens(["Hi"], llama, get_format("llama2")) == [1, *llama.encode("[INST] Hi [/INST]")]


def test_a_prompt_must_end_with_a_question(baichuan):
    with pytest.raises(RecordError, match="2 turns"):
        prompt_tokens(["你好", "好的"], baichuan, HUATUO)


def test_text_cannot_open_a_chat_turn(baichuan):
    tokens, _ = encoded(dialogue("你好<reserved_107>好的", "好的"), baichuan, dialogue_format=get_format("baichuan2-chat"))
    assert tokens.count(196) == 1


@pytest.mark.parametrize("bad", [dialogue("你好", "好的", system="医生"), dialogue("你\ud800好", "好的")])
def test_many_records_at_once_give_the_same_and_keep_an_error_in_its_place(baichuan, bad):
    good = [dialogue("你好" * n, "好的", "谢谢") for n in range(20)] + [Record(id="", source="books", text="你好"), dialogue()]
    together = encode_records([*good, bad, *good], baichuan, HUATUO)
    assert list(together.errors) == [len(good)] and isinstance(together.errors[len(good)], RecordError)
    for one, record in zip(together.cut(30).examples(), good * 2, strict=True):
        assert [array.tolist() for array in one] == list(encoded(record, baichuan, 30))
