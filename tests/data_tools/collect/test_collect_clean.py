"""Each rule drops what it is named for and leaves clean passages alone; personal data is masked, numbers of medicine are not."""

import dataclasses

import pytest

from data_tools.collect.clean import (
    RULES,
    CleanRules,
    dropping_rule,
    phrases_in,
    remove_control_characters,
    repetition,
)
from data_tools.collect.masks import has_valid_check_digit, mask_personal_data

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


GOOD = {
    "an entity of HTML": ("zh", "血清总胆固醇&gt;6.2mmol/L者，应当在医生的指导下服用他汀类药物，并定期复查肝功能。"),
    "a dosage regimen": (
        "zh",
        "成人：第1～3周0.3mg，第4～6周0.6mg，第7～15周1.0mg，2次/日；儿童：0.05mg/kg，最大量2.5mg，1次/日，10～14日为1疗程。",
    ),
    "a laboratory table": (
        "zh",
        "| 项目 | 参考值 | 单位 |\n| 白细胞 | 4.0～10.0 | ×10^9/L |\n"
        "| 红细胞 | 3.5～5.5 | ×10^12/L |\n| 血红蛋白 | 110～160 | g/L |",
    ),
    "a padded Markdown table": (
        "en",
        "| Drug           | Dose           | Route          |\n|----------------|----------------|----------------|\n"
        "| Amoxicillin    | 500 mg         | oral           |\n| Ceftriaxone    | 1 g            | IV             |",
    ),
    "variants of a gene": (
        "en",
        "c.76A>G, c.1521_1523del, p.Phe508del, c.350G>A, c.1652G>A, c.3846G>A, c.1624G>T and c.2657+5G>A were found in CFTR.",
    ),
    "drugs at one dose": (
        "en",
        "\n".join(
            f"- {drug} 5 mg tablet once daily"
            for drug in ("amlodipine", "atorvastatin", "lisinopril", "metoprolol", "warfarin", "bisoprolol")
        ),
    ),
    "words that web pages use too": (
        "en",
        "Children who read more and log in to fewer games sleep better; the table of contents of sleep research is long.",
    ),
    "a phrase within longer words": (
        "en",
        "The disease spread more slowly than feared; the skip to contention and the border now closed slowed it further.",
    ),
    "services of a hospital": (
        "zh",
        "医院为患者提供免费咨询和在线咨询服务，并公布服务热线，便于慢性病患者在家中获得用药指导和复诊提醒，提高了依从性。",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_text_stays(name):
    language, text = GOOD[name]
    assert dropping_rule(remove_control_characters(text), language, CleanRules()) is None


def test_entities_are_decoded():
    assert remove_control_characters("a&nbsp;&lt;&#8203; &amp; b&#x3E;") == "a < & b>"


def test_a_list_that_says_the_same_again_is_repetition():
    spam = "\n".join(f"{city} hotels at the very best rates of the season, all of them with breakfast" for city in "ABCDEF")
    assert dropping_rule(spam, "en", CleanRules()) == "repetition"


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


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n", "\x85", "\u2028", "\x0c"])
def test_line_ends_of_every_system_are_one(end):
    assert remove_control_characters(f"a{end}b{end}{end}c") == "a\nb\n\nc"


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
    "身份证：110105 19491231 002X": "身份证：[identity card]",
    "ID11010519491231002X": "ID[identity card]",
    "手机１３８１２３４５６７８，": "手机[phone]，",
    "电话01062345678": "电话[phone]",
    "电话010 6234 5678": "电话[phone]",
    "致电400 820 1234": "致电[phone]",
    "Call 415.555.2671": "Call [phone]",
    "微信：zhangsan": "微信：[chat account]",
    "微信公众号：jiankang2020": "微信公众号：[chat account]",
    "加我 wxid_abcdef": "加我 [chat account]",
    "WeChat ID: doctor88": "WeChat ID: [chat account]",
    "Wechat：doctor88": "Wechat：[chat account]",
    "VX：abc12345": "VX：[chat account]",
    "张三@qq.com": "[email]",
    "（全角，）１２３ 13812345678": "（全角，）１２３ [phone]",
    "院办86-10-65281234": "院办[phone]",
    "加v：abc12345": "加v：[chat account]",
    "vx abc": "vx [chat account]",
    "wx：liyisheng": "wx：[chat account]",
    "扣扣 123456789": "扣扣 [chat account]",
    "Q群：345678901": "Q群：[chat account]",
    "QQ是52013140": "QQ是[chat account]",
    "薇信号 zhongyi2020": "薇信号 [chat account]",
}


@pytest.mark.parametrize("between", ["，", ",", "、", "/", "；", " ", "\n"])
def test_every_number_of_a_list_is_masked(between):
    masked, counts = mask_personal_data(f"电话：13800138000{between}13900139000{between}13700137000。")
    assert masked == f"电话：[phone]{between}[phone]{between}[phone]。" and counts == {"phone": 3}


CLINICAL = {
    "姓名：张三丰，男": "姓名：[name]，男",
    "Patient: John Smith, 45 y": "Patient: [name], 45 y",
    "住院号：2019034567": "住院号：[record number]",
    "MRN 00482913": "MRN [record number]",
    "出生日期：1965年3月12日": "出生日期：[date]",
    "Admitted on March 5, 2019.": "Admitted on [date].",
    "住址：浙江省杭州市西湖区文三路18号": "住址：[address]",
}


@pytest.mark.parametrize("text", CLINICAL)
def test_what_hospitals_note_is_masked_on_request_only(text):
    assert mask_personal_data(text) == (text, {})
    masked, counts = mask_personal_data(text, clinical=True)
    assert masked == CLINICAL[text] and counts.total() == 1


@pytest.mark.parametrize(
    "text",
    [
        "Patient: Hello Doctor, I have had a cough for three weeks.",
        "患者：我有高血压，可以吃党参吗？",
        "2019年3月5日发布的指南；收集2012年1月至2013年12月在我科住院的患者。",
        "抗原地址区段与受体结合；Name: aspirin. First line: amoxicillin.",
        "The trial ran from March 2015 to June 2018 at 12 sites.",
        "姓名 性别 年龄 诊断",
        "姓名  年龄  住院号",
    ],
)
def test_dialogues_studies_and_drugs_are_not_taken_for_a_patients_data(text):
    assert mask_personal_data(text, clinical=True) == (text, {})


def test_marked_lines_are_masked_by_kind(repository):
    from benchmarks.masks import measure

    lines = (repository / "tests" / "support" / "personal_data.tsv").read_text("utf-8").splitlines()
    counts, faults = measure([line for line in lines if line and not line.startswith("#")])
    assert all(found >= 0.9 * marked and found >= 0.9 * (found + wrong) for found, marked, wrong in counts.values()), faults


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
        "400-800-1200 mg",
        "200-300-4000 mg/d",
        "WBC 15012345678/L",
        "13800000000个",
        "共13800000000元",
        "+10 20 30 40",
        "8001234567 bp",
        "QQ 10000 users",
        "VX-770 与 VX：无",
        "ISBN 7-117-04567-8, ISBN 0-306-40615-2, CAS 7732-18-5, NCT01234567, 国药准字Z13812345678",
    ],
)
def test_numbers_of_science_stay(text):
    assert mask_personal_data(text) == (text, {})


def test_check_digit_of_the_standards_example():
    # GB 11643-1999 gives 11010519491231002X as its example.
    assert has_valid_check_digit("11010519491231002X") and not has_valid_check_digit("110105194912310021")
