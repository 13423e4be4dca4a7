"""What is put in place of a span: a typed placeholder, a numbered one, or a made-up value of the same kind."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Callable, Sequence
from typing import Literal

from lmlab.corpus.privacy.span import Span

Style = Literal["placeholder", "consistent", "random"]

PLACEHOLDERS = {
    "email": "EMAIL",
    "ip_address": "IP_ADDRESS",
    "key": "KEY",
    "phone": "PHONE",
    "card": "CARD",
    "account": "ACCOUNT",
    "handle": "USER",
    "name": "NAME",
    "address": "ADDRESS",
}
_FIRST = "Alex Robin Sasha Kim Charlie Jordan Noa Toni Mika Dana".split()  # noqa: SIM905
_LAST = "Example Sample Muster Placeholder Anonym Nemo Doe Roe Specimen Mustermann".split()  # noqa: SIM905


def replace(text: str, spans: Sequence[Span], style: Style, *, seed: int = 0, document: str = "") -> str:
    """The text with each span replaced; `spans` in order and none overlapping.

    `placeholder`: <EMAIL>. `consistent`: <EMAIL_1>, <EMAIL_2>, the same number for the same value inside a document, so
    that who wrote to whom can still be followed; numbers start anew in each document, so that documents cannot be joined
    by them. `random`: a made-up value, a pure function of (seed, document, value), out of ranges that are reserved for
    examples (RFC 2606, RFC 5737, RFC 3849, the 555-01 numbers) wherever there are such.
    """
    parts, at = [], 0
    numbers: dict[tuple[str, str], int] = {}
    for span in spans:
        value = text[span.start : span.end]
        parts.append(text[at : span.start])
        if style == "random":
            key = f"{seed}\0{document}\0{span.kind}\0{_same(value)}".encode()
            parts.append(_MADE_UP[span.kind](random.Random(hashlib.blake2b(key, digest_size=8).digest()), value))
        elif style == "consistent":
            mine = [n for (kind, _), n in numbers.items() if kind == span.kind]
            number = numbers.setdefault((span.kind, _same(value)), len(mine) + 1)
            parts.append(f"<{PLACEHOLDERS[span.kind]}_{number}>")
        else:
            parts.append(f"<{PLACEHOLDERS[span.kind]}>")
        at = span.end
    return "".join([*parts, text[at:]])


def _same(value: str) -> str:
    """Two ways to write one value: case, and the separators of numbers."""
    lowered = value.casefold()
    return "".join(c for c in lowered if c not in " -().\u00a0") if any(c.isdigit() for c in value) else lowered


def _digits(draw: random.Random, n: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(n))


def _email(draw: random.Random, _: str) -> str:
    user = f"{draw.choice(_FIRST)}.{draw.choice(_LAST)}{draw.randrange(100)}".lower()
    return f"{user}@example.{draw.choice(['com', 'org', 'net'])}"


def _ip(draw: random.Random, value: str) -> str:
    if ":" in value and "." not in value:
        return "2001:db8::" + ":".join(f"{draw.randrange(1, 65536):x}" for _ in range(2))
    return f"{draw.choice(['192.0.2', '198.51.100', '203.0.113'])}.{draw.randrange(1, 255)}"


def _shape(draw: random.Random, value: str) -> str:
    """Letters by letters, digits by digits, everything else as it was."""
    swaps = ((str.isdigit, string.digits), (str.isupper, string.ascii_uppercase), (str.isalpha, string.ascii_lowercase))
    return "".join(next((draw.choice(to) for is_, to in swaps if is_(c)), c) for c in value)


def _key(draw: random.Random, value: str) -> str:
    return "EXAMPLE" + _shape(draw, value[7:27]).replace("-", "x") if "-----" not in value else "EXAMPLE-PRIVATE-KEY"


def _phone(draw: random.Random, value: str) -> str:
    return (
        f"{'+1 ' if value.startswith('+') else ''}({draw.randrange(2, 10)}{_digits(draw, 2)}) 555-01{_digits(draw, 2)}"
    )


def _card(draw: random.Random, _: str) -> str:
    """Sixteen digits that start with 0, which no network uses."""
    digits = "0" + _digits(draw, 15)
    return " ".join(digits[i : i + 4] for i in range(0, 16, 4))


_MADE_UP: dict[str, Callable[[random.Random, str], str]] = {
    "email": _email,
    "ip_address": _ip,
    "key": _key,
    "phone": _phone,
    "card": _card,
    "account": lambda draw, value: "XX" + _digits(draw, max(7, len(value.replace(" ", "")) - 2)),
    "handle": lambda draw, _: f"@user{_digits(draw, 4)}",
    "name": lambda draw, _: f"{draw.choice(_FIRST)} {draw.choice(_LAST)}",
    "address": lambda draw, _: f"{draw.randrange(1, 200)} Example Street",
}
