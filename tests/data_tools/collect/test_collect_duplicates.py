"""Planted copies are found by their measured Jaccard index, nothing else is removed, and the preferred copy stays."""

import random
import re
import tracemalloc
import unicodedata

import numpy as np
import pytest

from data_tools.collect.duplicates import (
    KEPT,
    band_keys,
    candidate_pairs,
    content_digests,
    exact_duplicates,
    keep_preferred,
    signatures,
    similar_pairs,
)
from data_tools.collect.facts import Passage, different_facts
from data_tools.collect.ngrams import HashedRows, characters, jaccard, ngrams, shingles, words
from data_tools.collect.settings import NearDuplicates
from huatuo_jax.errors import ConfigError
from tests.support.real_passages import texts


def plain_shingles(text: str, language: str) -> set:
    """Sets of 3-grams in plain Python: what the hashed ones must agree with."""
    normal = unicodedata.normalize("NFKC", text).lower()
    units = [c for c in normal if c.isalnum()] if language == "zh" else re.findall(r"[^\W_]+", normal)
    return {tuple(units[i : i + 3]) for i in range(len(units) - 2)}


def plain_jaccard(a: str, b: str, language: str) -> float:
    first, second = plain_shingles(a, language), plain_shingles(b, language)
    return len(first & second) / len(first | second)


def near_duplicates(passages: list[str]) -> np.ndarray:
    """The whole near step on one list, in order of preference."""
    settings = NearDuplicates()
    sets = shingles(passages)
    keys = band_keys(signatures(sets, settings), settings)
    pairs = np.unique(np.concatenate([candidate_pairs(keys[:, b], settings.bucket)[0] for b in range(settings.bands)]), axis=0)
    return keep_preferred(similar_pairs(pairs, sets, settings.threshold), len(passages))


@pytest.mark.parametrize(
    "a, b, language",
    [
        ("The quick brown fox jumps over it", "The quick brown fox ran over it all", "en"),
        ("我有高血压，最近头晕。", "我有高血压，最近头痛。", "zh"),
        ("Ｆｕｌｌ width ÉTÉ 3.5 mg twice daily", "full WIDTH été 3.5 mg, once daily", "en"),
    ],
)
def test_hashed_shingles_have_the_jaccard_index_of_plain_sets(a, b, language):
    sets = shingles([a, b])
    assert jaccard(sets.row(0), sets.row(1)) == pytest.approx(plain_jaccard(a, b, language))


def test_ngrams_stay_within_their_text_and_ignore_form():
    grams = ngrams(characters(["甲乙丙", "丁戊己", "", "甲，乙　丙"]), 3)
    assert np.diff(grams.offsets).tolist() == [1, 1, 0, 1]
    assert grams.row(0) == grams.row(3) != grams.row(1)
    assert np.diff(words(["Two words", "", "中文 and 3"]).offsets).tolist() == [2, 0, 4]


def test_exact_copies_are_found_whatever_their_form_and_the_first_stays():
    passages = [
        "Take two tablets daily.",
        "其他内容",
        "take TWO tablets, daily",
        "Take two tablets\ndaily!",
        "Take three tablets daily.",
    ]
    assert exact_duplicates(content_digests(passages)).tolist() == [KEPT, KEPT, 0, 0, KEPT]


def test_a_copy_of_a_removed_copy_stays_if_it_is_unlike_the_kept_one():
    # 1 is like 0, 2 is like 1 only: with 1 gone, nothing kept is like 2.
    assert keep_preferred(np.array([[0, 1], [1, 2]]), 3).tolist() == [KEPT, 0, KEPT]


def test_large_buckets_are_compared_with_the_preferred_ones_only():
    pairs, saved = candidate_pairs(np.zeros(10, np.uint64), 3)
    assert len(pairs) + saved == 45 and set(pairs[:, 0].tolist()) == {0, 1, 2}


def test_a_bucket_of_many_copies_needs_memory_for_its_pairs_only():
    keys = np.zeros(4000, np.uint64)
    tracemalloc.start()
    pairs, saved = candidate_pairs(keys, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) + saved == 4000 * 3999 // 2
    assert peak < 4 * pairs.nbytes


def test_bands_that_would_miss_copies_are_refused():
    with pytest.raises(ConfigError, match="give fewer rows or more bands"):
        NearDuplicates(threshold=0.5, bands=4, rows=8)


def change(text: str, rate: float, language: str, source: random.Random) -> str:
    """Replaces a share of the words (English) or characters (Chinese)."""
    units = list(text) if language == "zh" else text.split(" ")
    for i in range(len(units)):
        if source.random() < rate:
            units[i] = chr(0x4E00 + source.randrange(3000)) if language == "zh" else f"w{source.randrange(9999)}"
    return ("" if language == "zh" else " ").join(units)


def reorder(text: str, source: random.Random) -> str:
    sentences = re.findall(r"[^。.！？]+[。.！？]*", text)
    source.shuffle(sentences)
    return "".join(sentences)


def reformat(text: str, source: random.Random) -> str:
    return re.sub(r"[，,]", lambda m: source.choice([" ", "，", ", ", "\n"]), text).upper()


@pytest.mark.parametrize("language, corpus", [("zh", "medical_encyclopedia_cn"), ("en", "medical_literature_en")])
def test_planted_copies_by_measured_jaccard(shared_data, language, corpus):
    source = random.Random(0)
    originals = list(dict.fromkeys(texts(shared_data, corpus, 500, 150)))
    # Real texts are copies of one another too: what is planted goes into a corpus without those.
    originals = [text for text, of in zip(originals, near_duplicates(originals), strict=True) if of == KEPT]
    planted, origin = [], []
    for i, text in enumerate(originals):
        rates = [change(text, rate, language, source) for rate in (0.01, 0.02, 0.03, 0.05, 0.08)]
        for copy in (*rates, reorder(text, source), reformat(text, source)):
            planted.append(copy)
            origin.append(i)
    passages = originals + planted
    copies = near_duplicates(passages)
    bins: dict[float, list[bool]] = {}
    for k, (copy, i) in enumerate(zip(planted, origin, strict=True)):
        measured = plain_jaccard(copy, originals[i], language)
        bins.setdefault(min(int(measured * 20) / 20, 0.95), []).append(bool(copies[len(originals) + k] != KEPT))
    recall = {low: (sum(found) / len(found), len(found)) for low, found in sorted(bins.items())}
    print(language, {low: f"{share:.3f} of {count}" for low, (share, count) in recall.items()})
    removed = np.flatnonzero(copies != KEPT)
    false = [k for k in removed if plain_jaccard(passages[k], passages[copies[k]], language) < 0.8 - 0.05]
    assert {0.8, 0.85, 0.9, 0.95} <= set(recall)
    assert all(share >= 0.95 for low, (share, _) in recall.items() if low >= 0.8)
    assert len(false) <= 0.005 * len(removed)
    assert all(copies[removed] < removed), "the preferred copy is the one that stays"


# Different facts in the same words

HPO = (
    "{0}\nWhat are the symptoms of {0} ?\n"
    "The Human Phenotype Ontology provides the following list of signs and symptoms for {0}. "
    "If the information is available, the table below includes how often the symptom is seen in people with this condition. "
    "You can use the medical dictionary to look up the definitions for these medical terms. Autosomal recessive inheritance."
)
SYRUP = (
    "{0}\n剂型:{1}\n适应证:用于痰热阻肺引起的咳嗽痰多，胸满气短，咽干喉痒，肺热燥咳，其表现为干咳，咽痒，鼻唇干燥，无痰或痰少而质粘。"
    "\n注意事项:服药期间忌食辛辣、油腻食物，饮食宜清淡，对本品过敏者禁用，孕妇及体质虚弱者慎用。"
)
DOSE = "儿童体重{}公斤者，每次口服本品{}毫克，每日三次，饭后以温水送服，连用不超过七天，症状没有缓解时应当去医院就诊。"
ASKED = (
    "问：孕妇能吃{0}吗？答：不建议孕妇服用{0}，尤其是怀孕三十周以后，可能影响胎儿的心脏，发热时应当先物理降温，再请医生决定用药。"
)
FEVER = (
    "{} for fever: give {} mg per kg by mouth every six to eight hours, not more than four doses a day, with food, and see "
    "a doctor if the fever lasts longer than three days."
)
ADVICE = (
    "Acute bronchitis\n"
    "Acute bronchitis is an inflammation of the large airways that mostly follows a cold. Rest, drink enough and "
    "take paracetamol against the fever; antibiotics do not help, for nearly all of it is caused by viruses. See a doctor if the "
    "cough lasts longer than three weeks, if you are short of breath, or if there is blood in what you cough up."
)
FOOT = "\nReviewed by our medical team. Subscribe to the newsletter."


@pytest.mark.parametrize(
    "a, b",
    [
        (HPO.format("Stage III colon cancer"), HPO.format("Stage IV colon cancer")),
        (HPO.format("Bardet-Biedl syndrome"), HPO.format("Bardet-Biedl syndrome 10")),
        (HPO.format("Absent patella"), HPO.format("Familial glucocorticoid deficiency")),
        (SYRUP.format("止咳橘红丸", "丸剂，6g/丸。"), SYRUP.format("止咳橘红口服液", "棕黑色的液体：气香，味甜。10ml/支。")),
        (DOSE.format(20, 250), DOSE.format(30, 375)),
        (ASKED.format("布洛芬"), ASKED.format("阿司匹林")),
        (FEVER.format("Ibuprofen", "ibuprofen 10"), FEVER.format("Paracetamol", "paracetamol 15")),
    ],
)
def test_pages_of_one_template_that_say_different_things_are_no_copies(a, b):
    assert different_facts(np.array([[0, 1], [1, 0]]), [Passage(a), Passage(b)]).tolist() == [True, True]


@pytest.mark.parametrize(
    "a, b",
    [
        (ADVICE, ADVICE),
        (ADVICE, ADVICE.replace("Acute bronchitis\n", "What you should know about coughs\n")),
        (ADVICE, ADVICE.replace("Acute bronchitis\n", "")),
        (ADVICE, ADVICE + FOOT),
        (ADVICE, "Home > Conditions A-Z > Article\n" + ADVICE),
        (ADVICE, ADVICE.replace("mostly", "usually").replace("nearly all", "most")),
        (ADVICE, ADVICE.replace("three weeks", "3 weeks")),
        (SYRUP.format("止咳橘红丸", "丸剂，6g/丸。"), SYRUP.format("止咳橘红丸说明书", "丸剂，6g/丸。")),
        (SYRUP.format("止咳橘红丸", "丸剂，6g/丸。"), SYRUP.format("常见问题解答", "丸剂，6g/丸。")),
        (DOSE.format(20, 250), DOSE.format(20, 250).replace("饭后", "餐后")),
    ],
)
def test_changed_titles_boilerplate_and_scattered_words_leave_copies_copies(a, b):
    assert different_facts(np.array([[0, 1], [1, 0]]), [Passage(a), Passage(b)]).tolist() == [False, False]


def test_the_title_of_the_document_counts_where_the_passage_has_none():
    text = "The outlook depends on how far {0} has spread. Ask the doctor which treatments for {0} are open to you and why."
    passages = [Passage(text.format(name), name) for name in ("colon cancer", "lymphoma")]
    assert different_facts(np.array([[0, 1]]), passages).tolist() == [True]
    assert different_facts(np.zeros((0, 2), np.int64), []).tolist() == []


def test_a_threshold_is_reached_exactly_and_sizes_that_cannot_reach_it_are_left_out():
    # Jaccard indices with the first set: 8 / 10, 7 / 10, 2 / 10.
    rows = [np.arange(10), np.arange(8), np.arange(7), np.array([0, 1])]
    sets = HashedRows(np.concatenate(rows).astype(np.uint64), np.cumsum([0, *map(len, rows)]))
    pairs = np.array([[0, 1], [0, 2], [0, 3]])
    assert similar_pairs(pairs, sets, 0.8).tolist() == [[0, 1]]
    assert similar_pairs(pairs, sets, 0.2).tolist() == pairs.tolist()
    assert similar_pairs(pairs[:0], sets, 0.8).shape == (0, 2)
