"""Exam questions are found in passages and dialogues however they are laid out, and texts on the same topic are left alone."""

import functools
import json
import lzma

import pytest

from data_tools.cli import main as huatuo_data
from data_tools.collect import decontaminate
from data_tools.collect.decontaminate import ExamIndex, decontaminate_files, text_of, with_questions
from data_tools.collect.exams import Item, read_exams, split_options, to_item
from data_tools.collect.ngrams import normalise
from data_tools.collect.settings import Overlap
from huatuo_jax.errors import ConfigError, DataError, RecordError
from tests.support.real_passages import texts

LONG = Item(
    "1",
    "exam",
    "男性，45岁，反复上腹部疼痛3年，饥饿时加重，进食后缓解，最可能的诊断是",
    ("胃溃疡", "十二指肠溃疡", "慢性胃炎", "胃癌"),
)
SHORT = Item("2", "exam", "治疗高血压首选的药物是", ("氢氯噻嗪", "阿司匹林", "二甲双胍", "布洛芬"))
ENGLISH = Item(
    "3",
    "exam",
    "A 23-year-old pregnant woman at 22 weeks gestation presents with burning upon urination. Which is the best treatment?",
    ("Ampicillin", "Ceftriaxone", "Doxycycline", "Nitrofurantoin"),
)
TINY = Item("4", "exam", "龋病好发于", ("下颌第一磨牙", "上颌中切牙", "下颌中切牙", "上颌尖牙"))
INDEX = ExamIndex([LONG, SHORT, ENGLISH, TINY])


def found(text: str) -> list[str]:
    return [hit.item.id for hit in INDEX.find([text])[0]]


def laid_out(item: Item) -> str:
    return (
        item.question + "\n" + "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGH", item.options, strict=False))
    )


@pytest.mark.parametrize("item", INDEX.items, ids=lambda item: item.id)
def test_a_question_is_found_within_a_passage(item):
    assert found(f"以下是一道例题。\n{laid_out(item)}\n答案见下文。Answer below.") == [item.id]


def test_case_spacing_and_the_order_of_options_make_no_difference():
    text = ENGLISH.question.upper().replace(" ", "\n") + " ".join(reversed(ENGLISH.options))
    assert found(text) == ["3"]


def test_a_long_question_is_found_without_its_options():
    assert found("病例：" + LONG.question + "什么？") == ["1"]


def test_a_common_phrase_is_no_question():
    assert found("治疗高血压首选的药物是利尿剂，其次是其他各类降压药。") == []
    assert found("龋病好发于儿童，下颌第一磨牙尤其常见。") == []


def test_a_question_of_middle_length_is_found_whole_without_its_options():
    middle = Item("m", "exam", "下列哪项是治疗高血压首选的药物", ("氢氯噻嗪", "阿司匹林"))  # 15 characters: 8 n-grams
    index = ExamIndex([middle])
    assert index.find([f"请问{middle.question}呢？"])[0] and not index.find(["请问治疗高血压首选的药物是什么？"])[0]


def test_a_short_question_without_options_must_be_a_line_of_its_own():
    index = ExamIndex([Item("o", "open", "胃痛怎么办")])
    assert index.find(["胃痛怎么办？\n先休息。"])[0] and not index.find(["我不知道胃痛怎么办，请指教。"])[0]


@pytest.mark.parametrize("item", INDEX.items, ids=lambda item: item.id)
def test_a_question_cut_between_two_texts_is_found_in_both_together(item):
    middle = {"1": item.question[18:], "3": item.question[60:]}.get(item.id, item.options[0])
    before, after = laid_out(item).split(middle, 1)
    texts = ["上一章。", f"病例讨论。{before}", f"{middle}{after}\n下一章。", "完。"]
    alone, cut = INDEX.find_with_cut(texts, [False, True, True, True])
    assert not any(alone) and [[hit.item.id for hit in hits] for hits in cut] == [[], [], [item.id], []]
    assert not any(INDEX.find_with_cut(texts, [False, True, False, True])[1]), "of two documents"


def test_a_question_that_one_text_holds_leaves_its_neighbour_alone():
    alone, cut = INDEX.find_with_cut(["上一章。", laid_out(LONG), "下一章。"], [False, True, True])
    assert [bool(hits) for hits in alone] == [False, True, False] and not any(cut)


def test_both_passages_of_a_cut_question_go_also_where_two_batches_meet(monkeypatch):
    monkeypatch.setattr(decontaminate, "BATCH", 2)
    texts = ["上一章。", "例题。" + LONG.question[:18], LONG.question[18:], "下一章。", laid_out(SHORT)]
    rows = [{"id": f"a-b-{number}", "text": text} for number, text in enumerate(texts)]
    for shift in range(2):
        given = [{"id": "z-0", "text": "前言"}] * shift + rows
        found = [[hit.item.id for hit in hits] for _, hits in with_questions(iter(given), INDEX)]
        assert found[shift:] == [[], ["1"], ["1"], [], ["2"]]


@pytest.mark.slow
def test_no_question_of_middle_length_occurs_in_real_texts_by_chance(shared_data):
    """The figure in `Overlap`: of questions with 6 to 11 n-grams, which are found by themselves if whole, none is found."""
    index = ExamIndex(read_exams(sorted((shared_data / "exams").glob("*.jsonl.xz"))))
    sizes = dict(zip(index.items, index.sizes.tolist(), strict=True))
    found = []
    for path in [*(shared_data / "corpus").glob("*.jsonl.xz"), shared_data / "sft" / "sft_zh.jsonl.xz"]:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        documents = [row.get("text") or "\n".join(row["turns"]) for row in rows]
        for start in range(0, len(documents), 512):
            found += [hit.item for hits in index.find(documents[start : start + 512]) for hit in hits]
    assert not [item.question for item in found if 6 <= sizes[item] <= 11]


def test_half_a_question_is_found_if_so_little_is_asked_for():
    half = LONG.question[: len(LONG.question) // 2]
    assert found(half) == [] and ExamIndex([LONG], Overlap(share=0.3)).find([half])[0]


@pytest.mark.parametrize("wrong", [{"share": 0}, {"share": 1.5}, {"zh_characters": 1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        Overlap(**wrong)


@pytest.mark.parametrize(
    "row",
    [
        {"options": '["heart", "kidney"]'},
        {"options": "{'A': 'heart', 'B': 'kidney'}"},
        {"options": '{"A": "heart", "B": "kidney"}'},
        {"options": "heart; kidney"},
        {"choices": "A: heart|B: kidney"},
        {"multiple_choice": ["heart", "kidney"]},
        {"possible_answers": ["heart", "kidney"]},
        {"选择项": {"A": "heart", "B": "kidney"}},
        {"answer_a": "heart", "answer_b": "kidney"},
        {"A选项": "heart", "B选项": "kidney"},
    ],
    ids=str,
)
def test_options_in_cells_of_tables_and_under_other_names_are_read(row):
    assert to_item({"question": "Which organ?", "answer": "B", **row}, "exam", "1").options == ("heart", "kidney")


def test_options_that_only_look_like_a_list_are_refused():
    with pytest.raises(RecordError, match=r"`options` begins as a list or an object, but is none"):
        to_item({"question": "Which organ?", "options": "[heart, kidney"}, "exam", "1")


def test_a_file_without_questions_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "no question"}\n')
    with pytest.raises(DataError, match="line 1: no exam question"):
        read_exams([tmp_path / "a.jsonl"])


def test_every_planted_question_of_real_exams_is_found(shared_data):
    names = ["medqa_mcmle_test", "medqa_usmle_test", "cmb_test"]
    items = read_exams([shared_data / "exams" / f"{name}.jsonl.xz" for name in names])
    index = ExamIndex(items)
    planted = items[::40]
    passages = texts(shared_data, "medical_books_cn", 100, 300)
    holding = [f"{passages[i % 100][:300]}\n{laid_out(item)}\n{passages[-1][:200]}" for i, item in enumerate(planted)]
    hits = index.find(holding)
    missed = [item for item, own in zip(planted, hits, strict=True) if item not in [hit.item for hit in own]]
    assert not missed and len(planted) > 150


def test_a_short_question_is_found_as_a_line_of_its_own_with_some_of_its_options():
    assert found("12. 治疗高血压首选的药物是（  ）\n利尿剂，如氢氯噻嗪。") == ["2"]
    assert found("治疗高血压首选的药物是\n利尿剂。") == []


def test_known_overlaps_between_exams_are_found(shared_data, tmp_path):
    exams = shared_data / "exams"

    @functools.cache
    def questions(exam: str) -> list[str]:
        with lzma.open(exams / f"{exam}.jsonl.xz", "rt", encoding="utf-8") as file:
            return ["".join(filter(str.isalnum, normalise(json.loads(line)["question"]))) for line in file]

    found_of = {}
    for other in ("medqa_mcmle_test", "cmb_test"):
        out = tmp_path / other
        words = ["decontaminate", exams / "cmexam_val.jsonl.xz", "--exams", exams / f"{other}.jsonl.xz", "--out", out]
        assert huatuo_data([*map(str, words), "--quiet", "--json", str(tmp_path / "report.json")]) == 0
        lines = {json.loads(line)["line"] for line in (out / "contaminated.jsonl").read_text().splitlines()}
        known = {line for line, question in enumerate(questions("cmexam_val"), 1) if question in set(questions(other))}
        assert known <= lines, "others, with a few changed characters, come on top"
        found_of[other] = len(known)
    assert found_of == {"medqa_mcmle_test": 61, "cmb_test": 14}


def test_the_command_cleans_dialogues_of_several_layouts_and_lists_what_it_removed(tmp_path):
    (tmp_path / "exam.jsonl").write_text(
        json.dumps({"id": "x", "question": LONG.question, "options": dict(zip("ABCD", LONG.options, strict=False))})
    )
    rows = {
        "turns.jsonl": [{"source": "sft", "turns": ["你好", "您好"]}, {"source": "sft", "turns": [laid_out(LONG), "答案是B"]}],
        "hub.jsonl": [{"id": 1, "conversations": [{"from": "human", "value": LONG.question}, {"from": "gpt", "value": "B"}]}],
        "alpaca.jsonl": [{"instruction": "翻译", "input": "头痛", "output": "headache"}],
    }
    for name, content in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    with lzma.open(tmp_path / "huatuo.json.xz", "wt") as file:
        json.dump({"SFT_data": [[laid_out(LONG), "B"], ["问", "答"]]}, file)
    files = [*rows, "huatuo.json.xz"]
    words = [
        "decontaminate",
        *(tmp_path / name for name in files),
        "--exams",
        tmp_path / "exam.jsonl",
        "--out",
        tmp_path / "clean",
    ]
    assert huatuo_data([*map(str, words), "--quiet"]) == 0
    kept = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in (tmp_path / "clean").iterdir()}
    assert (
        kept["turns.jsonl"] == rows["turns.jsonl"][:1]
        and kept["hub.jsonl"] == []
        and kept["alpaca.jsonl"] == rows["alpaca.jsonl"]
    )
    assert kept["huatuo.jsonl"] == [{"source": "SFT_data", "turns": ["问", "答"]}]
    assert [entry["questions"][0]["item"] for entry in kept["contaminated.jsonl"]] == ["x", "x", "x"]


# Layouts of exams

ASKED = "下列药物中，治疗单纯疱疹病毒性角膜炎首选的是"
TEXTS = ("阿昔洛韦", "青霉素", "氟康唑", "利福平")
LETTERED = dict(zip("ABCD", TEXTS, strict=True))
LAYOUTS = {
    "ours": {"question": ASKED, "options": LETTERED, "answer": "A"},
    "cmb": {"exam_type": "医师考试", "question": ASKED, "answer": "A", "question_type": "单项选择题", "option": LETTERED},
    "mmlu": {"question": ASKED, "choices": list(TEXTS), "answer": 0},
    "medmcqa": {"question": ASKED, "opa": TEXTS[0], "opb": TEXTS[1], "opc": TEXTS[2], "opd": TEXTS[3], "cop": 1},
    "key and value": {"question": ASKED, "options": [{"key": k, "value": v} for k, v in LETTERED.items()]},
    "one text": {"question": ASKED, "options": "\n".join(f"{k}. {v}" for k, v in LETTERED.items())},
    "one line of text": {"question": ASKED, "options": " ".join(f"({k}) {v}" for k, v in LETTERED.items())},
    "within the question": {"question": ASKED + "\n" + "\n".join(f"{k}、{v}" for k, v in LETTERED.items()), "answer": "A"},
    "ceval": {"id": 1, "question": ASKED, **LETTERED, "answer": "A", "explanation": ""},
    "cmmlu": {"Question": ASKED, **LETTERED, "Answer": "A"},
    "arc": {"question": ASKED, "choices": {"text": list(TEXTS), "label": list("ABCD")}, "answerKey": "A"},
    "commonsenseqa": {"question": {"stem": ASKED, "choices": [{"label": k, "text": v} for k, v in LETTERED.items()]}},
    "openbookqa": {"question_stem": ASKED, "choices": {"text": list(TEXTS), "label": list("ABCD")}},
    "headqa": {"qtext": ASKED, "answers": [{"aid": i, "atext": v} for i, v in enumerate(TEXTS)], "ra": 1},
    "option_a": {"query": ASKED, **{f"option_{k.lower()}": v for k, v in LETTERED.items()}},
    "pairs": {"题目": ASKED, "选项": [[k, v] for k, v in LETTERED.items()], "答案": "A"},
    "sciq": {"question": ASKED, "correct_answer": TEXTS[0], **{f"distractor{i}": TEXTS[i] for i in (1, 2, 3)}, "support": "略"},
    "truthfulqa": {"question": ASKED, "correct_answer": TEXTS[0], "incorrect_answers": list(TEXTS[1:])},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_question_and_its_options(layout):
    item = to_item(LAYOUTS[layout], "exam", "7")
    assert (item.question, sorted(item.options)) == (ASKED, sorted(TEXTS))
    assert item.id == ("1" if layout == "ceval" else "7")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_short_question_of_every_layout_is_found_by_its_options_and_in_rows_of_it(layout, tmp_path):
    row = json.loads(json.dumps(LAYOUTS[layout], ensure_ascii=False).replace(ASKED, "首选的药物是"))
    index = ExamIndex([to_item(row, "exam", "7")])
    assert index.find(["首选的药物是\n" + "\n".join(TEXTS)])[0] and not index.find(["首选的药物是利尿剂，效果好。"])[0]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False))
    report = decontaminate_files([tmp_path / "rows.jsonl"], tmp_path / "out", index)
    assert report["files"]["rows.jsonl"] == {"rows": 1, "contaminated": 1, "rejected": 0}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": ASKED, "options": 4}, "`options` holds options in a form that is not known"),
        ({"question": ASKED, "choices": [None, True]}, "`choices` holds options in a form"),
        ({"text": "x"}, "no exam question .* its keys are text"),
        (["A"], "not of type list"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_and_not_half_read(row, message):
    with pytest.raises(RecordError, match=message):
        to_item(row, "exam", "1")


def test_letters_in_running_text_are_no_options():
    assert split_options("缺乏维生素 A. 会引起夜盲症") == ("缺乏维生素 A. 会引起夜盲症", [])
    assert split_options("Hepatitis B. What is it?") == ("Hepatitis B. What is it?", [])
    assert split_options("Which? A. one B. two")[1] == ["one", "two"]
    assert split_options("A 40-year-old man. Which?\n(A) one\n(B) two") == ("A 40-year-old man. Which?", ["one", "two"])
    assert split_options("A 原发病\nB 出血部位\nC 出血量")[1] == ["原发病", "出血部位", "出血量"]
    assert split_options("Which?\nA. rest\nB. C. difficile assay\nC. none\nD. ")[1] == ["rest", "C. difficile assay", "none", ""]
    assert split_options("血型为A、B、AB、O型的患者") == ("血型为A、B、AB、O型的患者", [])


def test_one_odd_row_of_an_exam_is_named_and_the_others_are_read(tmp_path, capsys):
    rows = [{"question": f"{ASKED}（第{i}题）", "option": LETTERED} for i in range(120)]
    rows.insert(3, {"note": "end of part one"})
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sft.jsonl").write_text(json.dumps({"turns": ["问", "答"]}))
    words = ["decontaminate", tmp_path / "sft.jsonl", "--exams", tmp_path / "exam.jsonl", "--out", tmp_path / "out"]
    assert huatuo_data(list(map(str, words))) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 rows of the exams are no questions" in shown and "line 4: no exam question" in shown


def test_odd_rows_of_a_data_set_are_listed_and_the_others_are_written(tmp_path):
    lines = [json.dumps({"turns": [f"问{i}", "答"]}) for i in range(150)]
    lines.insert(2, "{broken")
    (tmp_path / "sft.jsonl").write_text("\n".join(lines))
    report = decontaminate_files([tmp_path / "sft.jsonl"], tmp_path / "out", INDEX)
    assert report["files"]["sft.jsonl"] == {"rows": 150, "contaminated": 0, "rejected": 1}
    [entry] = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert entry["line"] == 3 and "not valid JSON" in entry["reason"]
    with pytest.raises(DataError, match="rejected"):
        (tmp_path / "bad.jsonl").write_text('{"n": 1}\n{"text": "好"}\n')
        decontaminate_files([tmp_path / "bad.jsonl"], tmp_path / "other", INDEX)


def test_an_answer_that_is_no_turn_is_searched_too(tmp_path):
    row = {"question": "请看例题", "answer": laid_out(LONG)}
    assert [hit.item.id for hit in INDEX.find([text_of(row)])[0]] == ["1"]
