"""Keys and secrets: tokens of known services, private key blocks, passwords in URLs, random values of telling names."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from lmlab.corpus.privacy.span import Span

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
_URL_PASSWORD = re.compile(r"(?<=://)[^\s/:@'\"<>{}%]{1,64}:([^\s/:@'\"<>{}%]{3,64})(?=@[A-Za-z0-9\[])")
_ASSIGNED = re.compile(
    r"(?:api_?-?key|secret(?:_?-?key)?|(?:access|auth|refresh)_?-?token|\btoken|passw(?:or)?d|passphrase|private_?-?key|"
    r"client_?-?secret)[A-Za-z0-9_]{0,20}[\"']?\s{0,4}[:=]\s{0,4}[\"']([^\s\"'<>{}()]{12,200})[\"']",
    re.IGNORECASE,
)
_VARIABLE = re.compile(
    r"(?m)^[ \t]*(?:export |set )?[A-Z0-9_]{0,40}(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD)[A-Z0-9_]{0,20}="
    r"([^\s\"'<>{}()$]{12,200})[ \t]*$"
)
"""A variable of an environment file or a shell."""
_PLACEHOLDER = frozenset({"password", "passwd", "pass", "pwd", "secret", "xxx", "token"})


def keys(text: str) -> Iterator[Span]:
    """Private key blocks, then tokens, passwords in URLs (the password alone), assigned values (the value alone)."""
    for pattern in (_BLOCK, _TOKENS):
        for match in pattern.finditer(text):
            yield Span(match.start(), match.end(), "key")
    for match in _URL_PASSWORD.finditer(text):
        if match[1].lower() not in _PLACEHOLDER and not match[1].isdigit():
            yield Span(match.start(1), match.end(1), "key")
    for pattern in (_ASSIGNED, _VARIABLE):
        for match in pattern.finditer(text):
            if _random(match[1]):
                yield Span(match.start(1), match.end(1), "key")


def entropy(text: str) -> float:
    """Shannon entropy of the characters, in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values()) if text else 0.0


def _random(value: str) -> bool:
    """Does it look drawn at random: letters and digits mixed, at least 3 bits a character (a guess)?"""
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and entropy(value) >= 3.0
