"""A reply's text is told from the model's reasoning, in every spelling; what cannot be told apart is refused, never cut."""

import time

import pytest

from data_tools.unify import filters, passages, rewriting
from huatuo_jax.chat_client import calls
from huatuo_jax.chat_client.reasoning import without_reasoning

SEPARATED = [
    ("<think>Hm.</think>Why?","Why?"),
    ("<think>Hm.</think>\n\nWhy?","Why?"),
    ("Hm.\n</think>\n\nWhy?","Why?"),
    ("Let me think about it.</think>Why?","Why?"),
    ("Let me think </think> Why?","Why?"),
    ("先想一想</think>为什么会缺铁？","为什么会缺铁？"),
    ("<Thinking>Hm.</Thinking>\nWhy?","Why?"),
    ("<THINK>a</THINK>Why?","Why?"),
    ("<think>a</think><think>b</think>Why?","Why?"),
    ("<think>a</think>\n\nWhy?\n\n<think>b</think>","Why?"),
    ("<think>never closed", None),
    ("Why?\n<think>never closed", None),
    ("◁think▷a◁/think▷Why?","Why?"),
    ("<reasoning>a</reasoning>Why?","Why?"),
    ("<thought>\na\n</thought>\nWhy?","Why?"),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Why?","Why?"),
    ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>Why?<|return|>","Why?"),
    ("<|channel|>analysis<|message|>a<|end|>", None),
    ("analysisWe need it.assistantfinalWhy?","Why?"),
    ("analysisWe need it.", None),
    ("analysis of iron","analysis of iron"),
    ("[THINK]a[/THINK]Why?","Why?"),
    ("<seed:think>a</seed:think>Why?","Why?"),
    ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>Why?<|END_RESPONSE|>","Why?"),
    ("<|begin_of_thought|>a<|end_of_thought|>\n\n<|begin_of_solution|>Why?<|end_of_solution|>","Why?"),
    ("<|inner_prefix|>a<|inner_suffix|>Why?","Why?"),
    ("<unused94>thought\na<unused95>Why?","Why?"),
    ("<think>\na\n</think>\n<answer>\nWhy?\n</answer>","Why?"),
    ("## Thinking\n\na b\n\n## Final Response\n\nWhy?","Why?"),
    ("## Thinking\n\na b", None),
    ("Here is my thought process: a\nHere is my response: Why?","Why?"),
    ("思考过程：甲\n\n回答：为什么？","为什么？"),
    ("【思考】甲【/思考】为什么？","为什么？"),
    ("<思考>甲</思考>为什么？","为什么？"),
    ("&lt;think&gt;a&lt;/think&gt;Why?","Why?"),
    ("＜think＞a＜/think＞Why?","Why?"),
    ("<think/>Why?","Why?"),
    ("<think></think>Why?","Why?"),
    ("< think >a</ think >Why?","Why?"),
    ("<think type=\"x\">a</think>Why?","Why?"),
    ("<think>\n<think>\na\n</think>\nWhy?","Why?"),
    ("<think>a</think>\n</think>\nWhy?","Why?"),
    ("<think>all of it</think>",""),
    ("Models plan in the <think> tag first.","Models plan in the <think> tag first."),
    ("Models plan between <think> and </think> tags.","Models plan between <think> and </think> tags."),
    ("模型先在<think>标签中推理，再回答。","模型先在<think>标签中推理，再回答。"),
    ("They use `<think>` and `</think>`.","They use `<think>` and `</think>`."),
    ("They write “<think>” first.","They write “<think>” first."),
    ("The template is `<think>your plan</think>` here.","The template is `<think>your plan</think>` here."),
    ("The model writes <think>its reasoning</think> before it answers.", None),
    ("<think>plan</think>Models use <think> and </think>.","Models use <think> and </think>."),
    ("Why?<|im_end|>","Why?"),
    ("Why?</s>","Why?"),
    ("I think that <b>iron</b> is low.","I think that <b>iron</b> is low."),
    ("p < 0.05 and I think > 3","p < 0.05 and I think > 3"),
    ("Sure! <think>Let me see.</think> Why?","Sure!  Why?"),
    ("<think>I must not write </think> so early.</think>Why?", None),
    ("<details type=\"reasoning\" done=\"true\">\n<summary>Thought</summary>\na\n</details>\nWhy?","Why?"),
    ("The reason <reason> is", "The reason <reason> is"),
    ("Sure, here it is <think>The user wants", None),
    ("<analysis>a</analysis>Why?","Why?"),
    ("It ends with </think> and then goes on.", None),
    ("Reasoning is what doctors do.","Reasoning is what doctors do."),
    ("**Thinking:** a\n\n**Answer:** Why?","Why?"),
    ("", ""),
]  # fmt: skip
"""(reply, its text; None: refused)"""


@pytest.mark.parametrize(("reply", "expected"), SEPARATED)
def test_reasoning_is_separated_or_the_reply_is_refused(reply, expected):
    assert without_reasoning(reply) == expected


PIECES = (
    "<think>", "</think>", "<think>a</think>", "<", " ", "\n", "\t", "　", "`", "```", "a", "思", "1", "1.", ".", "?", "？",
    '"', "“", "*", "**", "#", "_", "|", "<|", "◁", "&lt;", "【", "【思考】", "think", "thinking ", "<think ", "< ",
    "<details reasoning", "reasoning ", "x <think> ", "<|channel|>", "<|channel|>final<|message|>", "<|message|>", "<|end|>",
    "analysis", "assistantfinal", "</s>", "<answer>", "'<think>'", "# Thinking\n", "Answer:\n", "\nAnswer:", "\nA:", "\n1.",
    "问题：", "回答：", "Question: ", "Sure ", "以下是", "Here is the question", "\n\n", "the ", "according to the ",
    "in the ", "根据", "根据上文", "抱歉", "我", "i'm ", "as an ", "what is ", "请", "tell me about ", "患者：", "医生：",
    "title: ", "max_tokens ", "not ", "unsupported ", "TITLE:\n", "a ", "ab ", "甲\n", "? ", "because ", "用户",
)  # fmt: skip
"""Literals, character classes and beginnings of the patterns that read what a model or an endpoint sends."""
CANDIDATE = lambda text: filters.Candidate(passages.Passage("1", "web_corpus", text), "en", text)
READERS = {
    "without_reasoning": without_reasoning,
    "bare question": lambda text: rewriting.bare_text(text, "question"),
    "bare answer": lambda text: rewriting.bare_text(text, "answer"),
    "refuses_field": lambda text: calls.refuses_field("max_tokens", text),
    "recall": lambda text: filters.recall(text, text),
    "to_pair": lambda text: passages.to_pair(passages.Passage("1", "s", f"x{text}x")),
    "title_of": lambda text: passages.title_of(passages.Passage("1", "s", f"x{text}x")),
    **{
        f"{step}:{name}": lambda text, rule=rule: rule(CANDIDATE(text), filters.Limits())
        for step, rules in (("question", filters.QUESTION_RULES), ("answer", filters.ANSWER_RULES))
        for name, rule in rules.items()
    },
}


@pytest.mark.parametrize("name", READERS)
def test_time_does_not_grow_with_the_square_of_a_texts_length(name):
    """16 KB take milliseconds where time grows with the length, and seconds where it grows with its square."""
    slow = {}
    for piece in PIECES:
        for begin, end in (("", ""), ("x", "x")):
            text = begin + piece * ((1 << 14) // len(piece)) + end
            start = time.process_time()  # the machine may be busy with other things
            READERS[name](text)
            if (seconds := time.process_time() - start) > 0.3:
                slow[begin, piece, end] = seconds
    assert not slow
