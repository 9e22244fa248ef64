"""Every layout becomes the same record; what is not a record says why."""

import json

import pytest

from data_tools.cli.dataset import import_records_arguments
from data_tools.records.layouts import LAYOUTS as KNOWN
from data_tools.records.layouts import RecordReader, canonical_source, to_record
from data_tools.records.names import parse_map
from huatuo_jax.cli.arguments import Parser
from huatuo_jax.data.dialogue import Record
from huatuo_jax.errors import ConfigError, RecordError
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


PAIR = ("头痛怎么办？", "多休息。")
ROLE_MESSAGES = [{"role": "user", "content": PAIR[0]}, {"role": "assistant", "content": PAIR[1]}]

PUBLIC = {
    "prompt and completion": {"prompt": PAIR[0], "completion": PAIR[1]},
    "prompt and response (ChatMed, ChatGLM)": {"prompt": PAIR[0], "response": PAIR[1], "history": []},
    "query and response (ms-swift, ChatMed)": {"query": PAIR[0], "response": PAIR[1]},
    "question and answer": {"question": PAIR[0], "answer": PAIR[1]},
    "question and response (OpenOrca)": {"id": "flan.1", "question": PAIR[0], "response": PAIR[1]},
    "questions and answers (Huatuo-26M)": {"questions": [[PAIR[0], "头疼呢？"]], "answers": [PAIR[1]]},
    "questions and answers, flat": {"questions": [PAIR[0], "头疼呢？"], "answers": [PAIR[1]]},
    "Question, Complex_CoT, Response (medical-o1)": {"Question": PAIR[0], "Complex_CoT": "想一想", "Response": PAIR[1]},
    "Patient and Doctor (ai-medical-chatbot)": {"Description": "Q.", "Patient": PAIR[0], "Doctor": PAIR[1]},
    "patient and doctor": {"patient": PAIR[0], "doctor": PAIR[1]},
    "ask and answer (Chinese-medical-dialogue)": {"department": "内科", "title": "头痛", "ask": PAIR[0], "answer": PAIR[1]},
    "dolly without its context": {"instruction": PAIR[0], "context": "", "response": PAIR[1], "category": "open_qa"},
    "alpaca with a rendered text": {"instruction": PAIR[0], "input": "", "output": PAIR[1], "text": "Below is …"},
    "input and target (Firefly)": {"kind": "QA", "input": PAIR[0], "target": PAIR[1]},
    "input and output": {"input": PAIR[0], "output": PAIR[1]},
    "inputs and targets (xP3)": {"inputs": PAIR[0], "targets": PAIR[1]},
    "Context and Response (counselling)": {"Context": PAIR[0], "Response": PAIR[1]},
    "conversation of human and assistant (Firefly)": {"conversation": [{"human": PAIR[0], "assistant": PAIR[1]}]},
    "conversation with roles (DISC-Med-SFT)": {"_id": 5, "source": "MedMCQA", "conversation": ROLE_MESSAGES},
    "conversations with roles": {"conversations": ROLE_MESSAGES},
    "messages with from and value": {"messages": [{"from": "human", "value": PAIR[0]}, {"from": "gpt", "value": PAIR[1]}]},
    "messages beside their prompt (UltraChat 200k)": {"prompt": "x", "prompt_id": "1", "messages": ROLE_MESSAGES},
    "data in alternation (UltraChat)": {"id": "0", "data": list(PAIR)},
    "data with marks (HuatuoGPT-sft-data)": {"data": [f"问：{PAIR[0]}\n", f"答：{PAIR[1]}"]},
    "dialogue of doctor and patient": {
        "dialogue": [{"role": "患者", "content": PAIR[0]}, {"role": "医生", "content": PAIR[1]}],
    },
    "items (the first ShareGPT files)": {
        "id": "x",
        "items": [{"from": "human", "value": PAIR[0]}, {"from": "gpt", "value": PAIR[1]}],
    },
    "a question marked as not learned (OpenHermes)": {
        "conversations": [{"from": "human", "value": PAIR[0], "weight": 0}, {"from": "gpt", "value": PAIR[1], "weight": 1}]
    },
    "OASST's roles": {"conversation": [{"role": "prompter", "text": PAIR[0]}, {"role": "assistant", "text": PAIR[1]}]},
    "lists of pairs": {"conversation": [list(PAIR)]},
    "empty signs of other kinds": {"messages": ROLE_MESSAGES, "tools": [], "images": [], "label": None, "rejected": ""},
    "a cell of JSON": {"messages": json.dumps(ROLE_MESSAGES), "tools": "[]"},
    "a prompt of messages (TRL)": {"prompt": ROLE_MESSAGES[:1], "completion": ROLE_MESSAGES[1:]},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_layouts_of_public_files_are_told_apart(name):
    record = read(PUBLIC[name])
    assert (record.turns, record.system, record.weights) == (PAIR, "", ())


def test_context_history_and_system_prompts_are_read():
    dolly = {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada."}
    assert read(dolly).turns == ("Who?\nAda wrote it.", "Ada.")
    turns = {"prompt": "q2", "response": "a2", "history": [["q1", "a1"]], "system": "S"}
    assert (read(turns).turns, read(turns).system) == (("q1", "a1", "q2", "a2"), "S")
    orca = {"system_prompt": "S", "question": "q", "response": "a"}
    assert read(orca) == Record("made", "from_file", ("q", "a"), "S")
    both = {"system": "S", "messages": [{"role": "system", "content": "S"}, *ROLE_MESSAGES]}
    assert (read(both).system, read(both).turns) == ("S", PAIR)
    moss = {"meta_instruction": "S", "conversation": [{"human": "q", "assistant": "a"}]}
    assert read(moss).system == "S"


WEIGHTED = {
    "weight (OpenAI)": [("weight", 0), ("weight", 1)],
    "train (axolotl)": [("train", False), ("train", True)],
    "loss (ms-swift)": [("loss", False), ("loss", None)],
    "train_on_turn": [("train_on_turn", False), ("train_on_turn", True)],
    "only one mark": [("weight", 0), ("name", "x")],
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_an_answer_that_shall_not_be_learned_has_weight_0(name):
    (first, held), (second, other) = WEIGHTED[name]
    messages = [{"role": role, "content": str(i)} for i, role in enumerate(["user", "assistant"] * 2)]
    messages[1][first], messages[3][second] = held, other
    assert read({"messages": messages}).weights == (0, 1)
    assert read({"conversations": messages}).weights == (0, 1)


def test_weights_of_a_record():
    four = {"turns": ["q", "a", "q2", "a2"]}
    assert read({**four, "weights": [1, 0]}).weights == (1, 0)
    assert read({**four, "weights": [1, 1]}).weights == ()
    assert read({**four, "weights": None}).weights == ()
    assert read({**four, "weights": "[0, 1]"}).weights == (0, 1)
    assert read({"instruction": "q2", "output": "a2", "history": [["q", "a"]], "weights": [0, 1]}).weights == (0, 1)
    # A completion is learned, its prompt is not.
    trl = {"prompt": [*ROLE_MESSAGES, {"role": "user", "content": "q2"}], "completion": [{"role": "assistant", "content": "a2"}]}
    assert (read(trl).turns, read(trl).weights) == ((*PAIR, "q2", "a2"), (0, 1))


def test_the_last_answer_only_is_an_option():
    reader = RecordReader(last_answer_only=True)
    assert reader.read({"turns": ["q", "a", "q", "a", "q", "a"]}, "s", str).weights == (0, 0, 1)
    assert reader.read({"turns": ["q", "a"]}, "s", str).weights == ()
    assert reader.read({"text": "passage"}, "s", str).weights == ()
    with pytest.raises(RecordError, match="every answer has weight 0"):
        reader.read({"turns": ["q", "a", "q", "a"], "weights": [1, 0]}, "s", str)


USER, ANSWER = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        # weights
        ({"turns": ["q", "a"], "weights": [0]}, "every answer has weight 0"),
        ({"turns": ["q", "a"], "weights": [0.5]}, r"`weights` holds 0.5; each weight is 0 or 1"),
        ({"turns": ["q", "a"], "weights": [2]}, "`weights` holds 2"),
        ({"turns": ["q", "a"], "weights": ["1"]}, "`weights` holds '1'"),
        ({"turns": ["q", "a"], "weights": [True]}, "`weights` holds True"),
        ({"turns": ["q", "a"], "weights": [None]}, "`weights` holds None"),
        ({"turns": ["q", "a"], "weights": [1, 1]}, "2 entries for 1 answers"),
        ({"turns": ["q", "a"], "weights": []}, "`weights` is empty"),
        ({"turns": ["q", "a"], "weights": 1}, "`weights` is of type int"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every answer has weight 0"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "message 1: `weight` is 0.5"),
        ({"messages": [USER, {**ANSWER, "train": "no"}]}, "message 1: `train` is 'no'"),
        ({"messages": [USER, {**ANSWER, "train_detail": [{"begin_offset": 0}]}]}, "`train_detail` masks parts"),
        ({"instruction": "q", "output": "a", "weight": 0.3}, "`weight` of the whole record is 0.3"),
        ({"messages": [USER, ANSWER], "train": False}, "`train` of the whole record is False"),
        # preferences
        ({"messages": [USER, ANSWER], "label": False}, "preference data: the key `label`"),
        ({"messages": [USER, ANSWER], "label": True}, "preference data: the key `label`"),
        ({"prompt": "q", "completion": "a", "label": False}, "preference data"),
        ({"instruction": "q", "input": "", "output": "a", "kto_tag": False}, "preference data: the key `kto_tag`"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference data: the key `chosen`"),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"value": "a"}}, "preference data: the key `chosen`"),
        ({"messages": [USER, ANSWER], "rejected_response": "b"}, "preference data: the key `rejected_response`"),
        ({"question": "q", "response_chosen": "a", "response_rejected": "b"}, "preference data"),
        ({"question": "q", "answer": "a", "rating": 2}, "preference data: the key `rating`"),
        ({"messages": [USER, {**ANSWER, "rating": 1}]}, "message 1: preference data"),
        # what is not text
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "multimodal: the key `images`"),
        ({"conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]}, "multimodal: turn 0"),
        ({"id": "1", "image": "a.jpg", "conversations": [USER, ANSWER]}, "multimodal: the key `image`"),
        ({"query": "<video>q", "response": "a"}, "multimodal: turn 0 holds '<video>'"),
        ({"query": "Picture 1: <img>a.jpg</img>\nq", "response": "a"}, "multimodal: turn 0 holds '<img>'"),
        ({"query": "<ImageHere> q", "response": "a"}, "multimodal: turn 0 holds '<ImageHere>'"),
        ({"query": "<|image_1|>q", "response": "a"}, "multimodal: turn 0"),
        ({"messages": [USER, ANSWER], "audios": ["a.wav"]}, "multimodal: the key `audios`"),
        ({"text": "a caption", "image": {"bytes": b"x"}}, "multimodal: the key `image`"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "'image_url': multimodal"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}, {"type": "text", "text": "q"}]}]}, "'input_audio'"),
        # tools
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "tools: no dialogue format renders what the key `tools`"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": "1"}]}]}, "message 1: tools"),
        ({"messages": [USER, {**ANSWER, "content": None, "function_call": {"name": "w"}}]}, "message 1: tools"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]}, "from 'function_call'"),
        ({"conversations": [USER, ANSWER], "tools": '[{"name": "w"}]'}, "tools"),
        # order
        ({"messages": [USER, USER, ANSWER]}, "message 1 is from 'user' where the assistant should speak; --join-turns"),
        ({"messages": [USER, ANSWER, USER]}, r"odd number of turns \(3\).*--cut-last-question"),
        ({"messages": [USER, {"role": "system", "content": "S"}, ANSWER]}, "message 1 is a system prompt"),
        ({"system": "S", "messages": [{"role": "system", "content": "T"}, USER, ANSWER]}, "the record has another one"),
        ({"system": "S", "system_prompt": "T", "messages": [USER, ANSWER]}, "two system prompts that differ"),
        # not a record of its own
        ({"message_id": "1", "parent_id": None, "text": "q", "role": "prompter"}, "one message of a conversation"),
        ({"questions": ["q1", "q2"], "answers": ["a1", "a2"]}, "2 questions and 2 answers"),
        ({"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A"}, "an exam question without its `options`"),
        ({"question": "q", "answer": 3}, "`answer` is of type int"),
        ({"query": "q", "response": "a", "history": 1}, "`history` is of type int, not a list"),
        ({"query": "q", "response": "a", "history": {"q": "a"}}, "`history` is of type dict, not a list"),
        ({"query": "q", "response": "a", "history": [["q"]]}, "`history` is not a list"),
        ({"context": "c", "question": "q", "answers": {"text": ["a"]}}, "`answers` is of type dict"),
    ],
)
def test_what_would_be_misread_is_refused_with_the_reason(value, reason):
    with pytest.raises(RecordError, match=reason):
        read(value)


def test_ignored_keys_are_no_reason_to_refuse_but_are_counted():
    reader = RecordReader(ignored=frozenset(["label", "tools", "<image>"]))
    assert reader.read({"messages": [USER, ANSWER], "label": True, "tools": [1]}, "s", str).turns == ("q", "a")
    assert reader.read({"prompt": "<image>q", "completion": "a"}, "s", str).turns == ("<image>q", "a")
    assert reader.unread == {"label": 1, "tools": 1}


def test_html_and_topics_are_not_taken_for_other_kinds():
    assert read({"prompt": "What is <video></video>?", "completion": "HTML."}).turns[0].startswith("What")
    assert read({"prompt": "q", "completion": "a", "label": "内科"}).turns == ("q", "a")
    assert read({"text": "passage", "label": 1, "rating": 5}).text == "passage"


def test_consecutive_messages_are_joined_on_request():
    messages = [USER, {"role": "user", "content": "b"}, ANSWER, {"role": "assistant", "content": "c"}]
    reader = RecordReader(join_turns=True)
    assert reader.read({"messages": messages}, "s", str).turns == ("q\nb", "a\nc")
    assert (reader.joined, reader.cut) == (1, 0)
    with pytest.raises(RecordError, match="another weight"):
        reader.read({"messages": [USER, ANSWER, {**ANSWER, "weight": 0}]}, "s", str)
    assert reader.joined == 1


def test_a_last_question_is_cut_on_request():
    reader = RecordReader(cut_last_question=True)
    assert reader.read({"messages": [USER, ANSWER, USER]}, "s", str).turns == ("q", "a")
    assert reader.read(["q", "a", "q"], "s", str).turns == ("q", "a")
    assert (reader.joined, reader.cut) == (0, 2)
    with pytest.raises(RecordError, match="a question without an answer"):
        reader.read({"messages": [USER]}, "s", str)


def test_every_key_that_is_not_read_is_counted_by_its_name():
    reader = RecordReader()
    rows = [
        {"question": "q", "answer": "a", "dept": "内科", "score": 0.9, "note": None, "empty": ""},
        {"question": "q", "answer": "a", "dept": "外科"},
        {"messages": [USER, {**ANSWER, "reasoning_content": "…", "name": "x"}], "url": "u"},
        {"messages": [{**USER, "train": True}, ANSWER]},
        {"questions": [["q", "q2"]], "answers": ["a"]},
        {"Question": "q", "Complex_CoT": "c", "Response": "a"},
        {"text": "t", "title": "T", "id": "1", "source": "s"},
    ]
    for row in rows:
        reader.read(row, "s", str)
    assert reader.unread == {
        "dept": 2,
        "score": 1,
        "messages[].reasoning_content": 1,
        "messages[].name": 1,
        "url": 1,
        "messages[].train": 1,
        "questions, all but the first": 1,
        "Complex_CoT": 1,
        "title": 1,
    }


@pytest.mark.parametrize(
    ("mapping", "value", "turns"),
    [
        ("prompt=问题,answer=答案", {"问题": "q", "答案": "a"}, ("q", "a")),
        ("prompt=问题, answer=答案, context=病史", {"问题": "q", "答案": "a", "病史": "h"}, ("q\nh", "a")),
        (
            "messages=conversation,role=who,text=value",
            {"conversation": [{"who": "human", "value": "q"}, {"who": "gpt", "value": "a"}]},
            ("q", "a"),
        ),
        (
            "messages=rounds,role=who,text=said,user=客户,assistant=客服",
            {"rounds": [{"who": "客户", "said": "q"}, {"who": "客服", "said": "a"}]},
            ("q", "a"),
        ),
        ("messages=rounds,prompt=q,answer=a", {"rounds": [{"q": "1", "a": "2"}, {"q": "3", "a": "4"}]}, ("1", "2", "3", "4")),
        ("prompt=prompt,answer=chosen", {"prompt": "q", "chosen": "a"}, ("q", "a")),
        ("messages=log", {"log": ["q", "a"]}, ("q", "a")),
    ],
)
def test_a_map_names_the_keys_of_any_other_layout(mapping, value, turns):
    assert RecordReader(mapped=parse_map(mapping)).read(value, "s", str).turns == turns


def test_a_map_of_a_passage_a_system_prompt_and_a_source():
    reader = RecordReader(mapped=parse_map("passage=content,source=site,id=nr"))
    assert reader.read({"content": "t", "site": "wiki", "nr": 7}, "s", str) == Record("7", "wiki", text="t")
    reader = RecordReader(mapped=parse_map("prompt=q,answer=a,system=persona"))
    assert reader.read({"q": "1", "a": "2", "persona": "S"}, "s", lambda: "i") == Record("i", "s", ("1", "2"), "S")
    with pytest.raises(RecordError, match="`q` is missing; the record's keys: x"):
        reader.read({"x": 1}, "s", str)
    with pytest.raises(RecordError, match="preference data: the key `rejected`"):
        RecordReader(mapped=parse_map("prompt=prompt,answer=chosen")).read(
            {"prompt": "q", "chosen": "a", "rejected": "b"}, "s", str
        )


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ("", "takes PART=KEY with the parts messages, role"),
        ("question=q,answer=a", "--map has 'question=q'"),
        ("prompt", "--map has 'prompt'"),
        ("prompt=", "--map has 'prompt='"),
        ("prompt=a,prompt=b,answer=c", "the key of prompt twice, 'a' and 'b'"),
        ("prompt=q", "only one of prompt and answer"),
        ("role=who,text=said", "parts of messages"),
        ("system=s", "names no dialogue"),
        ("prompt=q,answer=a,passage=t", "a dialogue and a passage"),
    ],
)
def test_a_wrong_map_is_refused_before_anything_is_read(mapping, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_map(mapping)
