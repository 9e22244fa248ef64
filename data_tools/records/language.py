"""A text in, its language ("zh" or "en") and the share of letters in other scripts out."""

import re
import unicodedata

LANGUAGES = ("zh", "en")
SAMPLED = 20_000
"""Characters of a long text that are looked at: its beginning, middle and end."""

_HAN = re.compile(r"[㐀-鿿豈-﫿\U00020000-\U0003134f]")
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ɏ]+")
_WIDE = re.compile(r"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\ufb00-\ufb06]")
_OTHER_LETTER = re.compile(r"[^\W\d_A-Za-zÀ-ɏͰ-Ͽ㐀-鿿豈-﫿\U00020000-\U0003134f]")
"""Letters that are neither Chinese, Latin nor Greek (symbols such as α and β are at home in both languages)."""


def sample(text: str) -> str:
    """The text itself, or its beginning, middle and end if it is long."""
    if len(text) <= SAMPLED:
        return text
    third, middle = SAMPLED // 3, len(text) // 2
    return text[:third] + text[middle : middle + third] + text[-third:]


def fold(text: str) -> str:
    """Lower case, and NFKC where full-width letters or ligatures ask for it: what terms and phrases are searched in.

    Full NFKC of every text would cost more than the search: it rewrites all Chinese punctuation.
    """
    return (unicodedata.normalize("NFKC", text) if _WIDE.search(text) else text).lower()


def language_of(text: str) -> str:
    """ "zh" if a text has at least as many Chinese characters as words in Latin letters, else "en"."""
    looked_at = sample(text)
    return "zh" if len(_HAN.findall(looked_at)) >= len(_LATIN_WORD.findall(looked_at)) else "en"


def other_script_share(text: str) -> float:
    """Letters of other scripts than Chinese, Latin and Greek, as a share of all letters; 0 for a text without letters."""
    others = len(_OTHER_LETTER.findall(text))
    if not others:
        return 0.0
    return others / (others + len(_HAN.findall(text)) + sum(map(len, _LATIN_WORD.findall(text))))
