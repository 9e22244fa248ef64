"""Vocabularies, term density, and calibration with and without learned weights."""

import json
import lzma

import numpy as np
import pytest

from data_tools.cli import main as huatuo_data
from data_tools.collect.calibrate import Labelled, Sample, best_threshold, calibrate, features
from data_tools.collect.domain import (
    CLASSICAL,
    DEFAULT_THRESHOLDS,
    DomainModel,
    LearnedWeights,
    TermDensity,
    Vocabulary,
    is_classical,
    load_classical,
    load_model,
    load_vocabularies,
    read_vocabulary,
    save_model,
)
from data_tools.records.language import language_of, language_of_passage, other_script_share
from huatuo_jax.errors import ConfigError, DataError


def density(text, language="zh", **weights):
    return TermDensity(Vocabulary(weights)).score(text, language)


def test_density_is_the_covered_share_of_letters():
    assert density("我有高血压。", 高血压=1.0) == pytest.approx(3 / 5)
    assert density("我有高血压。", 高血压=0.5) == pytest.approx(1.5 / 5)


def test_the_longest_term_counts_once():
    assert density("原发性高血压", 高血压=1.0, 血压=1.0, 原发性高血压=1.0) == pytest.approx(1.0)


def test_english_terms_match_whole_words_and_regular_plurals():
    assert density("A rash, two rashes, a crash", "en", rash=1.0) == pytest.approx(1 / 6)
    assert density("Allergies and allergy drugs", "en", allergy=1.0, drug=1.0) == pytest.approx(3 / 4)
    assert density("Heart failures", "en", **{"heart failure": 1.0}) == pytest.approx(1.0)


def test_latin_terms_in_chinese_text_need_word_boundaries():
    assert density("检测HIV抗体", hiv=1.0) == pytest.approx(3 / 7)
    assert density("使用SHIVER算法", hiv=1.0) == 0


def test_form_makes_no_difference():
    assert density("ＨＩＶ 阳性", hiv=1.0) == density("hiv阳性", hiv=1.0)


def test_document_frequencies_make_general_words_weigh_little(tmp_path):
    (tmp_path / "v.txt").write_text("医院\t600000\n高血压\t60000\n嗜铬细胞瘤\t6\n# comment\n", encoding="utf-8")
    weights = read_vocabulary(tmp_path / "v.txt").weights
    assert weights["医院"] == 0 and 0 < weights["高血压"] < 0.2 < 0.8 < weights["嗜铬细胞瘤"] < 1


def test_weights_and_plain_terms_are_taken_as_they_are(tmp_path):
    (tmp_path / "v.txt").write_text("契约\t0.5\n被告\n", encoding="utf-8")
    assert read_vocabulary(tmp_path / "v.txt").weights == {"契约": 0.5, "被告": 1.0}


def test_terms_of_other_domains_are_taken_off_down_to_nothing():
    # 感染 is 2 letters of 6 and speaks for medicine, 饲料 2 letters and speaks half as much against it: (2 - 1) / 6.
    assert density("感染与饲料有", 感染=1.0, 饲料=-0.5) == pytest.approx(1 / 6)
    assert density("感染饲料饲料", 感染=1.0, 饲料=-1.0) == 0
    assert density("The infection of the crop", "en", infection=1.0, crop=-0.5) == pytest.approx(0.5 / 5)


def test_a_term_keeps_its_negative_weight_unless_another_vocabulary_gives_more(tmp_path):
    (tmp_path / "a.txt").write_text("饲料\t-0.5\n土壤\t-1\n感染\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("土壤\t0.2\n", encoding="utf-8")
    weights = load_vocabularies(None, [tmp_path / "a.txt", tmp_path / "b.txt"]).weights
    assert weights == {"饲料": -0.5, "土壤": 0.2, "感染": 1.0}


CLASSICAL_MEDICINE = (
    "病温者，汗出辄复热而脉躁疾，不为汗衰，狂言不能食。人所以汗出者，皆生于谷，谷生于精，今邪气交争于骨肉而得汗者。"
)
CLASSICAL_OTHERS = (
    "子曰：学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？曾子曰：吾日三省吾身，为人谋而不忠乎？"
)


@pytest.mark.parametrize(
    "text, expected",
    [
        (CLASSICAL_MEDICINE, True),
        (CLASSICAL_OTHERS, True),
        ("这是昨天的会议的记录，大家的发言都写在后面的附件里。", False),
        ("T2DM 患者 HbA1c 7.5%，BMI 26.4，服 metformin 500 mg bid。", False),
    ],
)
def test_classical_texts_are_told_by_what_the_modern_language_has(text, expected):
    assert is_classical(text) is expected


def test_classical_medicine_is_kept_where_no_modern_term_stands():
    model = DomainModel(Vocabulary({"高血压": 1.0}), DEFAULT_THRESHOLDS, load_classical("medicine"))
    kept, score = model.keeps(CLASSICAL_MEDICINE, "zh")
    assert kept and score > 0 and not model.keeps(CLASSICAL_OTHERS, "zh")[0]
    assert not DomainModel(model.vocabulary, DEFAULT_THRESHOLDS).keeps(CLASSICAL_MEDICINE, "zh")[0]
    strict = DomainModel(model.vocabulary, {**DEFAULT_THRESHOLDS, CLASSICAL: 99.0}, model.learned)
    assert not strict.keeps(CLASSICAL_MEDICINE, "zh")[0]


def test_a_domain_without_classical_weights_has_none():
    assert load_classical("law") == load_classical(None) == {}


@pytest.mark.parametrize(
    "content, message",
    [
        ("癌\n\n", "no term of two or more characters"),
        ("肺炎\tmany\n", "line 1: 'many' is no weight"),
        ("肺炎\t-3\n", "'-3' is no weight"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(tmp_path, content, message):
    (tmp_path / "v.txt").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_vocabulary(tmp_path / "v.txt")


def test_languages_and_scripts():
    assert [language_of(text) for text in ("发热三天", "Fever for days", "用 aspirin 治疗头痛", "")] == ["zh", "en", "zh", "zh"]
    assert other_script_share("Лечение 治疗 α-blocker") == pytest.approx(7 / 16, abs=0.06) and other_script_share("123") == 0


def test_the_two_rules_of_language_part_at_accented_words():
    assert (language_of("词 naïve"), language_of_passage("词 naïve")) == ("zh", "en")


def labelled_sample() -> list[Labelled]:
    law = "原告与被告签订合同后拒不履行，法院判决被告第{}次赔偿违约金。"
    sport = "主队在第{}轮比赛中以两球优势战胜客队，球迷欢呼雀跃，教练满意。"
    return [Labelled((law if i % 3 == 0 else sport).format(i), i % 3 == 0, "law" if i % 3 == 0 else "sport") for i in range(90)]


@pytest.mark.parametrize("learn", [False, True])
def test_calibration_separates_what_can_be_separated_in_any_domain(learn, tmp_path):
    model, results = calibrate(labelled_sample(), Vocabulary({"被告": 1.0, "合同": 1.0}), learn)
    assert list(results) == ["zh"] and results["zh"].f1 == 1.0 and not results["zh"].wrongly_kept
    save_model(model, tmp_path / "model.json")
    again = load_model(tmp_path / "model.json")
    assert again.fingerprint == model.fingerprint and again.thresholds["en"] == DEFAULT_THRESHOLDS["en"]
    for text, expected in (("被告没有履行合同，应当赔偿。", True), ("球迷为主队战胜客队欢呼。", False)):
        assert again.keeps(text, "zh") == model.keeps(text, "zh") and again.keeps(text, "zh")[0] is expected


@pytest.mark.parametrize(
    "language, text",
    [
        ("zh", "治疗2型糖尿病，Metformin 有效。"),
        ("en", "Treat type-2 diabetes with Metformin."),
        ("en", "Take 阿司匹林 (aspirin) with water."),
    ],
)
def test_a_learned_score_is_the_mean_weight_of_distinct_features(language, text):

    weights = {name: float(i) for i, name in enumerate(sorted(features(text + text, language)))}
    known = [weights[name] for name in features(text, language)]
    learned = LearnedWeights(language, weights, (0.5, 2.0, 3.0))
    assert learned.score(text, 0.25) == pytest.approx(0.5 + 2 * np.mean(known) + 1.5)


def test_the_best_threshold_lies_between_the_scores_it_separates():
    scores, labels = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False])
    assert best_threshold(scores, labels) == pytest.approx(0.55)


def test_labels_that_say_nothing_are_not_learned_from():
    """Cross-validation must not flatter: on shuffled labels no model is better than keeping everything."""
    source = np.random.default_rng(0)
    texts = ["".join(chr(0x4E00 + c) for c in source.integers(0, 300, 60)) for _ in range(200)]
    sample = [Labelled(text, bool(i % 2)) for i, text in enumerate(texts)]
    _, results = calibrate(sample, Vocabulary({"一丁": 1.0}), learn=True)
    assert results["zh"].precision < 0.65


def test_texts_held_out_choose_no_features():

    texts, labels = ["甲乙丙", "甲乙丁", "丙丁甲乙", "丁戊", "丙丁戊"], np.array([True, False, True, False, True])
    chosen = np.array([True, True, True, False, False])
    weights = Sample(texts, labels, np.ones(5), "zh").weights(chosen)
    alone = Sample(texts[:3], labels[:3], np.ones(3), "zh")
    assert weights[~np.isnan(weights)] == pytest.approx(alone.weights(np.ones(3, bool)))
    assert np.isnan(weights).sum() == 2  # 丙丁 and 丁戊 occur twice only with the texts held out


def test_too_small_a_sample_is_refused():
    with pytest.raises(DataError, match="at least 20 of each label"):
        calibrate(labelled_sample()[:30], Vocabulary({"被告": 1.0}), learn=False)


def test_rows_without_a_label_are_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "medical": true}\n')
    words = ["collect", "calibrate", tmp_path / "a.jsonl", "--domain", "medicine", "--out", tmp_path / "m.json"]
    assert huatuo_data([*map(str, words)]) == 1
    assert "`label` true or false; its keys are text, medical; give --text-field and --label-field" in capsys.readouterr().err


def f1_of(shared_data, tmp_path, *words):
    sample = shared_data / "extraction" / "csl_dev.jsonl.xz"
    fixed = ["collect", "calibrate", sample, "--label-field", "medical", "--group-field", "discipline", "--quiet"]
    assert huatuo_data([*map(str, [*fixed, *words, "--out", tmp_path / "m.json", "--json", tmp_path / "r.json"])]) == 0
    assert (tmp_path / "m.zh.png").stat().st_size > 5_000
    return json.loads((tmp_path / "r.json").read_text())["languages"]["zh"]["f1"]


def test_extraction_of_real_abstracts_with_a_public_vocabulary_added(shared_data, tmp_path):
    thuocl = shared_data / "vocab" / "THUOCL_medical.txt"
    assert f1_of(shared_data, tmp_path, "--domain", "medicine", "--vocabulary", thuocl) >= 0.75


def test_extraction_of_real_abstracts_with_learned_weights(shared_data, tmp_path):
    assert f1_of(shared_data, tmp_path, "--domain", "medicine", "--learn") >= 0.85


def test_medical_classics_are_kept_and_other_classical_prose_is_not(shared_data):
    """Of the shipped weights; unseen books are measured by `benchmarks.extraction`, one book left out at a time."""
    model = DomainModel(load_vocabularies("medicine", []), DEFAULT_THRESHOLDS, load_classical("medicine"))
    kept = {True: [0, 0], False: [0, 0]}
    with lzma.open(shared_data / "extraction" / "classical_dev.jsonl.xz", "rt") as file:
        for row in map(json.loads, file):
            size = len(row["text"].encode())
            kept[row["medical"]][0] += size * model.keeps(row["text"], "zh")[0]
            kept[row["medical"]][1] += size
    assert kept[True][0] >= 0.95 * kept[True][1] and kept[False][0] <= 0.03 * kept[False][1]


def test_the_defaults_keep_modern_abstracts_of_medicine(shared_data):
    model = DomainModel(load_vocabularies("medicine", []), DEFAULT_THRESHOLDS, load_classical("medicine"))
    with lzma.open(shared_data / "extraction" / "csl_dev.jsonl.xz", "rt") as file:
        rows = list(map(json.loads, file))
    kept = np.array([model.keeps(row["text"], language_of(row["text"]))[0] for row in rows])
    labels = np.array([row["medical"] for row in rows])
    assert 2 * (kept & labels).sum() / (kept.sum() + labels.sum()) >= 0.84


def test_the_medical_vocabulary_tells_real_medicine_from_documentation(shared_data, repository):
    model = DomainModel(load_vocabularies("medicine", []), DEFAULT_THRESHOLDS)
    for path in (repository / "docs").glob("t*.md"):
        assert not model.keeps(path.read_text(encoding="utf-8"), "en")[0], path
    with lzma.open(shared_data / "corpus" / "medical_encyclopedia_en.jsonl.xz", "rt") as file:
        kept = [model.keeps(json.loads(line)["text"], "en")[0] for line, _ in zip(file, range(300), strict=False)]
    assert np.mean(kept) > 0.95
