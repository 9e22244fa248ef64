"""Dialogue formats: what stands where in a dialogue, for training and for transformers, and the check of format × tokenizer.

Each format is one object in `FORMATS`, which says it twice:

    render    turns and a system prompt → pieces of text and control tokens, of which `dialogue.py` makes tokens and targets, in
              the same way for all formats; for training, generation and evaluation
    jinja     the chat template of an exported folder, for `apply_chat_template` of transformers

On the way from a record to tokens it stands between the record and `dialogue.py`, which is next to read. What must hold: both
give the same ids. Ours tokenises a prompt piece by piece; transformers renders one string and tokenises that. The ids are the
same where no token reaches over the seam of two pieces, and for the huatuo format `check` refuses a tokenizer that has such a
token. To add a format, add it to `FORMATS`, and to the lists of `tests/data/test_formats.py` and
`tests/weights/test_tokenizer_export.py`, which ask for every format and hold `jinja` against `render`.

Seams. A tokenizer with a dummy prefix puts a "▁" in front of each piece, so two pieces that touch without a control token between
them are tokenised as two strings, and one string of transformers as one. Let a piece run from one control token to the next: a
line break behind an end token is the beginning of the next piece's prefix. Where that cannot be, write "@SPACE@" into `jinja`.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.errors import ConfigError, RecordError

BOS, EOS = "the tokenizer's begin token", "the tokenizer's end token"
"""Stand-ins for tokens whose name depends on the tokenizer."""


class Piece(NamedTuple):
    """A stretch of a dialogue that is tokenised as one string, `prefix + text`, between control tokens.

    Attributes:
      before, after: names of tokens, looked up in the vocabulary (or BOS, EOS).
      prefix: text of the format. text: the user's or the assistant's.
      learned: the text and `after` are targets; `before` and the prefix never are.
      ends_previous: the first token has EOS as its target, so that the answer before it learns to stop.
    """

    before: tuple[str, ...] = ()
    prefix: str = ""
    text: str = ""
    after: tuple[str, ...] = ()
    learned: bool = False
    ends_previous: bool = False


@dataclass(frozen=True)
class DialogueFormat:
    """A dialogue format.

    Attributes:
      name: what `get_format` knows it by; version: changes whenever the tokens that it yields change.
      render: (turns, system) → pieces; raises RecordError for a dialogue that the format cannot express.
      prefixes: what `render` puts in front of a text. literals: what else it writes.
      follow_text: the prefixes that follow a text directly, so their tokens must be the same there too.
      closing_eos: EOS ends the whole example, as input and as target.
      jinja: the chat template; "@SPACE@" stands where the seams of pieces need a space (`chat_template`).
    """

    name: str
    version: int
    render: Callable[[tuple[str, ...], str], Iterator[Piece]]
    jinja: str
    prefixes: tuple[str, ...] = ()
    literals: tuple[str, ...] = ()
    follow_text: tuple[str, ...] = ()
    closing_eos: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token that the format names, as it renders a dialogue with and without a system prompt."""
        pieces: list[Piece] = []
        for system in ("", "s"):
            with contextlib.suppress(RecordError):  # the format has no place for one
                pieces += self.render(("q", "a", "q", "a"), system)
        return tuple(dict.fromkeys(name for piece in pieces for name in (*piece.before, *piece.after)))

    def token_id(self, name: str, tokenizer: Tokenizer) -> int:
        """Id of a token that a piece names; raises ConfigError if the vocabulary lacks it."""
        id = {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}[name] if name in (BOS, EOS) else tokenizer.token_to_id(name)
        if id is None:
            raise self._refusal(tokenizer, f"the vocabulary lacks {name if name == BOS else repr(name)}")
        return id

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids of the tokens that end an answer: the tokenizer's end token, and what the format writes behind an answer."""
        behind = [name for piece in self.render(("", ""), "") if piece.learned for name in piece.after[:1]]
        return tuple(dict.fromkeys([tokenizer.eos_id, *(self.token_id(name, tokenizer) for name in behind)]))

    def chat_template(self, space_at_seams: bool) -> str:
        """The Jinja text, for a tokenizer that puts a "▁" in front of every piece (a dummy prefix) or for one that does not.

        With a dummy prefix ours has a "▁" at every seam. In a prompt that is one string, only a space there makes the same token.
        """
        return self.jinja.replace("@SPACE@", " " if space_at_seams else "")

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError with the reason if `tokenizer` cannot carry this format."""
        for name in self.tokens:
            self.token_id(name, tokenizer)
        for literal in (*self.prefixes, *self.literals):
            if reason := literal_fault(literal, tokenizer):
                raise self._refusal(tokenizer, f"{literal!r} {reason}")
        for literal in self.literals:
            if literal.strip() in tokenizer.symbols:
                raise self._refusal(tokenizer, f"the format writes {literal.strip()!r} as plain text, but it is a token here")
        texts = tokenizer.texts_of_vocabulary("".join(self.prefixes)) if self.prefixes else []
        for prefix in self.prefixes:
            if reason := prefix_fault(prefix, tokenizer, texts, prefix in self.follow_text):
                raise self._refusal(tokenizer, f"{prefix!r} {reason}")

    def _refusal(self, tokenizer: Tokenizer, reason: str) -> ConfigError:
        others = "choose another dialogue format, or a tokenizer made for this one (`huatuo-data tokenizer train`)"
        return ConfigError(f"dialogue format {self.name} does not work with {tokenizer.path}: {reason}; {others}")


def literal_fault(literal: str, tokenizer: Tokenizer) -> str:
    """Why `literal` cannot be written with this tokenizer at all, "" if it can."""
    ids = tokenizer.encode("", trusted_prefix=literal)
    if not ids:
        return "encodes to no token at all"
    if (decoded := tokenizer.decode(ids)) != literal:
        return f"decodes to {decoded!r}: the tokenizer alters or drops characters"
    return ""


def prefix_fault(prefix: str, tokenizer: Tokenizer, texts: list[str], follows_text: bool) -> str:
    """Why `prefix` cannot mark off the text after it (and, if it `follows_text`, the text before it), "" if it can.

    Its tokens must be the same alone and in context, a dummy-prefix "▁" aside: a vocabulary with the token "？\\n" would take
    the line break away from "\\n<答>：". The contexts are samples and whatever the vocabulary (`texts`) could glue to the
    prefix. What may come before it is any text, for questions end in "？", and a program that renders a prompt as one string
    (a chat template) must get the same tokens. After it only letters and digits count: an answer that begins with a rare mark
    of punctuation may merge with the prefix without harm.
    """
    # Whatever the vocabulary has across an end of the prefix: an entry "：好" begins with the tail "：" of "<问>：", so "好"
    # behind the prefix may be glued to it; heads show the same of what comes before.
    alone = tokenizer.encode("", trusted_prefix=prefix)
    tails, heads = tuple(prefix[i:] for i in range(len(prefix))), tuple(prefix[: i + 1] for i in range(len(prefix)))
    glued = {text[len(tail) :] for text in texts if text.startswith(tails) for tail in tails if text.startswith(tail)}
    for text in ("好", "a", "1", *sorted(rest for rest in glued if rest[:1].isalnum())):
        if tokenizer.encode(text, trusted_prefix=prefix)[: len(alone)] != alone:
            return f"has other tokens before {text!r} than alone"
    if not follows_text:
        return ""
    # Alone, a prefix may begin with the "▁" that SentencePiece puts in front of a text; within a text there is none.
    pieces = [tokenizer.id_to_piece(i) for i in alone]
    without_dummy = [piece for piece in (pieces[0].removeprefix("▁"), *pieces[1:]) if piece]
    glued = {text[: -len(head)] for text in texts if text.endswith(heads) for head in heads if text.endswith(head)}
    for text in ("好", "a", "1", "？", "。", "?", ".", *sorted(rest for rest in glued if rest.strip())):
        joined = tokenizer.encode("", trusted_prefix=text + prefix)
        last_pieces = [tokenizer.id_to_piece(i) for i in joined[-len(without_dummy) :]]
        if joined[-len(alone) :] != alone and last_pieces != without_dummy:
            return f"has other tokens after {text!r} than alone"
    return ""


# Jinja that several formats share: the system prompt taken off the messages, and the turns in strict alternation.
_STRICT_TURNS = (
    "{%- for message in turns -%}"
    "{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}"
    "{{- raise_exception('turns must alternate: user, assistant, user, …') -}}"
    "{%- endif -%}"
)

_WITHOUT_SYSTEM = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{{- raise_exception('the huatuo format has no place for a system prompt') -}}"
    "{%- endif -%}"
    "{%- set turns = messages -%}"
)

_WITH_SYSTEM = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    "{%- set system = '' -%}{%- set turns = messages -%}"
    "{%- endif -%}"
)


def _huatuo(turns: tuple[str, ...], system: str) -> Iterator[Piece]:
    if system:
        others = ", ".join(name for name in FORMATS if name != "huatuo")
        raise RecordError(f"the huatuo format has no place for a system prompt; use another one ({others})")
    for i, turn in enumerate(turns):
        if i % 2:
            yield Piece(prefix="\n<答>：", text=turn, learned=True)
        else:
            yield Piece(prefix="\n<问>：" if i else "<问>：", text=turn, ends_previous=i > 0)


_HUATUO_JINJA = (
    _WITHOUT_SYSTEM
    + _STRICT_TURNS
    + "{%- if loop.index0 % 2 -%}{{- '@SPACE@\\n<答>：' + message['content'] -}}"
    + "{%- else -%}{{- ('' if loop.first else '@SPACE@\\n') + '<问>：' + message['content'] -}}{%- endif -%}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '@SPACE@\\n<答>：' -}}{%- endif -%}"
)


def _baichuan2_chat(turns: tuple[str, ...], system: str) -> Iterator[Piece]:
    if system:
        yield Piece(text=system)
    for i, turn in enumerate(turns):
        if i % 2:
            yield Piece(before=("<reserved_107>",), text=turn, learned=True)
        else:
            # Nothing stands behind an answer here, so the next question's first token is where the model learns to stop.
            yield Piece(before=("<reserved_106>",), text=turn, ends_previous=i > 0)


_BAICHUAN2_CHAT_JINJA = (
    _WITH_SYSTEM
    + "{{- system -}}"
    + _STRICT_TURNS
    + "{{- ('<reserved_107>' if loop.index0 % 2 else '<reserved_106>') + message['content'] -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<reserved_107>' -}}{%- endif -%}"
)


def _llama2(turns: tuple[str, ...], system: str) -> Iterator[Piece]:
    # As Meta's code writes it: every question opens with BOS, the system prompt stands within the first one, texts are stripped.
    for i, turn in enumerate(turns):
        if i % 2:
            yield Piece(text=f"{turn.strip()} ", after=(EOS,), learned=True)
        elif system and i == 0:
            yield Piece(before=(BOS,), prefix="[INST]", text=f" <<SYS>>\n{system.strip()}\n<</SYS>>\n\n{turn.strip()} [/INST]")
        else:
            yield Piece(before=(BOS,), prefix="[INST]", text=f" {turn.strip()} [/INST]")


_LLAMA2_JINJA = (
    _WITH_SYSTEM
    + _STRICT_TURNS
    + "{%- set text = message['content'] | trim -%}"
    + "{%- if loop.index0 % 2 -%}{{- '@SPACE@' + text + ' ' + eos_token -}}"
    + "{%- elif loop.first and system -%}"
    + "{{- bos_token + '[INST] <<SYS>>\\n' + (system | trim) + '\\n<</SYS>>\\n\\n' + text + ' [/INST]' -}}"
    + "{%- else -%}{{- bos_token + '[INST] ' + text + ' [/INST]' -}}{%- endif -%}"
    + "{%- endfor -%}"
)


def _with_roles(turns: tuple[str, ...], system: str) -> Iterator[tuple[str, str]]:
    if system:
        yield "system", system
    for i, turn in enumerate(turns):
        yield "assistant" if i % 2 else "user", turn


def _llama3(turns: tuple[str, ...], system: str) -> Iterator[Piece]:
    begin: tuple[str, ...] = ("<|begin_of_text|>",)
    for role, text in _with_roles(turns, system):
        yield Piece(before=(*begin, "<|start_header_id|>"), prefix=role, after=("<|end_header_id|>",))
        yield Piece(prefix="\n\n", text=text.strip(), after=("<|eot_id|>",), learned=role == "assistant")
        begin = ()


_LLAMA3_JINJA = (
    _WITH_SYSTEM
    + "{{- '<|begin_of_text|>' -}}"
    + "{%- if system -%}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + (system | trim) + '<|eot_id|>' -}}{%- endif -%}"
    + _STRICT_TURNS
    + "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)


def _chatml(turns: tuple[str, ...], system: str) -> Iterator[Piece]:
    for role, text in _with_roles(turns, system):
        yield Piece(before=("<|im_start|>",), prefix=f"{role}\n", text=text, after=("<|im_end|>",), learned=role == "assistant")
        yield Piece(prefix="\n")  # a piece of its own, not learned: an answer ends with <|im_end|>


_CHATML_JINJA = (
    _WITH_SYSTEM
    + "{%- if system -%}{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}{%- endif -%}"
    + _STRICT_TURNS
    + "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


# `version` 1 of each is what the first release wrote. A format whose tokens change gets the next number, so that a build of the
# old version is not continued with the new one.
FORMATS = {
    dialogue_format.name: dialogue_format
    for dialogue_format in (
        DialogueFormat(
            "huatuo",
            1,
            _huatuo,
            _HUATUO_JINJA,
            prefixes=("<问>：", "\n<答>：", "\n<问>："),
            follow_text=("\n<答>：", "\n<问>："),
            closing_eos=True,
        ),
        DialogueFormat("llama2", 1, _llama2, _LLAMA2_JINJA, literals=("[INST]", " [/INST]")),
        DialogueFormat(
            "llama3",
            1,
            _llama3,
            _LLAMA3_JINJA,
            prefixes=("\n\n",),
            literals=("user", "assistant", "system"),
        ),
        DialogueFormat(
            "chatml",
            1,
            _chatml,
            _CHATML_JINJA,
            prefixes=("user\n", "assistant\n", "system\n"),
            literals=("\n",),
        ),
        DialogueFormat("baichuan2-chat", 1, _baichuan2_chat, _BAICHUAN2_CHAT_JINJA, closing_eos=True),
    )
}
"""By name. Formats: HuatuoGPT-II's `train_huatuo`, Baichuan2's chat, Meta's Llama 2 and 3, ChatML (Qwen)."""


def get_format(name: str) -> DialogueFormat:
    """The dialogue format with this name; raises ConfigError, which lists the names."""
    if name not in FORMATS:
        raise ConfigError(f"no dialogue format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
