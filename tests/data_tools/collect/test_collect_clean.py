"""Each rule drops what it is named for and leaves clean passages alone; personal data is masked, numbers of medicine are not."""

import dataclasses

import pytest

from data_tools.collect.clean import RULES, CleanRules, dropping_rule, phrases_in, remove_control_characters, repetition
from data_tools.collect.personal_data import has_valid_check_digit, mask_personal_data

CLEAN = {
    "zh": "高血压患者应当限制食盐，每日不超过5克，并坚持规律服药，定期测量血压，必要时到医院调整用药方案。",
    "en": "Patients with hypertension should limit their salt to 5 g a day, take their medicine and measure their pressure.",
}
DROPPED = {
    "too_short": ("zh", "见上文。"),
    "garble": ("zh", "锟斤拷锟斤拷这一页没有正确解码，" + CLEAN["zh"]),
    "no_prose": ("en", "12.5 | 13.8 | 99 | 0.001 | 45 | 3.3 | 2 | 8.8 | 17 | 20.1 | 4.4 | p 0.3 | n 41 | 22 | 18"),
    "wrong_script": (
        "en",
        "Пациентам с гипертонией следует ограничить потребление соли до пяти граммов в день и принимать лекарства.",
    ),
    "links": ("en", "See http://a.example.org/very/long/path?q=1 and http://b.example.org/another/path for more on that."),
    "advertising": ("zh", "祖传秘方，限时优惠，原价三百元现在只要一百元，拨打订购热线即可货到付款，无效退款，名额有限！"),
    "boilerplate": (
        "en",
        "Home | About us | Contact us | Privacy policy. Copyright © 2020, all rights reserved by the publisher here.",
    ),
    "repetition": ("zh", "多喝热水对身体有好处，请大家记住。" * 8),
}


@pytest.mark.parametrize("language", CLEAN)
def test_a_clean_passage_stays(language):
    assert dropping_rule(CLEAN[language], language, CleanRules()) is None


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_names_what_it_drops(rule):
    language, text = DROPPED[rule]
    assert dropping_rule(text, language, CleanRules()) == rule


@pytest.mark.parametrize("rule", RULES)
def test_a_disabled_rule_drops_nothing(rule):
    language, text = DROPPED[rule]
    assert dropping_rule(text, language, CleanRules(disabled=(rule,))) != rule


def test_one_phrase_of_an_advertisement_is_not_enough():
    text = CLEAN["zh"] + "这种药原价不贵。"
    assert phrases_in(text, "advertising") == ["原价"]
    assert dropping_rule(text, "zh", CleanRules()) is None
    assert dropping_rule(text, "zh", dataclasses.replace(CleanRules(), advertising_phrases=1)) == "advertising"


def test_repetition_counts_pieces_seen_before():
    assert repetition("".join(chr(0x4E00 + i) for i in range(200))) == 0
    assert repetition("甲乙丙丁戊己庚辛壬癸子丑" * 10) == pytest.approx(97 / 109)  # 109 pieces, 12 of them different


def test_control_and_zero_width_characters_go_line_breaks_stay():
    assert remove_control_characters("a\0b\u200b\n\tc\ufeff") == "ab\n\tc"


MASKED = {
    "电话13812345678，请联系": "电话[phone]，请联系",
    "手机：138 1234 5678": "手机：[phone]",
    "+86 13912345678 李医生": "[phone] 李医生",
    "座机010-62345678转1": "座机[phone]转1",
    "（0571）8765432": "[phone]",
    "400-820-1234": "[phone]",
    "Call (212) 555-0123 now": "Call [phone] now",
    "Mail to li.ming+x@hospital.example.cn.": "Mail to [email].",
    "微信号：doctor_wang88，回复": "微信号：[chat account]，回复",
    "加QQ 123456789 咨询": "加QQ [chat account] 咨询",
    "身份证11010519491231002X。": "身份证[identity card]。",
}


@pytest.mark.parametrize("text", MASKED)
def test_personal_data_is_masked_and_counted(text):
    masked, counts = mask_personal_data(text)
    assert masked == MASKED[text] and counts.total() == 1


@pytest.mark.parametrize(
    "text",
    [
        "血红蛋白 120~160 g/L，白细胞 10000000000/L",
        "注册号 ChiCTR1900012345678",
        "doi 10.1001/jama.2019.13812345678",
        "ISBN 9787117123456",
        "110105194912310021",  # as an identity-card number, but its check digit is wrong
        "2019-2020 年，1500-2000 例",
        "剂量 400-800 mg，PMID 13812345",
        "3.13812345678 倍",
    ],
)
def test_numbers_of_science_stay(text):
    assert mask_personal_data(text) == (text, {})


def test_check_digit_of_the_standards_example():
    # GB 11643-1999 gives 11010519491231002X as its example.
    assert has_valid_check_digit("11010519491231002X") and not has_valid_check_digit("110105194912310021")
