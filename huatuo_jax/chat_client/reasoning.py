"""Separates a model's reasoning from its text: every spelling of `<think>…</think>`, the channels of gpt-oss, and headings.

Servers that know a model put its reasoning into a field of its own, which nothing here reads; others leave it in the text, each
model with its own marks. What must hold: a text that is returned holds no reasoning and has lost nothing else; where the two
cannot be told apart (a block that is never closed, a mark in the middle of a sentence with words behind it), the result is None
and the caller rejects the text. So a text that *speaks* of such marks is kept as it is, or refused, but never cut.

    <think>Hm.</think>Why?                    Why?
    Hm.\n</think>\n\nWhy?                     Why?      the chat template had opened the block in the prompt
    Why? <think>Is that right?                None      never closed
    Models plan in the <think> tag first.     kept      a mark within a sentence

Next to read: `data_tools/unify/rewriting.py`, which asks for the separated text of every reply.
"""

import re
from bisect import bisect_right

_NAME = r"(?:[\w:.-]{0,24}?(?:think|thought|reason|reflection|scratchpad|monologue|思考|思维|推理)[\w:.-]{0,16}|analysis|cot)"
_MARK = re.compile(
    # <think>, </Thinking>, <seed:think>, ＜think＞, ◁think▷, &lt;think&gt;, <reasoning type="x">, and <think/>, an empty block
    rf"(?:<|＜|◁|&lt;)\s{{0,3}}/?\s{{0,3}}{_NAME}(?:\s[^<>＞▷\n]{{0,80}})?\s{{0,3}}/?\s{{0,3}}(?:>|＞|▷|&gt;)"
    # [THINK] and [/THINK] of Magistral, 【思考】 and 【/思考】
    r"|[\[【]\s{0,2}/?\s{0,2}(?:think(?:ing)?|thoughts?|reasoning|思考(?:过程)?)\s{0,2}[\]】]"
    # <|begin_of_thought|>, <|END_THINKING|>, <|inner_prefix|> of Apertus
    r"|<[|｜]\s?/?[\w▁:-]{0,30}?(?:think|thought|reasoning|inner_prefix|inner_suffix)[\w▁:-]{0,30}[|｜]>"
    # Gemma's reasoning, in its two generations; the block of a chat page
    r"|<unused94>(?:thought)?|<unused95>|<\|channel>\s{0,2}thought|<channel\|>"
    r"|<details\s[^<>\n]{0,80}reasoning[^<>\n]{0,80}>|</details>",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    r"(?:\W{1,5}|&lt;\s{0,3})/|<unused95>|<channel\||.{1,40}(?:_suffix|\bend|end_|stop_|_end|_stop|▁end)", re.IGNORECASE
)
_SENTENCE_END = ".!?。！？:：…>*"
_LOOKED_AT = 200
"""Characters around a mark that are searched for backticks; a bound, so that a long line of marks costs no square."""
_MENTION_AFTER = re.compile(
    r"\s*(?:[,.;:!?)\"'`，。、；：）”’」]|标[签记]|符号|字段|结束|收尾|之[后前间]|以后|为止|[等来后的和与中])|\s+[a-z]|\s*$"
)
_ONLY_JOINS = re.compile(
    r"[\W_]{0,20}(?:and|or|to|with|tags?|和|与|及|或|到|至)?[\W_]{0,20}(?:and|和|与)?[\W_]{0,5}", re.IGNORECASE
)
_QUOTED = {"`": "`", "'": "'", '"': '"', "“": "”", "‘": "’", "「": "」", "『": "』", "《": "》", "(": ")", "（": "）"}

_CHANNEL = re.compile(
    r"<\|channel\|>\s{0,3}(\w{1,20})[^<]{0,200}(?:<\|constrain\|>[^<]{0,100})?<\|message\|>"
    r"(.*?)(?=<\|(?:end|return|start|channel|call)\|>|\Z)",
    re.DOTALL,
)
_BARE_CHANNEL = re.compile(r"\s{0,20}(?:analysis|commentary)(?=[A-Z㐀-鿿])")
"""What is left of a channel where a server drops special tokens: "analysisWe need a question.assistantfinalWhy?"."""

_HEADING = re.compile(
    r"\s{0,20}(?P<mark>#{1,6}|\*\*|__|【)?\s{0,3}"
    r"(?:here(?:['’]s|\sis)\s(?:my|the)\s(?:thought|thinking|reasoning)\sprocess"
    r"|(?:my\s)?(?:thinking|thought|reasoning)(?:\sprocess)?|thoughts|chain[\s-]of[\s-]thought|思考(?:过程)?|思维(?:过程|链)|推理(?:过程)?)"
    r"\s{0,3}(?:\*\*|__|】)?\s{0,3}(?P<end>[:：]|\n|\Z)?",
    re.IGNORECASE,
)
_ANSWER_HEADING = re.compile(
    r"^[#*_【 \t]{0,8}(?P<final>final |最终|here(?:['’]s|\sis)\s(?:my|the)\s(?:final )?)?"
    r"(?:answer|response|question|reply|output|回答|答案|回复|问题)[*_】 \t]{0,5}(?:[:：][*_ \t]{0,5}|$)",
    re.IGNORECASE | re.MULTILINE,
)
_WRAPPER = re.compile(
    r"<\|?(?:begin_of_solution|start_response|(?:final_?)?(?:answer|response|solution|output|question|reply))\|?>", re.IGNORECASE
)
_WRAPPER_END = re.compile(
    r"<(?:/|\|)(?:end_of_solution|end_response|(?:final_?)?(?:answer|response|solution|output|question|reply))\|?>\Z",
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r"(?:<\|(?:end|return|call|im_end|eot_id|eom_id|endoftext|end_of_text|end_of_turn|eos)\|>"
    r"|</s>|<eos>|<end_of_turn>|<｜end▁of▁sentence｜>|\s)+\Z",
    re.IGNORECASE,
)
_INVISIBLE = " \t\r\n　\ufeff\u200b"


def without_reasoning(text: str) -> str | None:
    """The text that a model's reply is about, stripped; None if reasoning is in it that cannot be separated.

    The wrapper of an answer (`<answer>…</answer>`) and special tokens at the end go too. An empty text: it was all reasoning.
    """
    separated = _final_channel(text)
    for step in (_after_heading, _without_blocks, _unwrapped):
        if separated is None:
            return None
        separated = step(separated.strip(_INVISIBLE))
    return separated


def _final_channel(text: str) -> str | None:
    """The channel `final` of a reply in gpt-oss' own format; any other text as it is."""
    if "<|channel|>" in text or "<|message|>" in text:
        final = [message for channel, message in _CHANNEL.findall(text) if channel == "final"]
        return final[0] if len(final) == 1 else None
    _, mark, after = text.rpartition("assistantfinal")
    if mark:
        return after
    return None if _BARE_CHANNEL.match(text) else text


def _after_heading(text: str) -> str | None:
    """What stands under the answer's heading, if the text begins with a heading of reasoning."""
    # HuatuoGPT-o1: "## Thinking\n\n…\n\n## Final Response\n\n…"; Granite: "Here is my thought process: … Here is my response: …"
    heading = _HEADING.match(text)
    if heading is None or not (heading["mark"] or heading["end"] is not None) or "【/" in text:
        return text
    answers = list(_ANSWER_HEADING.finditer(text, heading.end()))
    final = [answer for answer in answers if answer["final"]] or answers
    return text[final[0].end() :] if len(final) == 1 else None


def _without_blocks(text: str) -> str | None:
    """The text without blocks between marks, wherever a block can stand; see the module's docstring for what is left alone."""
    fences = [match.start() for match in re.finditer("```", text)]
    kept: list[str] = []
    # `position`: where the text goes on after the last block; `opened`: end of the mark that opened the present one;
    # `within`: end of a mark within a sentence, which may be a mere mention.
    position, blocks, depth, opened, within = 0, 0, 0, 0, 0
    for mark in _MARK.finditer(text):
        start, end = mark.span()
        if _is_quoted(text, start, end):
            continue
        if bisect_right(fences, start) % 2:  # an example in a code fence, or a reply in one: nothing says which
            return None
        if depth:
            if _CLOSES.match(mark[0]):
                depth -= 1
                blocks, position = blocks + (not depth), end
            elif (start - opened > _LOOKED_AT or text[opened:start].strip()) and _begins_block(text, start):
                depth += 1  # not for "<think>\n<think>": a template and its model opened the same block
        elif not _CLOSES.match(mark[0]):
            if not _begins_block(text, start):
                within = end
            else:
                kept.append(text[position:start])
                position = opened = end
                depth = 0 if mark[0].endswith("/>") else 1
        elif within:
            # "between <think> and </think>" is a sentence; what stands between the marks of any other might be reasoning.
            if not _ONLY_JOINS.fullmatch(text, within, start):
                return None
            within = 0
        elif start - position <= _LOOKED_AT and not text[position:start].strip():
            position = end
        elif not blocks and not kept and _ends_block(text, start, end):
            position, blocks = end, 1
        else:
            return None
    if depth or (within and not _MENTION_AFTER.match(text, within)):
        return None
    return "".join((*kept, text[position:])).strip(_INVISIBLE)


def _begins_block(text: str, start: int) -> bool:
    """Whether a block may begin here: at the beginning of the text, a line or a sentence."""
    before = text[max(0, start - 50) : start].rstrip(" \t　")
    return not before or before[-1] in "\n" + _SENTENCE_END


def _ends_block(text: str, start: int, end: int) -> bool:
    """Whether a mark that closes what nothing opened ends reasoning, and is no mere mention: "it ends with </think> and …"."""
    return _begins_block(text, start) or text[end : end + 1] == "\n" or not _MENTION_AFTER.match(text, end)


def _is_quoted(text: str, start: int, end: int) -> bool:
    """Whether a mark stands between quotation marks or backticks: it is named then, not used."""
    if start and text[end : end + 1] and _QUOTED.get(text[start - 1]) == text[end]:
        return True
    before, after = text[max(0, start - _LOOKED_AT) : start], text[end : end + _LOOKED_AT]
    line = before.rpartition("\n")[2].replace("```", "")
    return line.count("`") % 2 == 1 and "`" in after.partition("\n")[0]


def _unwrapped(text: str) -> str | None:
    """The text without special tokens at its end and tags around the whole of it; None where such a tag begins only a part."""
    if special := _SPECIAL.search(text, max(0, len(text) - _LOOKED_AT)):
        text = text[: special.start()]
    if opening := _WRAPPER.match(text):
        closing = _WRAPPER_END.search(text, max(0, len(text) - 40))
        return text[opening.end() : closing.start() if closing else None].strip()
    return None if any(_begins_block(text, wrapper.start()) for wrapper in _WRAPPER.finditer(text)) else text
