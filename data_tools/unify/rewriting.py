"""What becomes of a passage, as a pure function of the replies so far.

`rewrite` is a generator: it yields the next call that the passage needs and is sent the reply to it, until it returns the
outcome. `pipeline.py` drives it and takes each reply from the ledger or from the endpoint; nothing else decides anything. So a
run can be killed anywhere and replayed, and another filter takes effect on replies that are there already.

    yields Call(question, attempt 0)   is sent a reply that names the text     (rejected: question_leak)
    yields Call(question, attempt 1)   is sent "Why …?"
    yields Call(answer, attempt 0)     is sent "Because …"
    returns Outcome(("Why …?", "Because …"))

What must hold: no clock, no randomness, no state outside the generator. Next to read: `filters.py`, then `pipeline.py`.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass

from data_tools.records.language import LANGUAGES, language_of_passage
from data_tools.unify.filters import Candidate, Filters
from data_tools.unify.passages import Passage
from data_tools.unify.prompting import Prompts
from huatuo_jax.chat_client.calls import BLOCKED, Call, Messages, Reply
from huatuo_jax.chat_client.reasoning import without_reasoning
from huatuo_jax.config import require

# Why a passage has no pair, where no filter is the reason.
TOO_LONG, BLANK, UNFINISHED = "passage_too_long", "passage_blank", "unfinished"
REASONING, FINISH = "reasoning", "finish_reason="
"""Why a text is rejected before a filter sees it: reasoning that cannot be separated, or an end that is none of a whole text."""
_FILTERED = {"stop", "length", BLOCKED, "refused"}
"""Ends of a reply that are whole, or that a filter has a name for."""

# What models put around the text that was asked for.
_BOLD = r"[*_]{0,3}"
_LABELS = {
    "question": r"(?:生成的|患者的?|用户的?)?(?:问题|提问|问句|问)|(?:the |user |patient |generated )?question|Q",
    "answer": r"回答|答案|答复|解答|答|(?:the |final )?answer|response",
}
_LABEL = {
    # "**问题：** …", "Question 1: …", "### 问题\n…", "【问题】…", "Q1: …"
    step: re.compile(
        rf"(?:#{{1,6}}\s{{0,3}})?{_BOLD}(?:(?:{words})\s?[\d一二三]{{0,2}}{_BOLD}\s?(?:[：:]|\n|\Z){_BOLD}"
        rf"|[【\[](?:{words})\s?[\d一二三]{{0,2}}[】\]]\s?[：:]?)\s{{0,9}}",
        re.IGNORECASE,
    )
    for step, words in _LABELS.items()
}
_PREFACE = {
    # "Sure! Here is the question:\nWhy?"
    step: re.compile(
        r"(?:好的|当然(?:可以)?|没问题|sure|certainly|of course|okay|here(?:['’]s| is| are)|以下是?|下面是)"
        rf"[^\n：:?？]{{0,60}}(?:{words})[^\n：:?？]{{0,12}}[：:]\s{{0,9}}",
        re.IGNORECASE,
    )
    for step, words in (("question", "问题|提问|questions?"), ("answer", "回答|答案|answer|response"))
}
_RULE = re.compile(r"[-=*_]{3,9}\s{0,9}\n\s{0,9}")
_NUMBER = re.compile(r"(?:[(（]?(?:\d{1,2}|[一二三])(?:[)）]|[.、．](?![\d一二三四]))|[①-⑨]|[-•·●](?=\s))\s{0,9}")
"""A question's number: "1. Why?", "（1）为什么", "1、", "- "; not "1.5 mg of …" or "一、二级预防"."""
_NEXT_NUMBER = re.compile(r"\n\s{0,9}[(（]?(?:\d{1,2}|[二三])[)）.、．]")
"""Then the number is one of several, and stays with them."""
_CHOICE = re.compile(r"\n\s{0,20}B\s?[：:.、)）]")
_OWN_ANSWER = re.compile(
    rf"(?:\n|(?<=[?？]))\s{{0,20}}(?:#{{1,6}}\s{{0,3}})?{_BOLD}[【\[]?(?:(?:参考|标准)?(?:{_LABELS['answer']})|(?P<a>A))[】\]]?{_BOLD}\s?(?:[：:]|\n)",
    re.IGNORECASE,
)
"""Where a question is followed by its own answer under a label."""
_AROUND = {
    "“": "”", '"': '"', "「": "」", "『": "』", "‘": "’", "'": "'", "《": "》", "«": "»", "`": "`", "**": "**", "__": "__",
}  # fmt: skip
_MOST_LAYERS = 9
"""Labels, numbers and marks around a question that are taken off."""


@dataclass(frozen=True)
class Try:
    """A text that a model wrote, and the rule that rejected it (None = kept)."""

    step: str
    text: str
    reason: str | None


@dataclass(frozen=True)
class Outcome:
    """What became of a passage: a pair, or the reason why not, with every text written on the way."""

    pair: tuple[str, str] | None
    reason: str | None
    tries: tuple[Try, ...] = ()


@dataclass(frozen=True)
class Rewriting:
    """How passages are rewritten.

    Attributes:
      tries: texts per step and round, before the step is given up.
      rounds: how often the tries are granted; `--retry-rejected` adds one.
      language: of the pairs; "passage" = the passage's own.
      question_only: the passage itself is the answer.
      longest: longer passages (in characters) are rejected without a call.
      accept_finish: further names that the endpoint gives to the end of a whole text ("null": it gives none).
    """

    prompts: Prompts
    filters: Filters
    tries: int = 2
    rounds: int = 1
    language: str = "passage"
    question_only: bool = False
    longest: int = 8000
    accept_finish: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        languages = ("passage", *LANGUAGES)
        require(self.tries >= 1, f"--tries is {self.tries}; a step needs at least 1")
        require(self.longest >= 1, f"--max-passage is {self.longest}; it is a number of characters of at least 1")
        require(self.language in languages, f"--language is {self.language}; it is one of {', '.join(languages)}")

    def language_for(self, text: str) -> str:
        """The language of the pair that a passage becomes."""
        return language_of_passage(text) if self.language == "passage" else self.language


def shown_text(passage: Passage) -> str:
    """The passage as prompts show it: its title in front if it does not begin with it."""
    # A section of a book often makes sense only under its heading.
    text, title = passage.text.strip(), passage.title.strip()
    return f"{title}\n{text}" if title and not text.startswith(title) else text


def rewrite(passage: Passage, settings: Rewriting) -> Generator[Call, Reply, Outcome]:
    """Yields the calls that a passage needs, one after the other, and returns its outcome."""
    text = shown_text(passage)
    if not text:
        return Outcome(None, BLANK)
    if len(text) > settings.longest:
        return Outcome(None, TOO_LONG)
    language = settings.language_for(text)
    tries: list[Try] = []

    def accepted_text(step: str, round_number: int, messages: Messages) -> Generator[Call, Reply, str | None]:
        """Asks until no rule rejects the text or the tries are used up; then None."""
        for attempt in range(settings.tries):
            reply = yield Call(f"{passage.source}/{passage.id}", step, round_number, attempt, messages)
            # The ledger holds what the endpoint sent. What of it is kept is decided here, so better rules need no new call.
            text, reason = read_reply(reply, step, settings)
            if reason is None:
                reason = settings.filters.reason(step, Candidate(passage, language, text, reply.finish))
            tries.append(Try(step, text, reason))
            if reason is None:
                return text
        return None

    # A round starts from the question again: where no answer was accepted, the question may be the reason.
    for round_number in range(settings.rounds):
        question = yield from accepted_text("question", round_number, settings.prompts.question(language, text))
        if question is None:
            continue
        if settings.question_only:
            # Word for word: without the title that the prompt shows in front of it.
            return Outcome((question, passage.text.strip()), None, tuple(tries))
        answer = yield from accepted_text("answer", round_number, settings.prompts.answer(language, text, question))
        if answer is not None:
            return Outcome((question, answer), None, tuple(tries))
    return Outcome(None, tries[-1].reason, tuple(tries))


def read_reply(reply: Reply, step: str, settings: Rewriting) -> tuple[str, str | None]:
    """The text in a reply, and why it cannot be used, whatever its passage; None: the filters decide."""
    text = bare_text(reply.text, step)
    if reply.finish not in _FILTERED | settings.accept_finish:
        return reply.text.strip(), FINISH + reply.finish
    # The output limit may have left the block of reasoning open: that is a text that was cut, and counted as one.
    missing = settings.filters.missing(reply.text if text is None else text, reply.finish)
    return (reply.text.strip(), missing or REASONING) if text is None else (text, missing)


def fault_of(reply: Reply, step: str, settings: Rewriting, limit: int) -> tuple[str, str] | None:
    """Why a reply cannot be used and what to do if none can, for `ChatClient`; None where that is about its passage alone."""
    _, reason = read_reply(reply, step, settings)
    if reply.finish in (BLOCKED, "refused", "refusal"):
        return None
    thinking = "switch the model's thinking off with --extra-body (see docs/unify.md)"
    remedies = {
        "truncated": f"they end at --max-new-tokens {limit:,}: raise it, or {thinking}",
        REASONING: f"their reasoning cannot be told from their text: {thinking}, or start the server with its reasoning parser",
        "empty": f"they hold reasoning and nothing else: {thinking}, or raise --max-new-tokens {limit:,}",
    }
    if reason and reason.startswith(FINISH):
        return reason, f"if such a reply is whole, give --accept-finish {reply.finish}; else the endpoint has to be mended"
    return reason or "", remedies.get(reason or "", "")


def bare_text(text: str, step: str) -> str | None:
    """A model's text without reasoning and what stands around it: a preface, a label such as `**问题：**`; of a question also
    its number, quotation marks around the whole of it, and its own answer under a label. None: reasoning cannot be separated.
    """
    # 'Question: "Why is that?"' → "Why is that?"; "1. **为什么？**\n\n答案：因为……" → "为什么？"
    separated = without_reasoning(text)
    if separated is None:
        return None
    text = separated
    # "A:" may be the first of several things to choose from, too.
    if step == "question" and (answer := _OWN_ANSWER.search(text)) and not (answer["a"] and _CHOICE.search(text, answer.end())):
        text = text[: answer.start()].rstrip()
    for _ in range(_MOST_LAYERS):
        before = text
        numbered = step == "question" and not _NEXT_NUMBER.search(text)
        for pattern in (_RULE, _PREFACE[step], _LABEL[step], *((_NUMBER,) if numbered else ())):
            if (match := pattern.match(text)) and match.end() < len(text):
                # A label in bold whose text is bold with it: "**Question: Why?**" leaves the end of the marks.
                opened = match[0].count("**") % 2
                text = text[match.end() :].strip()
                text = text.removesuffix("**").rstrip() if opened and text.count("**") % 2 else text
        for opening, closing in _AROUND.items() if step == "question" else ():
            # '"Why" and "how"' begins and ends with a mark too, but they are not one pair of marks.
            inside = text[len(opening) : -len(closing)]
            if inside.strip() and text.startswith(opening) and text.endswith(closing) and closing not in inside:
                text = inside.strip()
        if text == before:
            break
    return text
