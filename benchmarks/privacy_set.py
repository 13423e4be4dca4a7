"""Labelled texts for measuring redaction: what identifies, among things that only look like it.

Nothing here is shared with the detectors: values are put together from parts, check digits are searched for by trying,
and no expression of lmlab is used. A text is made of segments, plain ones and labelled ones, so that its spans are known.
"""

from __future__ import annotations

import hashlib
import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

Draw = random.Random
LETTERS = string.ascii_letters + string.digits
SYLLABLES = "ka ro mi ten dal vor shi lu pe gra nor bel tu zan fi".split()  # noqa: SIM905
LINES = (
    "The delivery was late again and nobody at the desk could say why.",
    "We moved the meeting to the second floor because of the noise.",
    "A short walk along the river takes about forty minutes.",
    "Please read the notes before you open the second part.",
    "The engine stops when the pressure falls below the mark.",
)


@dataclass
class Labelled:
    """A text and its spans (start, end, kind)."""

    text: str = ""
    spans: list[tuple[int, int, str]] = field(default_factory=list)

    def plain(self, text: str) -> Labelled:
        self.text += text
        return self

    def mark(self, value: str, kind: str) -> Labelled:
        self.spans.append((len(self.text), len(self.text) + len(value), kind))
        return self.plain(value)


def digits(draw: Draw, n: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(n))


def word(draw: Draw) -> str:
    return "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(2, 3)))


def _email(draw: Draw) -> str:
    user = draw.choice(
        [word(draw), f"{word(draw)}.{word(draw)}", f"{word(draw)}{digits(draw, 2)}", f"{word(draw)}+{word(draw)}"]
    )
    return f"{user}@{word(draw)}{draw.choice(['', '-' + word(draw)])}.{draw.choice(['com', 'org', 'co.uk', 'de', 'io', 'edu'])}"


def _ipv4(draw: Draw) -> str:
    return ".".join(
        str(n) for n in (draw.randint(11, 126), draw.randint(0, 255), draw.randint(10, 255), draw.randint(1, 254))
    )


def _ipv6(draw: Draw) -> str:
    groups = [f"{draw.randrange(1, 65536):x}" for _ in range(6)]
    return draw.choice([
        f"2a02:{groups[0]}::{groups[1]}", "2600:" + ":".join([*groups, "1"]), f"fe80::{groups[0]}:{groups[1]}:{groups[2]}",
    ])  # fmt: skip


def _key(draw: Draw) -> str:
    body = lambda n, letters=LETTERS: "".join(draw.choice(letters) for _ in range(n))  # noqa: E731
    return draw.choice([
        "ghp_" + body(36), "AKIA" + body(16, string.ascii_uppercase + string.digits), "sk_live_" + body(24),
        "glpat-" + body(20), "hf_" + body(34, string.ascii_letters),
    ])  # fmt: skip


def _secret(draw: Draw) -> str:
    return "".join(draw.choice(LETTERS) for _ in range(22)) + "7a"


def _check_digit(body: str) -> str:
    """The last digit of a card, found by adding up, not by the formula that the detector uses."""
    for last in string.digits:
        number = body + last
        total = 0
        for at in range(len(number)):
            value = int(number[len(number) - 1 - at])
            if at % 2 == 1:
                value = sum(map(int, str(value * 2)))
            total += value
        if total % 10 == 0:
            return number
    raise AssertionError


def _card(draw: Draw) -> str:
    start, length = draw.choice([("4", 16), ("51", 16), ("55", 16), ("37", 15), ("6011", 16)])
    number = _check_digit(start + digits(draw, length - 1 - len(start)))
    if draw.random() < 0.4:
        return number
    cuts = (4, 10) if length == 15 else (4, 8, 12)
    parts, last = [], 0
    for cut in (*cuts, length):
        parts.append(number[last:cut])
        last = cut
    return draw.choice([" ", "-"]).join(parts)


def _iban(draw: Draw) -> str:
    country, length = draw.choice([("DE", 22), ("NL", 18), ("GB", 22), ("FR", 27), ("CH", 21)])
    body = ("ABNA" if country in ("NL", "GB") else "") + digits(draw, length)
    body = body[: length - 4]
    for check in range(2, 99):  # tried out: the one whose remainder is right
        number = f"{country}{check:02d}{body}"
        turned = "".join(
            str(string.digits.find(c)) if c.isdigit() else str(ord(c) - 55) for c in number[4:] + number[:4]
        )
        if int(turned) % 97 == 1:
            break
    return " ".join(number[i : i + 4] for i in range(0, length, 4)) if draw.random() < 0.5 else number


AREAS = "212 415 312 617 206 512 303 404 713 305".split()  # noqa: SIM905


def _phone(draw: Draw) -> str:
    area, end = draw.choice(AREAS), digits(draw, 4)
    middle = draw.choice("23456789") + draw.choice("023456789") + draw.choice(string.digits)
    return draw.choice([
        f"({area}) {middle}-{end}", f"{area}-{middle}-{end}", f"+1 {area} {middle} {end}", f"{area}.{middle}.{end}",
        f"+44 20 7{digits(draw, 3)} {digits(draw, 4)}", f"+49 30 {draw.randint(2, 8)}{digits(draw, 6)}",
    ])  # fmt: skip


def _person(draw: Draw) -> str:
    return f"{word(draw).title()} {word(draw).title()}"


def _street(draw: Draw) -> str:
    kind = draw.choice(["Street", "Road", "Avenue", "Lane", "Gardens", "Mews"])
    return f"{draw.randint(1, 999)} {word(draw).title()} {kind}"


def _run_together(draw: Draw) -> str:
    return "".join(c for c in _phone(draw) if c not in "-() ")


Form = tuple[str, Callable[[Draw], str], tuple[str, ...], tuple[str, ...]]
POSITIVES: tuple[Form, ...] = (
    (
        "email",
        _email,
        ("Write to ", "From: ", "contact ", "cc ", "<a href='mailto:", "("),
        (" please.", ">", ", thanks", ") "),
    ),
    ("email", lambda draw: f"{word(draw)} at {word(draw)} dot org", ("mail ",), (" if you must",)),
    ("ip_address", _ipv4, ("login from ", "connected to ", "host ", "deny "), (":22", " at noon", "/24", ".")),
    ("ip_address", _ipv6, ("route via ",), (" is up",)),
    ("key", _key, ("export TOKEN=", "key ", '"', "use "), ('"', " now", "\n")),
    ("key", _secret, ('password = "', '"api_key": "', 'client_secret="'), ('"',)),
    ("key", _secret, ("\nAWS_SECRET=", "\nexport DB_PASSWORD=", "\nSLACK_TOKEN="), ("\n",)),
    ("key", lambda draw: "pw" + digits(draw, 3) + word(draw), ("psql postgres://admin:",), ("@db07:5432/x",)),
    ("key", lambda draw: word(draw) + digits(draw, 3), ("\nlogin: admin\npassword: ",), ("\n",)),
    ("card", _card, ("card ", "Visa ", "paid with ", "number: "), (" exp 09/27", ".", ",")),
    ("account", _iban, ("IBAN ", "transfer to ", "account: "), (".", " today", "\n")),
    (
        "phone",
        _phone,
        ("Call ", "my number is ", "Tel: ", "reach the office on ", "", "text "),
        (".", " after six", "\n"),
    ),
    ("phone", _run_together, ("", "ring ", "phone "), (" or write",)),
    ("name", _person, ("Dr. ", "Mrs ", "my name is ", "\nName: ", "we met ", "thanks to "), (" yesterday", ".", ",")),
    ("address", _street, ("lives at ", "send it to ", ""), (", second door",)),
)
"""kind, how a value is made, what may stand before it, what behind. Some are beyond any detector of patterns."""


def _negatives(draw: Draw) -> list[str]:
    hexes = hashlib.sha256(digits(draw, 9).encode()).hexdigest()
    version = f"{draw.randint(1, 9)}.{draw.randint(0, 30)}.{draw.randint(0, 99)}"
    wrong = _check_digit("4" + digits(draw, 14))
    clock = f"{draw.randint(10, 23)}:{draw.randint(10, 59)}:{draw.randint(10, 59)}"
    thousands = ",".join(digits(draw, 3) for _ in range(3))
    return [
        f"version {version}.{draw.randint(0, 9)} came out",
        f"pip install {word(draw)}=={version}.{draw.randint(0, 20)}",
        f"v{version}.{draw.randint(1, 9)}-rc1",
        "section " + ".".join(str(draw.randint(1, 9)) for _ in range(4)) + " of the manual",
        f"commit {hexes[:40]}", f"md5 {hexes[:32]}", f"sha256:{hexes}",
        f"id {uuid.UUID(int=draw.getrandbits(128))}",
        f"order {draw.choice(AREAS)}-{digits(draw, 3)}-{digits(draw, 4)} was shipped",
        f"ISBN {draw.choice(['978-0-', '978-3-'])}{digits(draw, 3)}-{digits(draw, 5)}-{digits(draw, 1)}",
        f"serial number {digits(draw, 10)}", f"ticket #{digits(draw, 7)}",
        f"on {draw.randint(1990, 2030)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d} at {clock}",
        f"x = 0.{digits(draw, 16)}", f"pi is about 3.{digits(draw, 15)}", f"{thousands} people",
        f"timestamp {draw.randint(1_500_000_000, 1_799_999_999)}", f"population 1{digits(draw, 8)}",
        f"card number {wrong[:-1]}{(int(wrong[-1]) + 1) % 10} was refused",
        f"trace {draw.randint(1, 3)}{digits(draw, 15)}", f"DE{digits(draw, 2)} is a road",
        f"\n@{word(draw)}\ndef {word(draw)}(): ...", f"{word(draw)}@2x.png", f"a @ b and {word(draw)} @ {word(draw)}",
        f"git clone ssh://git@{word(draw)}.org/x", "bind 127.0.0.1 and 0.0.0.0, mask 255.255.255.0",
        f"rows[{draw.randint(1, 9)}::2] and std::{word(draw)}::{word(draw)}", f"mac 00:1a:{hexes[:2]}:{hexes[2:4]}:4d:5e",
        'password = "please-change-this-one"', f'token = "{word(draw)}_of_{word(draw)}"', "https://user:password@localhost/",
        f"lat {draw.randint(10, 80)}.{digits(draw, 6)}, lon -{draw.randint(10, 80)}.{digits(draw, 6)}",
        f"scores {digits(draw, 2)}-{digits(draw, 2)}, {digits(draw, 2)}-{digits(draw, 2)}",
        f"pages {draw.randint(100, 400)}-{draw.randint(401, 900)}", f"RFC {digits(draw, 4)} and ISO {digits(draw, 4)}-1",
        f"arXiv:{digits(draw, 4)}.{digits(draw, 5)}", f"doi:10.{digits(draw, 4)}/{word(draw)}.{digits(draw, 6)}",
        f"0x{hexes[:16]}", f"{digits(draw, 5)}-{digits(draw, 4)}",
    ]  # fmt: skip


def generate(n: int, seed: int = 0) -> list[Labelled]:
    """`n` texts of some ordinary lines, up to two labelled values and two look-alikes each."""
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        pieces: list[Form | str] = [*draw.sample(POSITIVES, draw.randint(0, 2)), *draw.sample(_negatives(draw), 2)]
        draw.shuffle(pieces)
        labelled = Labelled().plain(draw.choice(LINES))
        for piece in pieces:
            labelled.plain(draw.choice(["\n", " ", "\n\n"]))
            if isinstance(piece, str):
                labelled.plain(piece)
            else:
                kind, make, before, after = piece
                labelled.plain(draw.choice(before)).mark(make(draw), kind).plain(draw.choice(after))
            labelled.plain(draw.choice([" ", "\n"])).plain(draw.choice(LINES))
        found.append(labelled)
    return found
