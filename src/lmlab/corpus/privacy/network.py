"""E-mail addresses, handles, and IP addresses.

Every expression starts at a boundary and bounds its repeats, so that the time is linear in the text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from lmlab.corpus.privacy.span import Span

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9](?:[A-Za-z0-9._%+\-]{0,62}[A-Za-z0-9_+\-])?"
    r"@(?=[A-Za-z0-9.\-]{4,255}(?![A-Za-z0-9\-]))(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24})"
    r"(?![A-Za-z0-9\-]|\.[A-Za-z0-9])"
)
_SPELLED = re.compile(
    r"(?<![\w.+\-])[A-Za-z0-9](?:[\w.+\-]{0,62}\w)?(?: at | ?\(at\) ?| ?\[at\] ?)[A-Za-z0-9\-]{2,40}"
    r"(?:(?: dot | ?\(dot\) ?| ?\[dot\] ?)[A-Za-z0-9\-]{2,24}){1,3}(?![\w\-])"
)
"""jane at host dot org, as people write it against collectors."""
_FILES = frozenset([
    "png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "ts", "py", "pyc", "md", "rst", "txt", "html",
    "json", "yaml", "yml", "c", "h", "so",
])  # fmt: skip
"""Endings that follow an @ in file names (icon@2x.png) and are no mail domain."""
_USER = re.compile(r"://[^\s/@]*$")
"""Before a user name in a URL, as in ssh://git@host: no mail address."""

_HANDLE = re.compile(r"(?<![\w@./:])@[A-Za-z0-9_]{3,30}(?![\w.(@])")
"""BigScience's USER: an @ and at least three characters."""

_IPV4 = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d|-\d)")
_VERSION = re.compile(
    r"(?:\bv|\bver|versions?|versionadded::|versionchanged::|deprecated::|releases?|\brev|revision|\bbuild|[=<>~!]=|sections?|"
    r"chapter|§|python|unicode|\boid)[\s:='\"(,]{0,4}$",
    re.IGNORECASE,
)
_NETWORK = re.compile(r"dns|server|\bip\b|ipv4|addr|host|gateway|subnet|ping", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3}(?![\w:])")


def emails(text: str) -> Iterator[Span]:
    """Mail addresses, also spelled out, but no file names and no users of URLs."""
    if "dot" in text:
        for match in _SPELLED.finditer(text):
            yield Span(match.start(), match.end(), "email")
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        if match[1].lower() in _FILES or _USER.search(text, max(0, match.start() - 80), match.start()):
            continue
        yield Span(match.start(), match.end(), "email")


def handles(text: str) -> Iterator[Span]:
    """User names as social sites write them, @name; decorators of Python at the start of a line are none."""
    for match in _HANDLE.finditer(text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if line.strip():
            yield Span(match.start(), match.end(), "handle")


def addresses(text: str) -> Iterator[Span]:
    """IPv6, then IPv4. Not: loopback, unspecified, broadcast and net masks, which name no machine, and versions."""
    for match in _IPV6.finditer(text):
        if _ipv6(match):
            yield Span(match.start(), match.end(), "ip_address")
    for match in _IPV4.finditer(text):
        if _ipv4(match):
            yield Span(match.start(), match.end(), "ip_address")


def _ipv4(match: re.Match[str]) -> bool:
    text = match[0]
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:  # a part above 255 or with leading zeros
        return False
    if address.is_loopback or address.is_unspecified or text.startswith("255.") or text.startswith("0."):
        return False
    if _VERSION.search(match.string[max(0, match.start() - 24) : match.start()]):
        return False
    if len(text) == 7:  # four single digits are a version far more often than an address (BigCode's rule)
        before = match.string[max(0, match.start() - 40) : match.start()].rsplit("\n", 1)[-1]
        after = match.string[match.end() : match.end() + 40].split("\n", 1)[0]
        return bool(_NETWORK.search(before + after))
    return True


def _ipv6(match: re.Match[str]) -> bool:
    """Only from ranges that hold real addresses, so that slices (a[1::2]), times and C++ names stay."""
    text = match[0]
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    first = int(address) >> 112
    mapped = address.ipv4_mapped is not None and "." in text
    allocated = (
        0x2001 <= first <= 0x3FFF or (first & 0xFE00) == 0xFC00 or (first & 0xFFC0) == 0xFE80 or first >> 8 == 0xFF
    )
    groups = [group for group in text.split(":") if group]
    indexed = match.string[match.start() - 1 : match.start()] == "[" and len(groups) < 3
    bracketed = match.string[max(0, match.start() - 4) : match.start()].endswith("//[")
    return mapped or (allocated and (bracketed or not indexed))
