"""A text in, the same text with personal data masked and the number of masks by kind out.

Masked: mobile and landline numbers, identity-card numbers whose check digit is right, e-mail addresses, chat account names.
"""

import re
from collections import Counter

MASKS = {"phone": "[phone]", "identity_card": "[identity card]", "email": "[email]", "chat_account": "[chat account]"}

_WORTH_A_LOOK = re.compile(
    # first one set of characters, in which Python's regular expressions search fastest
    r"[\d@＠微QqWwVvＱｑ](?:(?<=\d)[\d\s()（）.－-]{5,}\d|(?<=[@＠])|(?<=微)信|(?<=[QqＱｑ])[QqＱｑ]|(?<=[Ww])(?:e[Cc]hat|xid_)|(?<=[Vv])[Xx][:：])"
)
_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Character by character, so that positions stay; patterns need not know of full-width digits, letters and signs."""
_EMAIL = re.compile(r"(?:[A-Za-z0-9_][\w.+-]{0,63}|[一-鿿]{2,4})@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,18}", re.ASCII)
_IDENTITY_CARD = re.compile(
    r"(?:(?<![\w.])|(?<=ID)|(?<=id))[1-9]\d{5} ?(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r" ?\d{3}[\dXx](?![\w.]?\d)",
    re.ASCII,
)
_UNIT = (
    r"\s*(?:/[A-Za-zμ]|个(?!人)|元|例(?!如)|次(?!日)|万|亿|倍|拷贝|毫|克"
    r"|(?:copies|cells|users|bp|IU|k?Da|[kmnμu]?g|[mμu]?[lL]|[mnμu]?mol)(?![A-Za-z]))"
)
"""What makes a number a quantity."""
_CHAT = re.compile(
    # with a colon any account name; without one, only a name with a digit
    r"((?:微信|(?<![A-Za-z])(?:QQ|WeChat|VX)|企鹅)\s*(?:公众号|账号|帐号|号码|号|群|ID|account)?\s*:\s*)([A-Za-z0-9][A-Za-z0-9_-]{4,20})(?![\w-])"
    rf"|((?:微信|(?<![A-Za-z])(?:QQ|WeChat)|企鹅)(?:账号|帐号|号码|号|群)?\s*(?:为|是|加)?\s*)"
    rf"(?=[\w-]*\d)([A-Za-z0-9_-]{{5,20}})(?![\w-]|{_UNIT}|\s*[人名])"
    r"|(?<![A-Za-z0-9_])(wxid_[A-Za-z0-9]{4,20})(?![\w-])",
    re.ASCII | re.IGNORECASE,
)
_START, _END = r"(?<![\w.,-])", rf"(?!\w|[.,]\d|{_UNIT})"
_PHONE = re.compile(
    rf"{_START}(?:(?:\+|00)86[ -]?)?1[3-9]\d(?:\d{{8}}|[ -]\d{{4}}[ -]\d{{4}}){_END}"
    rf"|{_START}(?:\(0\d{{2,3}}\)\s?|0\d{{2,3}}[- ])[2-9]\d{{6,7}}(?:-\d{{1,5}})?{_END}"
    rf"|{_START}(?:0(?:10|2\d)[2-9]\d{{7}}|0[3-9]\d{{2}}[2-9]\d{{6,7}}){_END}"
    rf"|{_START}(?<!\d )0\d{{2,3}}[ -][2-9]\d{{2,3}}[ -]\d{{4}}(?! \d){_END}"
    rf"|{_START}[48]00-?\d{{3}}-?\d{{4}}{_END}"
    rf"|{_START}(?<!\d )[48]00 \d{{3}} \d{{4}}(?! \d){_END}"
    rf"|{_START}(?:\+?1[ -])?(?:\([2-9]\d{{2}}\) ?|(?![2-7]00)[2-9]\d{{2}}[-.])[2-9]\d{{2}}[-.]\d{{4}}{_END}"
    rf"|(?<![\w.])\+(?!1\d)(?=(?:[ -]?\d){{9}})\d{{1,3}}[ -]\d{{2,4}}(?:[ -]\d{{2,4}}){{2,3}}{_END}",
    re.ASCII,
)

_PATTERNS = {"email": _EMAIL, "identity_card": _IDENTITY_CARD, "chat_account": _CHAT, "phone": _PHONE}
"""In the order in which they are looked for. Of a pattern with groups, the last one that matched is what is masked."""
_NEEDED = {"email": ("@",), "chat_account": ("微信", "企鹅", "qq", "wechat", "vx", "wxid_")}
"""One of these a text must hold, in lower case, for the pattern to be tried at all."""

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK_DIGITS = "10X98765432"


def mask_personal_data(text: str) -> tuple[str, Counter[str]]:
    """Masks personal data; the counter has an entry per kind that was found."""
    counts: Counter[str] = Counter()
    if not _WORTH_A_LOOK.search(text):
        return text, counts

    half_width = text if text.isascii() else text.translate(_HALF_WIDTH)
    lowered = half_width.lower()
    for kind, pattern in _PATTERNS.items():
        if kind in _NEEDED and not any(word in lowered for word in _NEEDED[kind]):
            continue
        pieces: list[str] = []
        end = 0
        for match in pattern.finditer(half_width):
            if kind == "identity_card" and not has_valid_check_digit(match[0].replace(" ", "")):
                continue
            start = match.start(match.lastindex) if match.lastindex else match.start()
            pieces += [text[end:start], MASKS[kind]]
            end = match.end()
            counts[kind] += 1
        if pieces:
            text = "".join(pieces) + text[end:]
            half_width = text.translate(_HALF_WIDTH)
    return text, counts


def has_valid_check_digit(number: str) -> bool:
    """Whether an 18-character identity-card number ends in its check digit (GB 11643-1999, ISO 7064 MOD 11-2)."""
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS, strict=True))
    return _CHECK_DIGITS[total % 11] == number[17].upper()
