"""Every layout becomes the same record; what is not a record says why."""

import pytest

from data_tools.cli.dataset import import_records_arguments
from data_tools.records.layouts import LAYOUTS as KNOWN
from data_tools.records.layouts import canonical_source, to_record
from huatuo_jax.cli.arguments import Parser
from huatuo_jax.data.dialogue import Record
from huatuo_jax.errors import RecordError
from huatuo_jax.io.jsonl import KeyedValue

DIALOGUE = ("头痛怎么办？", "多休息。", "要吃药吗？", "先看医生。")


def read(value, layout="auto", source=None) -> Record:
    return to_record(value, layout, source, "from_file", lambda: "made")


LAYOUTS = {
    "huatuo": KeyedValue("SFT_data", list(DIALOGUE)),
    "hub": {
        "id": "7",
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(DIALOGUE)],
    },
    "openai": {"id": "7", "messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(DIALOGUE)]},
    "alpaca": {"id": "7", "instruction": DIALOGUE[2], "input": "", "output": DIALOGUE[3], "history": [list(DIALOGUE[:2])]},
    "turns": {"id": "7", "turns": list(DIALOGUE), "source": "sft"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", ["auto", "its own"])
def test_every_layout_gives_the_same_dialogue(layout, given):
    assert read(LAYOUTS[layout], "auto" if given == "auto" else layout).turns == DIALOGUE


def test_text_becomes_a_passage():
    row = {"text": "心脏有四个腔。", "source": "medical_books_cn", "origin": "x", "turns": None}
    assert read(row) == Record("made", "medical_books_cn", text="心脏有四个腔。")
    assert read("心脏有四个腔。").text == "心脏有四个腔。"


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("Meidcal_Web_Corpus_en", "medical_web_corpus_en"),
        ("Meidcal_Web_en", "medical_web_corpus_en"),
        ("Medical_Web_Corpus_cn", "medical_web_corpus_cn"),
        ("Medical_Literature_en", "medical_literature_en"),
        ("Medical_Encyclopedia_cn", "medical_encyclopedia_cn"),
        ("Medical_Books_cn", "medical_books_cn"),
        ("SFT_data", "sft"),
        ("My notes/2024", "My_notes_2024"),
        ("../..", "_.."),
        ("中医问答", "中医问答"),
    ],
)
def test_source_names_are_mapped(name, canonical):
    assert canonical_source(name) == canonical


def test_source_comes_from_the_option_then_the_record_then_the_file():
    row = {"turns": ["q", "a"], "source": "own"}
    assert read(row, source="given").source == "given"
    assert read(row).source == "own"
    assert read({"turns": ["q", "a"]}).source == "from_file"


@pytest.mark.parametrize(("row", "id"), [({"id": 0}, "0"), ({"idx": "b2"}, "b2"), ({}, "made"), ({"id": None}, "made")])
def test_ids_are_kept_or_made(row, id):
    assert read({"turns": ["q", "a"], **row}).id == id


def test_alpaca_input_follows_the_instruction():
    assert read({"instruction": "Translate.", "input": "heart", "output": "心"}).turns == ("Translate.\nheart", "心")


def test_system_prompts_are_kept_apart():
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read({"messages": messages}) == Record("made", "from_file", ("q", "a"), "S")


def test_text_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "左"}, {"type": "text", "text": "右"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    assert read({"messages": messages}).turns == ("左右", "a")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "value is of type int"),
        ({"prompt": "q"}, "no known layout: keys prompt"),
        ({"turns": ["q"]}, "odd number of turns"),
        ({"turns": ["q", " "]}, "turn 1 is blank"),
        ({"turns": ["q", 5]}, "turn 1 is int"),
        ({"turns": "q"}, "`turns` is of type str"),
        ({"turns": ["q", "a"], "text": "t"}, "both"),
        ({"turns": ["q", "a"], "source": 3}, "`source` is of type int"),
        ({"text": " "}, "`text` is blank"),
        ([], "dialogue is empty"),
        ({"conversations": []}, "`conversations` is empty"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "message 0 is from 'gpt' where the user should speak"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 0 is from 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 0 has a part that is not text"),
        ({"instruction": "q"}, "turn 1 is blank"),
    ],
)
def test_what_is_no_record_says_why(value, reason):
    with pytest.raises(RecordError, match=reason):
        read(value)


def test_the_command_offers_every_layout():
    parser = Parser()
    import_records_arguments(parser)
    for name in ("auto", *KNOWN):
        assert parser.parse_args(["a.jsonl", "--out", "out", "--layout", name]).layout == name


def test_a_given_format_is_not_guessed_around():
    with pytest.raises(RecordError, match="`messages` is missing"):
        read({"turns": ["q", "a"]}, "openai")
