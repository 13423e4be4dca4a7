"""Numbers that identify: payment cards and bank accounts by their check digits, telephones by a library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lmlab.corpus.privacy.span import Span
from lmlab.errors import Refused

_CARD = re.compile(r"(?<![\w.,+\-/#])\d(?:[ -]?\d){12,18}(?![\w]|[.,:/\-]\d)")
_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 5, 6)}
"""How cards print their digits: in fours; American Express and Diners Club 4-6-5 and 4-6-4."""
_NETWORKS = (
    (4, 4, (13, 16, 19)),  # Visa
    (51, 55, (16,)), (2221, 2720, (16,)),  # Mastercard
    (34, 34, (15,)), (37, 37, (15,)),  # American Express
    (300, 305, (14,)), (36, 36, (14,)), (38, 39, (14,)),  # Diners Club
    (6011, 6011, (16, 19)), (644, 659, (16, 19)),  # Discover
    (3528, 3589, (16, 19)),  # JCB
    (62, 62, (16, 17, 18, 19)),  # UnionPay
)  # fmt: skip
"""First and last prefix of a network, and the lengths of its numbers (ISO/IEC 7812; the networks' own pages)."""
_CARD_WORD = re.compile(r"card|visa|master|amex|american express|discover|credit|debit|\bcc\b|\bpan\b|payment", re.I)

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_IBAN_LENGTH = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19,
    "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
"""Characters of an account number by country (ISO 13616)."""
_ROUTING = re.compile(r"(?<![\w.\-])\d{9}(?![\w]|[.\-]\d)")
_ROUTING_WORD = re.compile(r"routing|\baba\b|\brtn\b|transit", re.IGNORECASE)

_PHONE = re.compile(r"(?<![\w.,])(?:\+|\(|\d)[\d().\-\u2010-\u2013/ \u00a0]{5,22}\d(?![\w])")
_PHONE_WORD = re.compile(
    r"phone|\btel\b|tel[.:]|\bcall|mobile|\bcell\b|\bfax|contact|whatsapp|\bsms\b|hotline|dial|number is|reach|\btext me",
    re.IGNORECASE,
)
_OTHER_NUMBER = re.compile(
    r"isbn|issn|doi|order|invoice|ticket|serial|\bid\b|\bids\b|sku|part no|case|pmid|arxiv|version|build|tracking|"
    r"account|timestamp|#|№|\$|€|£|licen[cs]e|patent|model",
    re.IGNORECASE,
)
"""What names another kind of number right before it."""


def luhn(digits: str) -> bool:
    """ISO/IEC 7812's check digit: doubled every second digit from the right, the sum of digits divides by ten."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(text: str) -> bool:
    """ISO 13616: the country's length, and the remainder 1 by 97 with the first four characters moved to the end."""
    compact = text.replace(" ", "")
    if _IBAN_LENGTH.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def routing(digits: str) -> bool:
    """The American Bankers Association's check: weights 3, 7, 1, the sum divides by ten; first two digits in use."""
    first = int(digits[:2])
    used = first <= 12 or 21 <= first <= 32 or 61 <= first <= 72 or first == 80
    return used and sum(int(d) * w for d, w in zip(digits, (3, 7, 1) * 3, strict=True)) % 10 == 0


def cards(text: str) -> Iterator[Span]:
    """Card numbers: a network's prefix and length, the check digit, and grouped as cards are or in one piece. Lengths
    that other numbers often have (13, 14, 17 to 19) must have a word of payment in the 60 characters before."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        sizes = tuple(len(part) for part in re.split(r"[ -]", match[0]))
        if len(set(digits)) < 2 or (
            len(sizes) > 1 and (sizes not in _GROUPS or len(set(re.sub(r"\d", "", match[0]))) > 1)
        ):
            continue
        fitting = any(
            low <= int(digits[: len(str(low))]) <= high and len(digits) in lengths for low, high, lengths in _NETWORKS
        )
        if not fitting or not luhn(digits):
            continue
        if len(digits) not in (15, 16) and len(sizes) == 1 and not _CARD_WORD.search(_before(match, 60)):
            continue
        yield Span(match.start(), match.end(), "card")


def accounts(text: str) -> Iterator[Span]:
    """International account numbers (IBAN), and American routing numbers where a word names them."""
    for match in _IBAN.finditer(text):
        end = match.end()
        candidate = match[0]
        wanted = _IBAN_LENGTH.get(candidate[:2])
        if wanted is not None:  # the expression may have taken a word of capitals that follows
            seen = 0
            for place, character in enumerate(candidate):
                seen += character != " "
                if seen == wanted:
                    candidate, end = candidate[: place + 1], match.start() + place + 1
                    break
        if iban(candidate) and not text[end : end + 1].isalnum():
            yield Span(match.start(), end, "account")
    for match in _ROUTING.finditer(text):
        if routing(match[0]) and _ROUTING_WORD.search(_before(match, 40)):
            yield Span(match.start(), match.end(), "account")


class Phones:
    """Telephone numbers that the `phonenumbers` library (Google's libphonenumber) takes for valid: with their country's
    code, or as one of `regions` writes them. Digits in one piece are taken only with a word that says so before them;
    with such a word, or with an area in brackets, a number that is only possible (not given out, as 555 in films) is
    enough. Where a word names another kind of number, none are.

    Raises Refused where the library is missing or a region is unknown to it.
    """

    def __init__(self, regions: Sequence[str]) -> None:
        try:
            import phonenumbers
        except ImportError:
            raise Refused("redact.phones needs the package phonenumbers: pip install 'lmlab[privacy]'") from None
        self.library = phonenumbers
        unknown = [each for each in regions if each not in phonenumbers.SUPPORTED_REGIONS]
        if unknown:
            raise Refused(f"redact.regions: {unknown[0]!r} is no region: expected ISO codes such as US, GB, DE, CN")
        self.regions = tuple(regions)

    def __call__(self, text: str) -> Iterator[Span]:
        for match in _PHONE.finditer(text):
            number = match[0].rstrip(" (-./\u00a0")
            before = _before(match, 40).rsplit("\n", 1)[-1]
            told = _PHONE_WORD.search(before)
            other = _OTHER_NUMBER.search(before)
            if other and not (told and told.start() > other.start()):
                continue
            if (number.isdigit() and not told) or re.fullmatch(r"\d+\.\d+", number):
                continue
            leniency = self.library.Leniency
            found = self._find(number, leniency.POSSIBLE if told or number[0] == "(" else leniency.VALID)
            if found is not None:
                yield Span(match.start() + found[0], match.start() + found[1], "phone")

    def _find(self, number: str, leniency: int) -> tuple[int, int] | None:
        """Where in `number` a telephone number stands, if one does."""
        for region in (None,) if number.startswith("+") else self.regions:
            for found in self.library.PhoneNumberMatcher(number, region, leniency=leniency):
                return found.start, found.end
        return None


def _before(match: re.Match[str], reach: int) -> str:
    return match.string[max(0, match.start() - reach) : match.start()]
