"""No text makes a pattern slow: each is fed repetitions of its own characters, literals and beginnings, up to a megabyte.

A pattern such as `微信\\s*号?\\s*:` takes the square of the number of blanks after 微信: 80,000 of them took 274 seconds. Whoever
adds a pattern to a module of `collect` need not add anything here: all compiled patterns of the modules are found.
"""

import importlib
import pkgutil
import re
import time
from re import _constants as constants  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]

import pytest

import data_tools.collect as room
from data_tools.collect.clean import RULES, CleanRules, remove_control_characters, repetition
from data_tools.collect.masks import _CLINICAL, _KINDS, mask_personal_data
from data_tools.collect.passages import segment
from data_tools.collect.settings import Window
from data_tools.records import language

SMALL, LARGE = 64 << 10, 1 << 20
CATEGORIES = {
    constants.CATEGORY_DIGIT: "1",
    constants.CATEGORY_SPACE: " ",
    constants.CATEGORY_WORD: "a",
    constants.CATEGORY_NOT_DIGIT: "a",
    constants.CATEGORY_NOT_SPACE: "a",
    constants.CATEGORY_NOT_WORD: ".",
}


def patterns() -> dict[str, re.Pattern[str]]:
    """All compiled patterns of the room, and of the languages' rules."""
    modules = [importlib.import_module(f"{room.__name__}.{module.name}") for module in pkgutil.iter_modules(room.__path__)]
    found = {}
    for module in (*modules, language):
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = value
    return found


def members(node) -> set[str]:
    """A character of each kind that a class or a literal of the tree takes."""
    kind, value = node
    if kind is constants.LITERAL:
        return {chr(value)}
    if kind in (constants.NOT_LITERAL, constants.ANY):
        return {"a"}
    if kind is constants.CATEGORY:
        return {CATEGORIES[value]}
    if kind is constants.RANGE:
        return {chr(value[0])}
    if kind is constants.IN:
        negated = value and value[0][0] is constants.NEGATE
        return {"a", " ", "1"} if negated else set().union(*map(members, value))
    return set().union(*(members(child) for child in children(node)))


def children(node):
    """The sub-trees of a node."""
    kind, value = node
    if kind is constants.BRANCH:
        return [child for branch in value[1] for child in branch]
    if kind is constants.SUBPATTERN:
        return list(value[3])
    if kind in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
        return list(value[2])
    if kind in (constants.ASSERT, constants.ASSERT_NOT):
        return list(value[1])
    return []


def beginnings(nodes, before: str = "") -> set[str]:
    """Short texts that get a match as far as each place of the pattern."""
    out = {before}
    for node in nodes:
        kind, value = node
        if kind is constants.BRANCH:
            for branch in value[1]:
                out |= beginnings(branch, before)
            before += example(node)
        elif kind is constants.SUBPATTERN:
            out |= beginnings(value[3], before)
            before += example(node)
        elif kind in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            out |= beginnings(value[2], before)
            before += example(node)
        elif kind not in (constants.ASSERT_NOT, constants.AT, constants.GROUPREF):
            before += example(node)
        out.add(before)
    return out


def example(node) -> str:
    """A text that the node takes, short."""
    kind, value = node
    if kind is constants.BRANCH:
        return "".join(map(example, value[1][0]))
    if kind in (constants.SUBPATTERN,):
        return "".join(map(example, value[3]))
    if kind in (constants.MAX_REPEAT, constants.MIN_REPEAT):
        return "".join(map(example, value[2])) * value[0]
    if kind in (constants.ASSERT,):
        return "".join(map(example, value[1])) if value[0] < 0 else ""
    if kind in (constants.ASSERT_NOT, constants.AT, constants.GROUPREF):
        return ""
    return min(members(node))


def probes(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """(what stands first, what is repeated) for texts that may be slow."""
    tree = list(parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE if pattern.flags & re.ASCII else pattern.flags))
    alphabet = sorted(set().union(*map(members, tree)) | {" ", "1"})
    starts = sorted(beginnings(tree))
    # Pairs too: of "a" and "." alone, neither has the many word boundaries that "a.a.a." has.
    few = [*alphabet[:: len(alphabet) // 12 + 1], " "]
    repeated = {("", piece) for piece in (*alphabet, *filter(None, starts), *(a + b for a in few for b in few))}
    return sorted(repeated | {(start, character) for start in starts[:: len(starts) // 20 + 1] for character in few})


def seconds(work, text: str) -> float:
    began = time.process_time()
    work(text)
    return time.process_time() - began


def filled(start: str, piece: str, size: int) -> str:
    return start + piece * (size // len(piece))


def assert_linear(work, given: list[tuple[str, str]]) -> None:
    """Tries all texts small, and the slowest of them large."""
    # A first look at 4 KiB: what is quadratic shows there already, and would take minutes at 64.
    times = {probe: seconds(work, filled(*probe, SMALL >> 4)) for probe in given}
    slow = [probe for probe, taken in times.items() if taken > 0.1]
    assert not slow, slow[:3]
    slowest = {probe: seconds(work, filled(*probe, SMALL)) for probe in sorted(times, key=times.__getitem__)[-3:]}
    probe = max(slowest, key=slowest.__getitem__)
    assert slowest[probe] < 1, probe
    # 16 times the text may take 20 times as long; what is quadratic takes 256 times. Other work on the machine can only slow a
    # measurement down, so the quickest of a few counts.
    large = seconds(work, filled(*probe, LARGE))
    for _ in range(3):
        if large < 0.5 or large <= 20 * slowest[probe]:
            break
        large = min(large, seconds(work, filled(*probe, LARGE)))
    assert large <= 5 and (large < 0.5 or large <= 20 * slowest[probe]), (probe, slowest[probe], large)


@pytest.mark.parametrize("name", patterns())
def test_no_repetition_of_its_own_makes_a_pattern_slow(name):
    pattern = patterns()[name]
    assert_linear(lambda text: sum(1 for _ in pattern.finditer(text)), probes(pattern))


def test_every_pattern_of_the_masks_is_among_them():
    known = set(patterns().values())
    assert {kind.pattern for kind in (_KINDS | _CLINICAL).values()} <= known and len(known) > 20


PIECES = [
    " ",
    "\n",
    "微信 ",
    "微信" + " " * 20,
    "a.",
    "a@",
    "1",
    "1 ",
    "13800138000,",
    "姓名",
    "住址：",
    "www.",
    "&lt;",
    "甲。",
    "—",
    "的",
]


@pytest.mark.parametrize(
    "work",
    [
        lambda text: mask_personal_data(text, clinical=True),
        lambda text: [rule(text, lang, CleanRules()) for rule in RULES.values() for lang in ("zh", "en")],
        remove_control_characters,
        repetition,
        lambda text: segment(text, Window(60, 600), "zh"),
    ],
    ids=["masks", "rules", "control characters", "repetition", "segment"],
)
def test_no_repetition_makes_a_step_slow(work):
    assert_linear(work, [("", piece) for piece in PIECES] + [("微信", " "), ("a.", " "), ("甲", "\r")])
