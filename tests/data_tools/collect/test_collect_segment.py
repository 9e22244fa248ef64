"""Passages tile their document, keep to the window, and are cut where a reader would cut."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.collect.passages import segment
from data_tools.collect.settings import Window
from huatuo_jax.errors import ConfigError

PIECES = [
    "发热",
    "。",
    "\n",
    "\n\n",
    "  ",
    "Pain.",
    " The ",
    "Dr. ",
    "1. ",
    "- ",
    "|a|b|\n",
    "标题\n",
    "：\n",
    "”",
    "3.5",
    "长" * 40,
    "x" * 50,
]


def passages(text, window, language):
    return [text[start:end] for start, end in segment(text, window, language)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=60).map("".join), st.sampled_from(["zh", "en"]))
def test_joined_passages_give_the_document_back(text, language):
    found = passages(text, Window(10, 50), language)
    assert "".join(found) == text
    assert all(0 < len(passage) <= 50 for passage in found)
    assert all(len(passage) >= 10 for passage in found) or len(text) < 10


def test_a_document_that_fits_is_one_passage():
    assert passages("短文。不必切。", Window(2, 50), "zh") == ["短文。不必切。"]


def test_chinese_is_cut_after_sentences_and_closing_quotes():
    text = "医生说：“先休息三天。”患者同意了这个安排！随后又做了一次检查，结果正常。最后出院回家。"
    assert passages(text, Window(8, 24), "zh") == [
        "医生说：“先休息三天。”患者同意了这个安排！",
        "随后又做了一次检查，结果正常。最后出院回家。",
    ]


def test_english_is_not_cut_within_abbreviations_or_numbers():
    text = "Dr. Smith gave 2.5 mg daily to J. Brown. He felt well after that. The dose, e.g. Monday's, was kept as it was."
    assert passages(text, Window(20, 60), "en") == [
        "Dr. Smith gave 2.5 mg daily to J. Brown. ",
        "He felt well after that. ",
        "The dose, e.g. Monday's, was kept as it was.",
    ]


def test_a_heading_stays_with_what_follows():
    text = "概述\n" + "这是一种常见的病。" * 4 + "\n\n治疗\n" + "首先应当卧床休息。" * 4
    assert passages(text, Window(20, 60), "zh") == [text[: text.index("治疗")], text[text.index("治疗") :]]


def test_a_list_stays_with_the_line_that_introduces_it():
    before = "这一段文字与清单没有关系，只是放在前面。\n"
    listed = "注意事项如下：\n1. 多喝水\n2. 多休息\n3. 少熬夜\n"
    first, second = passages(before + listed + "后面是另外一段文字，也没有关系。", Window(15, 45), "zh")
    assert first == before and second.startswith(listed)


def test_a_table_stays_whole_where_it_fits():
    table = "剂量表：\n|药|量|\n|甲|一片|\n|乙|两片|\n"
    found = passages(
        "先说几句无关的话，凑够长度再看表格。\n" + table + "表后面的话继续下去，直到结束为止。", Window(15, 40), "zh"
    )
    assert table in found


def test_a_sentence_longer_than_the_window_is_cut_at_a_blank():
    assert passages("word " * 30, Window(10, 52), "en")[0] == "word " * 10


@pytest.mark.parametrize("blank", " \t\r　")
def test_a_long_run_of_blanks_takes_linear_time(blank):
    text = "前文" + blank * 50_000 + "后文"
    began = time.process_time()
    assert "".join(passages(text, Window(60, 600), "zh")) == text
    assert time.process_time() - began < 1


def test_blanks_at_the_end_of_a_line_change_no_cut():
    text = "概述  \n" + "这是一种常见的病。" * 4 + " \r\n　\n治疗\t\n" + "首先应当卧床休息。" * 4
    assert passages(text, Window(20, 70), "zh") == [text[: text.index("治疗")], text[text.index("治疗") :]]


def test_an_impossible_window_is_refused():
    with pytest.raises(ConfigError, match="40 to 60"):
        Window(40, 60)
