"""What redaction looks for, and what it writes instead."""

from __future__ import annotations

from typing import Literal

from lmlab.config import Config


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
    cards: bool = True
    """Payment cards: a network's prefix and length, and a right check digit."""
    accounts: bool = True
    """Bank accounts (IBAN) with right check digits; American routing numbers where a word names them."""
    phones: bool = False
    """Telephone numbers that are valid in their country; needs the extra `privacy`."""
    regions: tuple[str, ...] = ("US",)
    """Where numbers without a country's code are taken to be from, in this order (ISO codes)."""
    handles: bool = False
    """User names as @name."""
    recogniser: str | None = None
    """Names and postal addresses: `keywords` (titles, announcing words, streets), `spacy:MODEL`, or `MODULE:FUNCTION`, a
    function of the text that gives (start, end, "name" or "address")."""
    replacement: Literal["placeholder", "consistent", "random"] = "placeholder"
    """<EMAIL>; or <EMAIL_1>, one number a value inside a document; or a made-up value of the same kind."""
    seed: int = 0
    """Of the made-up values."""
