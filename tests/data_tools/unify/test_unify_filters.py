"""Each rule rejects what it is for and lets its neighbours pass; every rule can be switched."""

import pytest

from data_tools.unify.filters import (
    DEFAULT,
    FAITHFUL,
    Candidate,
    Filters,
    Limits,
    RecallStatistics,
    choose_filters,
    recall,
    units,
)
from data_tools.unify.passages import Passage
from data_tools.unify.rewriting import bare_text
from huatuo_jax.errors import ConfigError

ENGLISH = Passage("1", "books", "Aspirin inhibits platelet aggregation. It is given after a myocardial infarction.")
CHINESE = Passage("2", "books", "阿司匹林抑制血小板聚集，用于心肌梗死之后。", title="阿司匹林的作用")


def reason(step: str, text: str, passage: Passage = ENGLISH, finish: str = "stop", filters: Filters | None = None) -> str | None:
    language = "zh" if passage is CHINESE else "en"
    return (filters or Filters()).reason(step, Candidate(passage, language, text, finish))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("根据上文，它抑制血小板聚集，用于心肌梗死。", "leak"),
        ("文中提到阿司匹林抑制血小板聚集，用于心肌梗死之后。", "leak"),
        ("根据您提供的资料，阿司匹林抑制血小板聚集，用于心肌梗死之后。", "leak"),
        ("资料显示，阿司匹林抑制血小板聚集，用于心肌梗死之后。", "leak"),
        ("阿司匹林抑制血小板聚集。上述内容表明，它用于心肌梗死之后。", "leak"),
        ("该段落说明阿司匹林抑制血小板聚集，用于心肌梗死之后。", "leak"),
        ("研究资料显示，阿司匹林抑制血小板聚集，用于心肌梗死之后。", None),
        ("阿司匹林抑制血小板聚集，用于心肌梗死之后，仅供参考。", "reference"),
        ("非常抱歉，我无法回答这个问题。", "refusal"),
        ("作为一个人工智能语言模型，我不能提供建议。", "refusal"),
        ("Aspirin inhibits platelet aggregation.", "language"),
        ("它是一种常用的药。", "coverage"),
        ("", "empty"),
        ("很抱歉听到您的情况。阿司匹林抑制血小板聚集，用于心肌梗死之后。", None),
        ("阿司匹林抑制血小板聚集，用于心肌梗死之后。", None),
    ],
)
def test_chinese_answers(text, expected):
    assert reason("answer", text, CHINESE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("According to the provided text, aspirin inhibits platelet aggregation after infarction.", "leak"),
        ("The passage states that aspirin inhibits platelet aggregation after infarction.", "leak"),
        ("Based on the given information, aspirin inhibits platelet aggregation.", "leak"),
        ("The material says that aspirin inhibits platelet aggregation after infarction.", "leak"),
        ("In the given context, aspirin inhibits platelet aggregation after infarction.", "leak"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I'm sorry, but this is a question for a doctor. Aspirin inhibits platelet aggregation.", "refusal"),
        ("I am unable to give medical advice. Aspirin inhibits platelet aggregation after infarction.", "refusal"),
        ("I cannot help but note that aspirin inhibits platelet aggregation after infarction.", None),
        ("I'm sorry to hear that. Aspirin inhibits platelet aggregation after infarction.", None),
        ("In the context of infarction, aspirin inhibits platelet aggregation.", None),
        ("As an AI language model, I have no opinion.", "refusal"),
        ("阿司匹林抑制血小板聚集。", "language"),
        ("It is a drug.", "coverage"),
        ("According to the WHO, aspirin inhibits platelet aggregation after myocardial infarction.", None),
        ("Aspirin inhibits platelet aggregation.", None),
    ],
)
def test_english_answers(text, expected):
    assert reason("answer", text) == expected


@pytest.mark.parametrize(
    ("text", "passage", "expected"),
    [
        ("阿司匹林的作用是什么？", CHINESE, "question_title"),
        ("请介绍一下阿司匹林的作用。", CHINESE, "question_title"),
        ("我父亲刚得过心肌梗死，医生为什么让他吃阿司匹林？", CHINESE, None),
        ("这段文字讲了什么？", CHINESE, "question_leak"),
        ("What does this study say about aspirin?", ENGLISH, "question_leak"),
        ("Why is aspirin given after a heart attack?", ENGLISH, None),
        ("Why? " * 40, ENGLISH, "question_length"),
        ("为什么？", ENGLISH, "language"),
    ],
)
def test_questions(text, passage, expected):
    assert reason("question", text, passage) == expected


@pytest.mark.parametrize(("finish", "expected"), [("length", "truncated"), ("content_filter", "blocked"), ("refused", "refused")])
def test_texts_that_the_endpoint_ended_itself(finish, expected):
    assert reason("answer", "Aspirin inhibits platelet aggregation", finish=finish) == expected


def test_a_question_of_180_characters_is_the_longest():
    fits = "Why " + "a" * 175 + "?"
    assert len(fits) == 180
    assert reason("question", fits) is None
    assert reason("question", fits + "?") == "question_length"


def test_jaccard_is_off_and_compares_character_sets_of_chinese_texts_only():
    on = choose_filters(frozenset(), ["jaccard"], [], Limits())
    half = Passage("3", "s", "甲乙丙丁")
    assert "jaccard" not in DEFAULT
    for text, expected in (("甲乙丙", None), ("甲乙", "jaccard"), ("甲乙丙丁", None)):
        assert on.reason("answer", Candidate(half, "zh", text)) == expected
    assert on.reason("answer", Candidate(ENGLISH, "en", "no")) is None


def test_jaccard_looks_at_600_characters_of_the_passage_as_the_original_does():
    passage = Passage("4", "s", "甲" * 600 + "乙丙丁戊")
    on = choose_filters(frozenset(), ["jaccard"], [], Limits())
    assert on.reason("answer", Candidate(passage, "zh", "甲")) is None


@pytest.mark.parametrize("name", sorted(DEFAULT - {"refused", "blocked", "empty"}))
def test_every_filter_can_be_switched_off(name):
    assert name not in choose_filters(DEFAULT, [], [name], Limits()).enabled


def test_the_original_has_two_filters_of_its_own():
    assert FAITHFUL - {"refused", "blocked", "empty"} == {"question_length", "reference"}


@pytest.mark.parametrize(
    ("on", "off", "limits", "message"),
    [
        (["nonsense"], [], Limits(), "no filter is called nonsense"),
        ([], ["empty"], Limits(), "cannot be switched off"),
        (["leak"], ["leak"], Limits(), "on and off at once"),
        ([], [], Limits(coverage=2), "between 0 and 1"),
        ([], [], Limits(question_characters=0), "at least 1"),
    ],
)
def test_wrong_choices_are_named(on, off, limits, message):
    with pytest.raises(ConfigError, match=message):
        choose_filters(DEFAULT, on, off, limits)


def test_units_are_character_pairs_words_and_numbers():
    assert units("心率为60次/分") == {"心率", "率为", "60"}
    assert units("The Heart beats 60.5 times") == {"heart", "beats", "60.5", "times"}


def test_recall_is_the_share_of_the_passages_units():
    assert recall("alpha beta gamma delta", "beta delta omega") == 0.5
    assert recall("心率加快", "心率") == pytest.approx(1 / 3)
    assert recall("alpha beta", "心率加快") is None
    assert recall("...", "alpha") is None


def test_a_long_text_with_a_short_answer_shows_in_the_report():
    statistics = RecallStatistics()
    text = " ".join(f"fact{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300))
    statistics.add("books", text, text)
    statistics.add("books", text, " ".join(text.split()[:30]))
    row = statistics.report()["books"]
    assert row["mean"] == pytest.approx(0.55)
    assert row["length_ratio"] == pytest.approx(0.55, abs=0.01)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("问题：为什么？", "为什么？"),
        ("“为什么？”", "为什么？"),
        ("<think>Let me see …</think>\n\nWhy?", "Why?"),
        ('Question: "Why is that?"', "Why is that?"),
        ('"Why" and "how"', '"Why" and "how"'),
    ],
)
def test_labels_quotation_marks_and_reasoning_are_taken_off(text, expected):
    assert bare_text(text, "question") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**问题：** 为什么？", "为什么？"),
        ("**问题**：为什么？", "为什么？"),
        ("Question: Why?", "Why?"),
        ("1. Why?", "Why?"),
        ('"Why?"', "Why?"),
        ("1. **问题：** “为什么？”", "为什么？"),
        ("### 问题\n为什么？", "为什么？"),
        ("【问题】为什么？", "为什么？"),
        ("Q: Why?\nA: Because.", "Why?"),
        ("为什么缺铁？\n\n答案：因为失血。", "为什么缺铁？"),
        ("问题：为什么缺铁？\n回答：因为失血。", "为什么缺铁？"),
        ("**Question:** Why?\n\n**Answer:** Because.", "Why?"),
        ("（1）为什么？", "为什么？"),
        ("1、为什么？", "为什么？"),
        ("- Why?", "Why?"),
        ("Question 1: Why?", "Why?"),
        ("问题一：为什么？", "为什么？"),
        ("**Question: Why?**", "Why?"),
        ("**Why?**", "Why?"),
        ("Sure! Here is the question:\nWhy?", "Why?"),
        ("好的，以下是问题：\n为什么？", "为什么？"),
        ("1.5 mg of X is what?", "1.5 mg of X is what?"),
        ("一、二级预防是什么？", "一、二级预防是什么？"),
        ("1. Why?\n2. How?", "1. Why?\n2. How?"),
        ("1型糖尿病怎么治？", "1型糖尿病怎么治？"),
        ("Which drug?\nA: aspirin\nB: heparin", "Which drug?\nA: aspirin\nB: heparin"),
        ('"Why" and "how"', '"Why" and "how"'),
        ("「为什么？」", "为什么？"),
        ("Question", "Question"),
        ("Questions of iron are hard: why?", "Questions of iron are hard: why?"),
        ("Q1: Why?", "Why?"),
    ],
)
def test_a_question_is_freed_of_what_stands_around_it(text, expected):
    assert bare_text(text, "question") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\n\n</think>\n\n问题：为什么？", "为什么？"),
        ("</think>\n\nWhy?", "Why?"),
        ("<thinking>a</think>Why?", "Why?"),
        ("**Thinking**\n\na\n\n**Answer**\n\nWhy?", "Why?"),
        ("### 思考\n甲\n### 回答\n为什么？", "为什么？"),
        ("Thought: a\nAnswer: Why?", "Why?"),
        ("<think>a</think>\n\n---\n\nWhy?", "Why?"),
        ("<|thinking|>a<|/thinking|>Why?", "Why?"),
        ("<|channel|>final<|message|>Why?", "Why?"),
        ("<|channel|>commentary<|message|>a<|end|>", None),
        ("<|channel|>analysis<|message|>a<|end|>Why?", None),
        ("<think>甲</think>\n\n<question>为什么？</question>", "为什么？"),
        ("思考：甲\n\n问题：为什么？", "为什么？"),
        ("<Think>\na\n</Think>\n**Question:** Why?", "Why?"),
        ("<reflection>a</reflection>\nWhy?", "Why?"),
        ("<longcat_think>a</longcat_think>Why?", "Why?"),
        ("<｜begin▁of▁thinking｜>a<｜end▁of▁thinking｜>Why?", "Why?"),
        ("<inner_monologue>a</inner_monologue>Why?", "Why?"),
        ("<chain-of-thought>a</chain-of-thought>Why?", "Why?"),
        ("<scratchpad>\na</scratchpad>\n\nWhy?", "Why?"),
        ("Why?\n\n<think>Is it good? Yes.</think>", "Why?"),
        ("Hm.</thinking>\nWhy?", "Why?"),
        ("◁/think▷Why?", "Why?"),
        ("嗯。◁/think▷为什么？", "为什么？"),
        ("<thought>", None),
        ("```\n<think>a</think>\nWhy?\n```", None),
        ("What does the tag “<think>” mean in a prompt?", "What does the tag “<think>” mean in a prompt?"),
        ("What is the <thinking> block for?", "What is the <thinking> block for?"),
        ("Is <i>E. coli</i> common?", "Is <i>E. coli</i> common?"),
        ("Why is Hb < 7 and reason > 3?", "Why is Hb < 7 and reason > 3?"),
        ("1) **Question:** “Why?”", "Why?"),
        ("Q：为什么？\nA：因为。", "为什么？"),
        ("问：为什么？答：因为。", "为什么？"),
        ("Why? Answer: Because.", "Why?"),
        ("Why? **Answer:** Because.", "Why?"),
        ("# Question\n\nWhy?\n\n# Answer\n\nBecause.", "Why?"),
        ("Final answer: Why?", "Final answer: Why?"),
    ],
)
def test_reasoning_and_labels_go_together(text, expected):
    """None: the reasoning cannot be separated."""
    assert bare_text(text, "question") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. First.\n2. Second.", "1. First.\n2. Second."),
        ("回答：因为。", "因为。"),
        ("**Answer:** Because.", "Because."),
        ("以下是常见问题：甲。", "以下是常见问题：甲。"),
        ("A: aspirin; B: b", "A: aspirin; B: b"),
        ("**答**：因为", "因为"),
    ],
)
def test_an_answer_keeps_its_numbers_and_lists(text, expected):
    assert bare_text(text, "answer") == expected


@pytest.mark.parametrize(
    ("text", "passage", "expected"),
    [
        ("Why is ferritin low in iron deficiency?", ENGLISH, None),
        ("Why is ferritin low? Because iron is low.", ENGLISH, "question_answered"),
        ("Why is ferritin low?\nFerritin falls first as stores are used.", ENGLISH, "question_answered"),
        ("Why is ferritin low?\nPlease explain in detail.", ENGLISH, None),
        ("Let me think about the passage first. Why?", ENGLISH, "thinking"),
        ("Okay, the user wants a question. Why is iron low?", ENGLISH, "thinking"),
        ("I am 30. My ferritin is low.\nWhat should I do?", ENGLISH, None),
        ("问：为什么", ENGLISH, "language"),
        ("为什么缺铁时铁蛋白低？因为储备先耗尽。", CHINESE, "question_answered"),
        ("为什么缺铁时铁蛋白低？\n铁蛋白反映储备，缺铁时先下降。", CHINESE, "question_answered"),
        ("我30岁，铁蛋白低。\n该怎么办？请详细说明。", CHINESE, None),
        ("好的，用户想要一个问题。为什么缺铁？", CHINESE, "thinking"),
        ("让我想想。为什么缺铁？", CHINESE, "thinking"),
        ("用户友好的血糖仪有哪些？", CHINESE, None),
    ],
)
def test_questions_that_answer_themselves_and_thoughts_without_a_mark(text, passage, expected):
    assert reason("question", text, passage) == expected
