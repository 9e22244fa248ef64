"""Which language a text is in ("zh" or "en"), and how much of it is in other scripts: rules that collect and unify share.

`collect` asks for the language of every document and passage (which window, which n-grams, which threshold), `unify` for the
language in which to put a question. Both decide by counting: Chinese characters against words in Latin letters.
Next to read: `data_tools/collect/passages.py` or `data_tools/unify/passages.py`.
"""

import re
import unicodedata

LANGUAGES = ("zh", "en")
SAMPLED = 20_000
"""Characters of a long text that are looked at: its beginning, middle and end."""

_HAN = re.compile(r"[㐀-鿿豈-﫿\U00020000-\U0003134f]")
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ɏ]+")
_BASIC_HAN = re.compile(r"[㐀-鿿]")
_ASCII_WORD = re.compile(r"[A-Za-z]+")
_WIDE = re.compile(r"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\ufb00-\ufb06]")
_OTHER_LETTER = re.compile(r"[^\W\d_A-Za-zÀ-ɏͰ-Ͽ㐀-鿿豈-﫿\U00020000-\U0003134f]")
"""Letters that are neither Chinese, Latin nor Greek (symbols such as α and β are at home in both languages)."""


def language_of(text: str) -> str:
    """ "zh" if a text has at least as many Chinese characters as words in Latin letters, else "en".

    For documents of any length: of a long one only a sample is counted.
    """
    # 用 aspirin 治疗头痛: 5 characters against 1 word, zh. A text without letters of either script is zh too (0 against 0).
    looked_at = sample(text)
    return "zh" if len(_HAN.findall(looked_at)) >= len(_LATIN_WORD.findall(looked_at)) else "en"


def language_of_passage(text: str) -> str:
    """The rule of `unify`: as `language_of`, but over the whole text, and without rare characters and accented letters.

    The two can disagree where the counts are close: "naïve" is two words here, one there. They stay apart because the language
    chooses the wording of a pair's question and the prompt of a rewriting: with the other rule, the same passages would give
    other pairs, and calls that the ledger has answers to would be bought again.
    """
    return "zh" if len(_BASIC_HAN.findall(text)) >= len(_ASCII_WORD.findall(text)) else "en"


def sample(text: str) -> str:
    """The text itself, or its beginning, middle and end if it is long."""
    if len(text) <= SAMPLED:
        return text
    third, middle = SAMPLED // 3, len(text) // 2
    return text[:third] + text[middle : middle + third] + text[-third:]


def other_script_share(text: str) -> float:
    """Letters of other scripts than Chinese, Latin and Greek, as a share of all letters; 0 for a text without letters."""
    others = len(_OTHER_LETTER.findall(text))
    if not others:
        return 0.0
    return others / (others + len(_HAN.findall(text)) + sum(map(len, _LATIN_WORD.findall(text))))


def fold(text: str) -> str:
    """Lower case, and NFKC where full-width letters or ligatures ask for it: what terms and phrases are searched in.

    Full NFKC of every text would cost more than the search: it rewrites all Chinese punctuation.
    """
    return (unicodedata.normalize("NFKC", text) if _WIDE.search(text) else text).lower()
