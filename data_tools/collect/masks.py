"""Masks for personal data: telephone numbers, identity cards, e-mails, chat accounts; with `clinical` what hospitals note.

`passages.py` asks here for every passage, title and example that is written out. A kind is a pattern and an entry in `_KINDS` or
`_CLINICAL`. Patterns must stay linear in the text: repetitions have limits (`test_collect_slow_paths.py` feeds each of them a
megabyte of its own characters). Masking is not de-identification: names in running text, for one, are not looked for.
"""

import re
from collections import Counter
from typing import NamedTuple

_WORTH_A_LOOK = re.compile(
    # 96 % of the passages of the eight medical corpora hold none of this, and the telephone numbers alone would take 15 times
    # as long. First stands one set of characters, which `re` searches for fastest; then what must be around it.
    r"[\d@＠微薇威扣抠企加+QqWwVvＱｑｗｖＷＶ](?:(?<=\d)[\d\s()（）.－-]{5,}\d|(?<=[@＠])|(?<=[微薇威])\s?信|(?<=[扣抠])[扣抠]|(?<=企)鹅|(?<=[加+])\s?[VvＶｖQqＱｑ]"
    r"|(?<=[QqＱｑ])(?:[QqＱｑ]|[群号])|(?<=[Ww])(?:e\s?[Cc]hat|EIXIN|eixin|xid_|hats[Aa]pp)|(?<=[VvWwｖｗＶＷ])(?:[XxｘＸ]|信|号))"
)
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) != "，"}
"""A full-width comma separates numbers; only the half-width one may stand inside one (1,380,013)."""
_EMAIL = re.compile(r"(?:[A-Za-z0-9_][\w.+-]{0,63}|[一-鿿]{2,4})@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,18}", re.ASCII)
_IDENTITY_CARD = re.compile(
    r"(?:(?<![\w.])|(?<=ID)|(?<=id))[1-9]\d{5} ?(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r" ?\d{3}[\dXx](?![\w.]?\d)",
    re.ASCII,
)
_UNIT = (
    r"\s{0,3}(?:/[A-Za-zμ]|个(?!人)|元|例(?!如)|次(?!日)|万|亿|倍|拷贝|毫|克"
    r"|(?:copies|cells|users|bp|IU|k?Da|[kmnμu]?g|[mμu]?[lL]|[mnμu]?mol)(?![A-Za-z]))"
)
"""What makes a number a quantity."""
_SERVICE = r"(?:[微薇威]\s?信|(?<![A-Za-z])(?:QQ|we\s?chat|weixin|[VW]X|V信|Q群|Q号)|扣扣|抠抠|企鹅)"
_OF_ACCOUNT = r"(?:公众号|账号|帐号|号码|群号|号|群|ID|account|number)"
_CHAT = re.compile(
    # with a colon or a word for it any account name; without, only one with a digit
    rf"({_SERVICE}\s{{0,3}}{_OF_ACCOUNT}?\s{{0,3}}(?:(?:是|为|is)\s{{0,3}})?:\s{{0,3}})([A-Za-z0-9][A-Za-z0-9_-]{{4,20}})(?![\w-])"
    rf"|({_SERVICE}\s{{0,3}}{_OF_ACCOUNT}?\s{{0,3}}(?:(?:为|是|加|is)\s{{0,3}})?)"
    rf"(?<!VX)(?<!vx)(?=[\w-]{{0,20}}\d)([A-Za-z0-9_-]{{5,20}})(?![\w-]|{_UNIT}|\s{{0,3}}[人名])"
    # vx abc: not VX-770, a drug, nor "VX nerve agent"
    r"|((?<![A-Za-z])(?:[VW]X|V信)\s{1,3}|(?<=[加+])\s?V\s{0,3}:?\s{0,3})([A-Za-z][A-Za-z0-9_-]{2,20})(?![\w-]|\s{1,3}[A-Za-z])"
    r"|((?<=[加+])\s?Q\s{0,3}:?\s{0,3})(\d{5,12})(?![\w-])"
    r"|(whats\s?app\s{0,3}(?:id|account|number)?\s{0,3}:\s{0,3})(@?[A-Za-z0-9+][A-Za-z0-9_.+-]{4,24})(?![\w-])"
    r"|(?<![A-Za-z0-9_])(wxid_[A-Za-z0-9]{4,20})(?![\w-])",
    re.ASCII | re.IGNORECASE,
)
_MOBILE = r"1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4})"
_START, _END = r"(?<![\w.,-])", rf"(?!\w|[.,]\d|{_UNIT})"
_PHONE = re.compile(
    # 13812345678, 138 1234 5678, +86 13812345678, and lists of them: 13812345678,13912345678
    rf"(?:{_START}|(?<=\d{{10}},))(?:(?:\+|00)86[ -]?)?{_MOBILE}(?:(?=,{_MOBILE})|{_END})"
    # 010-62345678, 010-62345678-801, (0571)8765432
    rf"|{_START}(?:\(0\d{{2,3}}\)\s?|0\d{{2,3}}[- ]|86-(?:10|2\d|[3-9]\d{{2}})-)[2-9]\d{{6,7}}(?:-\d{{1,5}})?{_END}"
    # 01062345678, 05718765432: only with a real area code, for nothing else shows that it is a number of a telephone
    rf"|{_START}(?:0(?:10|2\d)[2-9]\d{{7}}|0[3-9]\d{{2}}[2-9]\d{{6,7}}){_END}"
    # 010 6234 5678, but not within a longer row of numbers
    rf"|{_START}(?<!\d )0\d{{2,3}}[ -][2-9]\d{{2,3}}[ -]\d{{4}}(?! \d){_END}"
    # 400-820-1234, 4008201234
    rf"|{_START}[48]00-?\d{{3}}-?\d{{4}}{_END}"
    # 400 820 1234
    rf"|{_START}(?<!\d )[48]00 \d{{3}} \d{{4}}(?! \d){_END}"
    # (212) 555-0123, 415.555.2671; not 200-300-4000, which is rather a range
    rf"|{_START}(?:\+?1[ -])?(?:\([2-9]\d{{2}}\) ?|(?![2-7]00)[2-9]\d{{2}}[-.])[2-9]\d{{2}}[-.]\d{{4}}{_END}"
    # +44 20 7946 0958: at least nine digits
    rf"|(?<![\w.])\+(?!1\d)(?=(?:[ -]?\d){{9}})\d{{1,3}}[ -]\d{{2,4}}(?:[ -]\d{{2,4}}){{2,3}}{_END}",
    re.ASCII,
)


# What hospitals note (with `clinical`): in fields, hardly ever in running text

_DAY = (
    r"(?:(?:19|20)\d{2}\s?(?:年\s?\d{1,2}\s?月(?:\s?\d{1,2}\s?[日号])?|[-/.]\d{1,2}(?:[-/.]\d{1,2})?|[01]\d[0-3]\d)(?!\d)"
    r"|\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)?\d{2}(?!\d)"
    r"|(?:\d{1,2}(?:st|nd|rd|th)?[\s-])?(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?[\s-]"
    r"(?:\d{1,2}(?:st|nd|rd|th)?,?\s)?(?:19|20)\d{2})"
)
_ENGLISH_NAME = r"[A-Z][A-Za-z'’.-]{0,20}(?:,?\s[A-Z][A-Za-z'’.-]{0,20})"
_NAME = re.compile(
    # 姓名：张三, and in forms 姓名　张三
    r"((?:姓\s{0,4}名\s{1,4}(?![:：]|性别|年龄|出生|民族|婚姻|职业|籍贯|电话|科室|床号|诊断|住院|门诊|病历|身份|单位|住址|地址|联系|编号|日期)"
    r"|(?:姓\s{0,4}名|患者名|联系人|(?:患者|病人|家属|联系人|监护人|产妇|医师|医生)(?:姓名|签名|签字)"
    r"|(?:主治|主管|责任|经治)(?:医师|医生|护士))\s{0,3}[:：]\s{0,3}))"
    r"([一-鿿]{2,4}(?:·[一-鿿]{1,8})?|[A-Za-z][A-Za-z'’.-]{0,20}(?:\s[A-Z][A-Za-z'’.-]{0,20}){0,3})(?![一-鿿·])"
    # Patient name: John Smith; of "Name:" alone at least two words, for "Name: Aspirin" is a drug's
    r"|(\b(?:Patient(?:['’]s)?\s?name|Pt\.?\s?name|Name of patient|Next of kin|Attending(?:\sphysician)?"
    r"|(?:Full )?[Nn]ame(?=\s{0,3}[:：]\s{0,3}[A-Z][a-z]{1,20}\s[A-Z]))\s{0,3}[:：]\s{0,3})"
    rf"((?:(?:Mr|Mrs|Ms|Dr)\.?\s)?{_ENGLISH_NAME}{{0,3}})"
    # Patient: John Smith, but not what a patient says: "Patient: Hello Doctor"
    r"|(\bPatient\s{0,3}[:：]\s{0,3})(?!(?:Hello|Hi|Hey|Dear|Doctor|Dr|Good|Thank|Thanks|Yes|No|What|My|Well|Please|Ok|Okay)\b)"
    rf"((?:(?:Mr|Mrs|Ms)\.?\s)?{_ENGLISH_NAME}{{1,3}})(?=\s{{0,2}}(?:$|[\n,;|(（，；]))",
    re.MULTILINE,
)
_RECORD = re.compile(
    r"((?:住院|病历|病案|门诊|就诊卡?|就诊|诊疗卡?|登记|检验|检查|标本|影像|超声|病理|医保卡?|社保卡?|床位|处方|挂号)\s?(?:号码|编号|号|ID)\s{0,3}[:：]?\s{0,3}"
    r"|\b(?:MRN|(?:Medical\s)?Record\s(?:No\.?|Number|#)|Hospital\s(?:No\.?|Number|ID)|Patient\s(?:ID|No\.?|Number)|Chart\s(?:No\.?|Number|#)"
    r"|Accession\s(?:No\.?|Number|#)|Encounter\s(?:ID|No\.?|Number)|Account\s(?:No\.?|Number|#)|NHS\s(?:No\.?|Number)|SSN)\s{0,3}(?:[:：#]|is)?\s{0,3}#?)"
    r"([A-Za-z]{0,4}[-]?\d[\dA-Za-z/ -]{1,18}[\dA-Za-z]|\d{1,3}(?![\d.]))",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"((?:出生(?:日期|年月日?|时间)?|生日|生于|(?:入院|出院|就诊|住院|手术|检查|检验|报告|采样|送检|记录|签字|随访|转入|死亡|首诊|复诊|来院|病史采集)(?:日期|时间|年月日)"
    r"|\b(?:D\.?O\.?B\.?|Date\sof\s(?:birth|visit|admission|discharge|service|surgery|procedure|death|report|exam(?:ination)?)"
    r"|(?:Birth|Visit|Admission|Discharge|Admit|Service|Report|Collection|Collected|Procedure|Surgery|Appointment)\s?date"
    r"|Born(?:\son)?|Admitted(?:\son)?|Discharged(?:\son)?|Seen\son|Presented\son))\s{0,3}[:：]?\s{0,3})"
    rf"({_DAY}(?:\s?\d{{1,2}}[:时]\d{{1,2}}(?:分|:\d{{2}})?)?)"
    # 2019年3月5日因胸痛入院
    rf"|(?<![至到~—-])({_DAY})(?!\s?[至到~—-])(?=[^，。；\n]{{0,12}}(?:入院|出院|来院|就诊|收治|收住|转入|急诊|门诊|住院|行手术))",
    re.IGNORECASE,
)
_STREET = r"(?:Street|St|Avenue|Ave|Road|Rd|Drive|Dr|Lane|Ln|Boulevard|Blvd|Court|Ct|Way|Place|Pl|Terrace|Close|Crescent|Square)"
_ADDRESS = re.compile(
    r"((?:(?:家庭|现|常|通讯|联系|户籍|户口|居住|工作单位|单位)?(?:住址|地址|住所|居住地|户口地)(?:\s{0,3}[:：]|\s)|家住|现住(?!址)|住在)\s{0,3}[:：]?\s{0,3})"
    r"((?=[^\n，。；;]{0,40}[省市区县镇乡村路街号弄巷栋幢室旗州])[一-鿿][^\n，。；;,]{3,40})"
    # 浙江省杭州市西湖区文三路18号3幢501室
    r"|((?:[一-鿿]{2,3}(?:省|自治区))?[一-鿿]{2,4}[市区县旗][一-鿿\d]{1,16}[路街道巷弄里村]\d{1,5}(?:号|弄)[一-鿿\dA-Za-z-]{0,16})"
    rf"|(\b(?:(?:Home|Mailing|Street|Current|Permanent|Postal|Residential)\s)?[Aa]ddress\s{{0,3}}[:：]\s{{0,3}})([^\n;；]{{0,30}}\d[^\n;；]{{4,80}})"
    rf"|(\b\d{{1,5}}[A-Za-z]?\s(?:[NSEW]\.?\s)?(?:[A-Z][a-z'’]{{1,20}}\s){{1,3}}{_STREET}\b\.?"
    r"(?:,?\s(?:Apt|Apartment|Suite|Unit|Flat|#)\.?\s?[A-Za-z\d-]{1,6})?(?:,\s[A-Z][A-Za-z]{1,20}(?:\s[A-Z][A-Za-z]{1,20})?)?"
    r"(?:,\s[A-Z]{2}(?:\s\d{5}(?:-\d{4})?)?)?)",
)


class _Kind(NamedTuple):
    """A kind of personal data: what replaces it, and how it is found.

    Of a pattern with groups, the last one that matched is masked. `needed`: a text without any of these (in lower case) is not
    searched.
    """

    mask: str
    pattern: re.Pattern[str]
    needed: tuple[str, ...] = ("",)


_SERVICES = (
    "信",
    "企鹅",
    "扣",
    "抠",
    "qq",
    "q群",
    "q号",
    "wechat",
    "we chat",
    "weixin",
    "vx",
    "wx",
    "加v",
    "+v",
    "加q",
    "+q",
    "whats",
)
_KINDS = {
    "email": _Kind("[email]", _EMAIL, ("@",)),
    "identity_card": _Kind("[identity card]", _IDENTITY_CARD),
    "chat_account": _Kind("[chat account]", _CHAT, _SERVICES),
    "phone": _Kind("[phone]", _PHONE),
}
"""In the order in which they are looked for: the digits of an identity card could pass for a telephone number."""
_CLINICAL = {
    "record_number": _Kind("[record number]", _RECORD),
    "address": _Kind("[address]", _ADDRESS),
    "date": _Kind("[date]", _DATE),
    "name": _Kind("[name]", _NAME),
}
"""Looked for before the others: a record number could pass for a telephone number."""

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK_DIGITS = "10X98765432"


def mask_personal_data(text: str, clinical: bool = False) -> tuple[str, Counter[str]]:
    """Masks personal data; the counter has an entry per kind that was found.

    Args:
      clinical: also names, record numbers, addresses and dates of birth and of visits, where a field or its like names them.
    """
    counts: Counter[str] = Counter()
    if clinical:
        text = _masked(text, _CLINICAL, counts)
    if _WORTH_A_LOOK.search(text):
        text = _masked(text, _KINDS, counts)
    return text, counts


def _masked(text: str, kinds: dict[str, _Kind], counts: Counter[str]) -> str:
    # Patterns need not know of full-width letters, digits and signs: they search a copy in which each of those is replaced by
    # its usual form, one for one, so that places in it are places in the text.
    half_width = text if text.isascii() else text.translate(_HALF_WIDTH)
    lowered = half_width.lower()
    for kind, (mask, pattern, needed) in kinds.items():
        if not any(word in lowered for word in needed):
            continue
        pieces: list[str] = []
        end = 0
        for match in pattern.finditer(half_width):
            if kind == "identity_card" and not has_valid_check_digit(match[0].replace(" ", "")):
                continue
            start, stop = match.span(match.lastindex or 0)
            pieces += [text[end:start], mask]
            end = stop
            counts[kind] += 1
        if pieces:
            text = "".join(pieces) + text[end:]
            half_width = text.translate(_HALF_WIDTH)
    return text


def has_valid_check_digit(number: str) -> bool:
    """Whether an 18-character identity-card number ends in its check digit (GB 11643-1999, ISO 7064 MOD 11-2)."""
    # One of eleven numbers of 18 digits passes, so most account and registration numbers stay.
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS, strict=True))
    return _CHECK_DIGITS[total % 11] == number[17].upper()
