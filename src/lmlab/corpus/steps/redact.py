"""Redaction of what identifies or unlocks: e-mail addresses, IP addresses, keys. Each becomes a typed placeholder.

Every expression starts at a boundary and bounds its repeats, so that the time is linear in the text.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter

import pyarrow as pa

from lmlab.config import Config
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.steps.step import with_text

EMAIL, ADDRESS, KEY = "<EMAIL>", "<IP_ADDRESS>", "<KEY>"


class Redact(Config):
    """What is replaced, in both splits. Nothing is dropped by this step."""

    enabled: bool = True
    emails: bool = True
    addresses: bool = True
    """IPv4 and IPv6. Not replaced: loopback, unspecified, broadcast and net masks (they name no machine), and dotted
    numbers that are versions."""
    keys: bool = True
    """Tokens of known services, private key blocks, passwords in URLs, and high-entropy values that are assigned to
    names such as `api_key`, `secret`, `token`, `password`."""


_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9](?:[A-Za-z0-9._%+\-]{0,62}[A-Za-z0-9_+\-])?"
    r"@(?=[A-Za-z0-9.\-]{4,255}(?![A-Za-z0-9\-]))(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24})"
    r"(?![A-Za-z0-9\-]|\.[A-Za-z0-9])"
)
_FILES = frozenset([
    "png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "py", "pyc", "md", "rst", "txt", "html",
    "json", "yaml", "yml", "c", "h", "so",
])  # fmt: skip
"""Endings that follow an @ in file names (icon@2x.png) and are no mail domain."""

_IPV4 = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d|-\d)")
_VERSION = re.compile(
    r"(?:\bv|\bver|versions?|versionadded::|versionchanged::|deprecated::|releases?|\brev|revision|\bbuild|[=<>~!]=|sections?|"
    r"chapter|§|python|unicode|\boid)[\s:='\"(,]{0,4}$",
    re.IGNORECASE,
)
_NETWORK = re.compile(r"dns|server|\bip\b|ipv4|addr|host|gateway|subnet|ping", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:])")

_TOKENS = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}"  # Amazon access key
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_\-]{20,64}"
    r"|xox[abprs]-[A-Za-z0-9\-]{10,250}"  # Slack
    r"|AIza[0-9A-Za-z_\-]{35}"  # Google
    r"|[srp]k_(?:live|test)_[0-9A-Za-z]{16,250}"  # Stripe
    r"|sk-(?:proj-|ant-)?[A-Za-z0-9_\-]{20,250}"
    r"|hf_[A-Za-z]{34}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_\-]{50,250}"
    r"|eyJ[A-Za-z0-9_\-]{10,2000}\.eyJ[A-Za-z0-9_\-]{10,4000}\.[A-Za-z0-9_\-]{10,2000}"  # JSON web token
    r")(?![A-Za-z0-9_])"
)
_BLOCK = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----)[\s\S]){16,16384}"
    r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
)
_URL_PASSWORD = re.compile(r"(?<=://)([^\s/:@'\"<>{}%]{1,64}):([^\s/:@'\"<>{}%]{3,64})(?=@[A-Za-z0-9\[])")
_ASSIGNED = re.compile(
    r"(?:api_?-?key|secret(?:_?-?key)?|(?:access|auth|refresh)_?-?token|\btoken|passw(?:or)?d|passphrase|private_?-?key|"
    r"client_?-?secret)[A-Za-z0-9_]{0,20}[\"']?\s{0,4}[:=]\s{0,4}[\"']([^\s\"'<>{}()]{12,200})[\"']",
    re.IGNORECASE,
)
_GATE = (
    r"[A-Za-z0-9_+\-]@[A-Za-z0-9]|\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]{4}:[0-9A-Fa-f]{0,4}:|-----BEGIN|://[^\s/:@]{1,64}:"
    r"|AKIA|ASIA|gh[pousr]_|_pat_|glpat-|xox[abprs]-|AIza|k_live_|k_test_|sk-|hf_|npm_|pypi-|eyJ"
    r"|(?i:key|secret|token|passw|passphrase)[A-Za-z0-9_]{0,20}[\"']?\s{0,4}[:=]\s{0,4}[\"'][^\s\"'<>{}()]{12}"
)
"""What the expressions above need somewhere in the text. RE2 decides it in linear time and without the GIL."""
_USER = re.compile(r"://[^\s/@]*$")
"""Before a user name in a URL, as in ssh://git@host: no mail address."""
_PLACEHOLDER = frozenset({"password", "passwd", "pass", "pwd", "secret", "xxx", "token"})


def redact(text: str, config: Redact) -> tuple[str, int, int, int]:
    """(redacted text, e-mail addresses, IP addresses, keys replaced). Pure; doing it twice changes nothing more."""
    keys = emails = addresses = 0
    if config.keys:
        text, n = _BLOCK.subn(KEY, text)
        keys += n
        text, n = _TOKENS.subn(KEY, text)
        keys += n
        text, n = _replace(_URL_PASSWORD, text, _in_url)
        keys += n
        text, n = _replace(_ASSIGNED, text, _assigned)
        keys += n
    if config.emails and "@" in text:
        text, emails = _replace(_EMAIL, text, _email)
    if config.addresses:
        text, n = _replace(_IPV6, text, _ipv6)
        text, addresses = _replace(_IPV4, text, _ipv4)
        addresses += n
    return text, emails, addresses, keys


def _replace(pattern: re.Pattern[str], text: str, decide) -> tuple[str, int]:
    """Substitute where `decide(match)` gives a string; count those."""
    count = 0

    def substitute(match: re.Match[str]) -> str:
        nonlocal count
        chosen = decide(match)
        if chosen is None:
            return match[0]
        count += 1
        return chosen

    return pattern.sub(substitute, text), count


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values()) if text else 0.0


def _email(match: re.Match[str]) -> str | None:
    if match[1].lower() in _FILES or _USER.search(match.string, max(0, match.start() - 80), match.start()):
        return None
    return EMAIL


def _in_url(match: re.Match[str]) -> str | None:
    return None if match[2].lower() in _PLACEHOLDER or match[2].isdigit() else f"{match[1]}:{KEY}"


def _assigned(match: re.Match[str]) -> str | None:
    """Only values that look drawn at random: letters and digits mixed, at least 3 bits a character (a guess)."""
    value = match[1]
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    if not mixed or entropy(value) < 3.0 or value in (KEY, EMAIL, ADDRESS):
        return None
    start = match.start(1) - match.start()
    return match[0][:start] + KEY + match[0][start + len(value) :]


def _ipv4(match: re.Match[str]) -> str | None:
    text = match[0]
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:  # a part above 255 or with leading zeros
        return None
    if address.is_loopback or address.is_unspecified or text.startswith("255.") or text.startswith("0."):
        return None
    before = match.string[max(0, match.start() - 24) : match.start()]
    if _VERSION.search(before):
        return None
    if len(text) == 7:  # four single digits are a version far more often than an address (BigCode's rule)
        before = match.string[max(0, match.start() - 40) : match.start()].rsplit("\n", 1)[-1]
        after = match.string[match.end() : match.end() + 40].split("\n", 1)[0]
        return ADDRESS if _NETWORK.search((before + after).replace(ADDRESS, "")) else None
    return ADDRESS


def _ipv6(match: re.Match[str]) -> str | None:
    """Only from ranges that hold real addresses, so that slices (a[1::2]), times and C++ names stay."""
    text = match[0]
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return None
    first = int(address) >> 112
    mapped = address.ipv4_mapped is not None and "." in text
    allocated = (
        0x2001 <= first <= 0x3FFF or (first & 0xFE00) == 0xFC00 or (first & 0xFFC0) == 0xFE80 or first >> 8 == 0xFF
    )
    groups = [group for group in text.split(":") if group]
    indexed = match.string[match.start() - 1 : match.start()] == "[" and len(groups) < 3
    bracketed = match.string[max(0, match.start() - 4) : match.start()].endswith("//[")
    return ADDRESS if mapped or (allocated and (bracketed or not indexed)) else None


class RedactStep:
    """Adds `redacted`, a struct of counts: email, ip_address, key."""

    name = "redact"

    def __init__(self, config: Redact) -> None:
        self.config = config
        self.identity = ["redact", 1, config.model_dump()]

    def __call__(self, table: pa.Table) -> pa.Table:
        counts = [[0] * len(table) for _ in range(3)]
        text = table["text"]
        if self.config.enabled:
            chosen = pc.and_(table["keep"], pc.match_substring_regex(text, _GATE)).to_pylist()
            new = text.to_pylist()
            for row, wanted in enumerate(chosen):
                if wanted:
                    new[row], *found = redact(new[row], self.config)
                    for column, n in zip(counts, found, strict=True):
                        column[row] = n
            table = with_text(table, pa.array(new, pa.string()))
        columns = [pa.array(column, pa.int32()) for column in counts]
        return table.append_column(
            "redacted", pa.StructArray.from_arrays(columns, names=["email", "ip_address", "key"])
        )
