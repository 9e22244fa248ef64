"""What is wrong with a passage: advertising, links, other scripts, repetition, garble, length …

`passages.py` asks here twice: for a document without control characters, and for the rule that drops a passage. A rule is a
function and its entry in `RULES`; its limits stand in `CleanRules`. Everything here sees one text at a time and keeps nothing.

The phrases of `advertising` and `boilerplate` are data files in `phrases/`, one a line; `#` begins a comment, `~` a phrase that
ordinary sentences use too.
"""

import functools
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.collect.ngrams import Beginnings, runs
from data_tools.records.language import LANGUAGES, fold, other_script_share
from huatuo_jax.config import require

PHRASES = Path(__file__).parent / "phrases"

_URL = re.compile(r"(?:https?://|www\.)[^\s一-鿿，。；）)】>\"']+|\b[\w.+-]{1,64}@[\w-]{1,63}\.[\w.]+")
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_LINE_END = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
_UNUSUAL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
_BAD_CHARACTER = re.compile(
    r"[\ufffd\ue000-\uf8ff]|锟斤拷|烫烫烫|屯屯屯|[\u00c2\u00c3][\u00a0-\u00bf]|\u00e2\u20ac|\u00ef\u00bb\u00bf"
)
_ENTITY = re.compile(r"&(?:#\d{2,6}|#[xX][0-9a-fA-F]{2,5}|[A-Za-z]{2,8}\d{0,2});")
_RULED = re.compile(r"[\s|]|[-=_]{2,}")
"""Space, and the lines that a table is drawn with."""
_LATIN_WORD = re.compile(r"[a-z]{3}")
_LIST_MARK = re.compile(r"^[\s\d\W]+")
LIST_LINES, LIST_LINE_LENGTH = 3, 120
"""A list has so many lines at least, of so many characters at most."""
WEAK_PHRASE = 0.5
"""What a phrase marked with `~` counts."""
GRAM = 12
"""Length of the pieces whose repetition is counted."""


@dataclass(frozen=True)
class CleanRules:
    """Limits of the rules; a share is of the passage's characters, or of its letters where it says so.

    Attributes:
      min_chars_zh, min_chars_en: shorter passages are `too_short`.
      max_url_share: above it a passage is `links`.
      max_other_script: share of letters that are neither Chinese, Latin nor Greek; above it `wrong_script`.
      max_repetition: share of the passage's pieces of 12 characters that occurred before in it; above it `repetition`.
      max_list_repetition: the same for a list whose lines all begin differently (six drugs at one dose).
      max_bad_characters: share of characters that decoding or scraping has broken; above it `garble`.
      min_letters: share of characters that are letters; below it a passage is `no_prose` (columns of numbers, rows of symbols).
        Dosage regimens have 0.4, laboratory tables 0.37; the lines a table is drawn with are not counted.
      advertising_phrases, boilerplate_phrases: so many different phrases of the files drop a passage; one marked with `~` counts
        as half.
      disabled: names of rules that are switched off.
    """

    min_chars_zh: int = 20
    min_chars_en: int = 60
    max_url_share: float = 0.2
    max_other_script: float = 0.2
    max_repetition: float = 0.3
    max_list_repetition: float = 0.6
    max_bad_characters: float = 0.005
    min_letters: float = 0.3
    advertising_phrases: int = 2
    boilerplate_phrases: int = 2
    disabled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = ", ".join(sorted(set(self.disabled) - set(RULES)))
        require(not unknown, f"no cleaning rule is called {unknown}; the rules are {', '.join(RULES)}")


def remove_control_characters(text: str) -> str:
    """The text without control, zero-width and direction characters (tabs stay), HTML entities decoded; every line ends in \\n.

    Whatever system wrote a text, and whatever separates its pages, the same passages come of it.
    """
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]).replace("\xa0", " "), text)
    # One search for all: nearly every text has none.
    return _CONTROL.sub("", _LINE_END.sub("\n", text)) if _UNUSUAL.search(text) else text


def dropping_rule(text: str, language: str, rules: CleanRules) -> str | None:
    """The name of the first rule that drops a passage; None if it is clean."""
    return next((name for name, drops in RULES.items() if name not in rules.disabled and drops(text, language, rules)), None)


def repetition(text: str) -> float:
    """Share of the pieces of 12 characters that occurred earlier in the text; 0 for a text of fewer than 24 characters."""
    if len(text) < 2 * GRAM:
        return 0.0
    # "多喝水。" six times over has 24 characters and 13 pieces of 12, of which 4 are different: (13 - 4) / 13 = .69.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    pieces = np.sort(runs(codes, GRAM))
    return float((pieces[1:] == pieces[:-1]).sum()) / len(pieces)


def phrases_in(text: str, kind: str) -> list[str]:
    """The phrases of a kind ("advertising" or "boilerplate") that a text holds, both languages; English ones as whole words."""
    lowered = _lowered(text)
    return [phrase for phrase in _worth_a_look(kind, lowered) if phrase in lowered and _as_whole_words(phrase).search(lowered)]


def _worth_a_look(kind: str, lowered: str) -> Sequence[str]:
    """The phrases that a text may hold, by their first two characters; to search for each of them takes longer."""
    chinese, english = _by_beginning(kind)
    if lowered.isascii():
        return english
    held = [phrase for beginning in _beginnings(lowered) if beginning in chinese for phrase in chinese[beginning]]
    return [*held, *english] if _LATIN_WORD.search(lowered) else held


@functools.lru_cache(maxsize=1)
def _beginnings(lowered: str) -> set[str]:
    """Pairs of characters of a text with which Chinese phrases may begin; as `_lowered`, for both kinds."""
    return {lowered[place : place + 2] for place in _chinese_phrases().places(lowered)}


@functools.cache
def _chinese_phrases() -> Beginnings:
    return Beginnings(beginning for kind in ("advertising", "boilerplate") for beginning in _by_beginning(kind)[0])


@functools.cache
def _by_beginning(kind: str) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """First two characters → Chinese phrases that begin so; and the English ones: in ASCII, with a word in Latin letters."""
    english = tuple(phrase for phrase in load_phrases(kind) if phrase.isascii() and _LATIN_WORD.search(phrase))
    chinese: dict[str, list[str]] = {}
    for phrase in load_phrases(kind):
        if phrase not in english:
            chinese.setdefault(phrase[:2], []).append(phrase)
    return chinese, english


@functools.cache
def _as_whole_words(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z]){re.escape(phrase)}(?![a-z])")


@functools.lru_cache(maxsize=1)
def _lowered(text: str) -> str:
    """Lower case with half-width letters; both kinds of phrases are looked for in the same text, one after the other."""
    return fold(text)


@functools.cache
def load_phrases(kind: str) -> dict[str, float]:
    """All phrases of a kind, lower case, and what each counts."""
    lines = [line for language in LANGUAGES for line in (PHRASES / f"{kind}.{language}.txt").read_text("utf-8").splitlines()]
    return {
        line.lstrip("~").strip().lower(): WEAK_PHRASE if line.startswith("~") else 1.0
        for line in lines
        if line.strip() and not line.startswith("#")
    }


def _too_short(text: str, language: str, rules: CleanRules) -> bool:
    return len(text.strip()) < (rules.min_chars_zh if language == "zh" else rules.min_chars_en)


def _garble(text: str, language: str, rules: CleanRules) -> bool:
    # U+FFFD, private use, and what UTF-8 becomes when it is read as GBK (锟斤拷) or as Latin-1 (Ã©, â€œ).
    bad = 0 if text.isascii() else sum(len(match) for match in _BAD_CHARACTER.findall(text))
    return bad > rules.max_bad_characters * len(text)


def _no_prose(text: str, language: str, rules: CleanRules) -> bool:
    # "| p | 0.3 | 17 |" has 6 characters beside spaces and rules, and one of them is a letter: 1 < 0.3 · 6.
    letters = len(_NOT_LETTERS.sub("", text))
    if letters >= rules.min_letters * len(text):
        return False  # whatever is spaces and rules; true of nearly all texts, and saves the slower search
    dense = len(_RULED.sub("", text))
    return dense > 0 and letters < rules.min_letters * dense


def _wrong_script(text: str, language: str, rules: CleanRules) -> bool:
    return not text.isascii() and other_script_share(text) > rules.max_other_script


def _links(text: str, language: str, rules: CleanRules) -> bool:
    # A quick look first: in the eight medical corpora 99 % of the passages hold none of these.
    if "://" not in text and "www." not in text and "@" not in text:
        return False
    return sum(map(len, _URL.findall(text))) > rules.max_url_share * len(text)


def _advertising(text: str, language: str, rules: CleanRules) -> bool:
    return _weight_of_phrases(text, "advertising") >= rules.advertising_phrases


def _boilerplate(text: str, language: str, rules: CleanRules) -> bool:
    return _weight_of_phrases(text, "boilerplate") >= rules.boilerplate_phrases


def _weight_of_phrases(text: str, kind: str) -> float:
    counts = load_phrases(kind)
    return sum(counts[phrase] for phrase in phrases_in(text, kind))


def _repetition(text: str, language: str, rules: CleanRules) -> bool:
    share = repetition(text)
    return share > rules.max_repetition and (share > rules.max_list_repetition or not _is_list(text))


def _is_list(text: str) -> bool:
    """Whether a text is several short lines that all begin differently, after their bullets or numbers."""
    lines = [line for line in text.split("\n") if line.strip()]
    beginnings = {_LIST_MARK.sub("", line)[:4].lower() for line in lines}
    return len(lines) >= LIST_LINES and len(beginnings) == len(lines) and max(map(len, lines)) <= LIST_LINE_LENGTH


RULES: dict[str, Callable[[str, str, CleanRules], bool]] = {
    "too_short": _too_short,
    "garble": _garble,
    "no_prose": _no_prose,
    "wrong_script": _wrong_script,
    "links": _links,
    "advertising": _advertising,
    "boilerplate": _boilerplate,
    "repetition": _repetition,
}
"""Name → whether the rule drops (text, language, limits), in the order in which they are tried: the first names the drop.

Rules overlap, so a new one's place decides what it counts."""
