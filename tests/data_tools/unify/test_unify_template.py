"""Passages become pairs by rule: what the question is, in which language, and that it never changes."""

import json

import pytest

from data_tools.cli import main
from data_tools.records.language import language_of_passage
from data_tools.records.unified import UnifiedDataset
from data_tools.unify.passages import ABOUT, OPENING, Passage, to_pair
from huatuo_jax.errors import RecordError


def pair(text: str, title: str = "", id: str = "1", source: str = "medical_books_cn") -> tuple[str, str]:
    return to_pair(Passage(id, source, text, title))


def test_a_title_is_asked_about_and_the_passage_answers():
    question, answer = pair("心脏收缩和舒张构成心动周期。", title="心动周期")
    assert question in [wording.format("心动周期") for wording in ABOUT["zh"]]
    assert answer == "心脏收缩和舒张构成心动周期。"


def test_the_question_speaks_the_passages_language():
    question, _ = pair("The heart has four chambers.", title="Heart chambers")
    assert question in [wording.format("Heart chambers") for wording in ABOUT["en"]]
    assert language_of_passage("阿司匹林 (aspirin) 抑制血小板聚集") == "zh"


def test_wordings_vary_with_the_id_but_not_between_runs():
    questions = [pair("内容。", title="题", id=str(i))[0] for i in range(100)]
    assert questions == [pair("内容。", title="题", id=str(i))[0] for i in range(100)]
    assert set(questions) == {wording.format("题") for wording in ABOUT["zh"]}


def test_a_consultation_keeps_the_patients_words_and_the_doctors():
    text = "高血压能吃党参吗？\n患者：我有高血压，可以吃党参吗？\n医生：可以适量吃。\n注意监测血压。"
    assert pair(text) == ("我有高血压，可以吃党参吗？", "可以适量吃。\n注意监测血压。")


def test_a_patient_who_asks_nothing_is_completed_by_the_title():
    assert pair("怎么办？\n患者：头痛三天。\n医生：请就诊。") == ("头痛三天。\n怎么办？", "请就诊。")


def test_a_question_in_the_first_two_lines_is_the_question():
    assert pair("Acne\nWhat causes Acne ?\nBlocked pores.\nBacteria.") == ("What causes Acne?", "Blocked pores.\nBacteria.")
    assert pair("is my test conclusive?\nyes it is.") == ("is my test conclusive?", "yes it is.")


def test_a_short_first_line_is_a_title():
    question, answer = pair("氨肽素\n药品类型:血液系统药物\n剂型:片剂")
    assert "氨肽素" in question
    assert answer == "药品类型:血液系统药物\n剂型:片剂"


def test_a_marked_title_may_hold_punctuation():
    question, answer = pair("TITLE: \nDiet, exercise and sleep.\nBACKGROUND:\nWe asked.")
    assert "Diet, exercise and sleep" in question
    assert answer == "BACKGROUND:\nWe asked."


def test_a_passage_that_begins_within_a_sentence_is_quoted():
    text = "取出，用米泔浸七日，\n焙干为末。" + "每服二钱。" * 10
    question, answer = pair(text)
    assert "取出，用米泔浸七日， 焙干为末。" in question
    assert answer == text


def test_english_quotes_end_at_a_word():
    question, _ = pair("Advanced glycation end products formed by non-enzymatic reactions have been found in many diseases.")
    assert "formed by non-enzymatic reactions have been …" in question


def test_the_questions_name_no_domain():
    wordings = [wording for language in (*ABOUT.values(), *OPENING.values()) for wording in language]
    assert not [wording for wording in wordings if "医" in wording or "medic" in wording.lower()]


def test_the_first_line_of_any_domains_web_corpus_is_the_question():
    text = "my landlord keeps the deposit\nHe has to say why."
    assert pair(text, source="law_web_corpus_en") == ("my landlord keeps the deposit", "He has to say why.")


def test_a_blank_passage_is_refused():
    with pytest.raises(RecordError, match="passage is blank"):
        pair(" \n ")


def test_the_command_writes_what_import_reads(tmp_path, repository):
    corpus = sorted((repository / "examples" / "quickstart" / "corpus").glob("*.jsonl"))
    out = tmp_path / "pairs.jsonl"
    assert main(["unify", "--template", *map(str, corpus), "--out", str(out), "--quiet"]) == 0
    assert main(["import", str(out), "--out", str(tmp_path / "unified"), "--quiet"]) == 0
    rows = [json.loads(line) for path in corpus for line in path.read_text().splitlines()]
    found = list(UnifiedDataset(tmp_path / "unified"))
    assert [(r.id, r.source) for r in found] == [(row["id"], row["source"]) for row in rows]
    assert all(r.turns[1] and r.turns[1] in row["text"] for r, row in zip(found, rows, strict=True))


def test_dialogues_are_rejected_with_the_way_to_go(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"turns": ["q", "a"]}\n')
    assert main(["unify", "--template", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--quiet"]) == 1
    assert "huatuo-data import" in (tmp_path / "o.rejected.jsonl").read_text()
    assert not (tmp_path / "o.jsonl").exists()


def test_one_method_must_be_chosen(tmp_path):
    assert main(["unify", "x.jsonl", "--out", str(tmp_path / "o.jsonl")]) == 2
