"""A text in, the same text with personal data masked and the number of masks by kind out.

Masked: mobile and landline numbers, identity-card numbers whose check digit is right, e-mail addresses, chat account names.
"""

import re
from collections import Counter
from collections.abc import Callable

MASKS = {"phone": "[phone]", "identity_card": "[identity card]", "email": "[email]", "chat_account": "[chat account]"}

_WORTH_A_LOOK = re.compile(r"\d[\d\s()（）-]{5,}\d|@|＠|微信|QQ|WeChat|wechat|qq")
_EMAIL = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}[@＠](?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,18}", re.ASCII)
_IDENTITY_CARD = re.compile(
    r"(?<![\w.])[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\w.]?\d)", re.ASCII
)
_CHAT = re.compile(
    r"((?:微信|QQ|qq|WeChat|wechat|企鹅)(?:账号|帐号|号码|号|群)?\s*(?:[:：]|为|是|加)?\s*)(?=[\w-]*\d)([A-Za-z0-9_-]{5,20})(?![\w-])",
    re.ASCII,
)
_PHONE = re.compile(
    r"(?<![\w.,-])(?:(?:\+|00)86[ -]?)?1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4})(?![\w]|[.,]\d)"
    r"|(?<![\w.,-])(?:[(（]0\d{2,3}[)）]\s?|0\d{2,3}[- ])[2-9]\d{6,7}(?:-\d{1,5})?(?![\w]|[.,]\d)"
    r"|(?<![\w.,-])[48]00-?\d{3}-?\d{4}(?![\w]|[.,]\d)"
    r"|(?<![\w.,-])(?:\+?1[ -])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}(?![\w]|[.,]\d)"
    r"|(?<![\w.])\+\d{1,3}[ -]\d{2,4}(?:[ -]\d{2,4}){2,3}(?!\w)",
    re.ASCII,
)

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK_DIGITS = "10X98765432"


def mask_personal_data(text: str) -> tuple[str, Counter[str]]:
    """Masks personal data; the counter has an entry per kind that was found."""
    counts: Counter[str] = Counter()
    if not _WORTH_A_LOOK.search(text):
        return text, counts

    def masked(kind: str, keep: Callable[[re.Match[str]], bool] = lambda match: True) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            if not keep(match):
                return match[0]
            counts[kind] += 1
            return (match[1] if kind == "chat_account" else "") + MASKS[kind]

        return replace

    text = _EMAIL.sub(masked("email"), text)
    text = _IDENTITY_CARD.sub(masked("identity_card", lambda match: has_valid_check_digit(match[0])), text)
    text = _CHAT.sub(masked("chat_account"), text)
    text = _PHONE.sub(masked("phone"), text)
    return text, counts


def has_valid_check_digit(number: str) -> bool:
    """Whether an 18-character identity-card number ends in its check digit (GB 11643-1999, ISO 7064 MOD 11-2)."""
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS, strict=True))
    return _CHECK_DIGITS[total % 11] == number[17].upper()
