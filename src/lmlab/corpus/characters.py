"""Classes of characters as one table, for the kernels that read text character by character.

A script without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) has no words that a program sees, so each of its
characters is a token. Rules are written in words, so such a token is worth less than one: `Spaceless` says how many
make a word.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from pydantic import Field

from lmlab.config import Config

SPACE, ALPHA, PUNCTUATION, BREAK, TERMINAL, MARK, SPECIAL = 1, 2, 4, 8, 16, 32, 64
SCRIPT = 256
"""The lowest of the two bits that number the script: (entry // SCRIPT) is 0, or its place in `Spaceless`, from 1."""

LIMIT = 0x32000
"""Characters from here on have no letters (tags, private use): they belong to no class."""

TERMINALS = ".?!。？！．｡؟۔।॥።։‼‽⁇⁈⁉"
"""Marks that end a sentence: the common ones of Unicode's property Sentence_Terminal."""

RANGES = (
    (1, 0x3005, 0x3007), (1, 0x3400, 0x4DBF), (1, 0x4E00, 0x9FFF), (1, 0xF900, 0xFAFF), (1, 0x20000, 0x31FFF),
    (2, 0x3040, 0x30FF), (2, 0x31F0, 0x31FF), (2, 0xFF66, 0xFF9F),
    (3, 0x0E00, 0x0EFF), (3, 0x1000, 0x109F), (3, 0x1780, 0x17FF),
)  # fmt: skip
"""(script, first, last) of the scripts without spaces: 1 Han, 2 kana, 3 Thai, Lao, Burmese, Khmer."""


class Spaceless(Config):
    """How many characters of a script without spaces say as much as one word of English.

    Measured on translated messages of programs (Chinese 320,000 words, Japanese 166,000, Thai 18,000 of the English
    original): 1.75 for Chinese, 3.06 for Japanese of which three quarters are kana, 4.26 for Thai. Marks (vowel signs,
    tones) belong to the character before them.
    """

    han: float = Field(default=1.75, ge=1)
    kana: float = Field(default=4.0, ge=1)
    southeast: float = Field(default=4.25, ge=1)
    """Thai, Lao, Khmer and Burmese; measured on Thai only."""

    def worth(self) -> np.ndarray:
        """Words that one token is worth, by its script: float64 [4]."""
        return np.array([1.0, 1 / self.han, 1 / self.kana, 1 / self.southeast])


@functools.cache
def classes() -> np.ndarray:
    """uint16 [LIMIT]: for each code point the sum of the classes above."""
    every = [chr(c) for c in range(LIMIT)]
    table = np.zeros(LIMIT, np.uint16)
    for flag, which in ((SPACE, str.isspace), (ALPHA, str.isalpha)):
        table += flag * np.fromiter(map(which, every), np.uint16, LIMIT)
    categories = np.array(list(map(unicodedata.category, every)))
    major = categories.view("U1")[::2]
    table += np.where((major == "P") | (categories == "Cc") & (table & SPACE == 0), PUNCTUATION, 0).astype(np.uint16)
    table += np.where(major == "M", MARK, 0).astype(np.uint16)
    table += np.where(np.isin(major, ("P", "S", "Z", "C")) | (categories == "Nd"), SPECIAL, 0).astype(np.uint16)
    for flag, characters in ((BREAK, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), (TERMINAL, TERMINALS)):
        table[[ord(c) for c in characters]] += flag
    table[[ord(c) for c in "$+<=>^`|~"]] += PUNCTUATION
    for script, first, last in RANGES:
        letters = np.arange(first, last + 1)
        letters = letters[(table[letters] & (PUNCTUATION | MARK)) == 0]
        table[letters] += script * SCRIPT
    return table


@functools.cache
def lower() -> np.ndarray:
    """uint32 [0x600]: the small letter of each Latin, Greek and Cyrillic code point, itself where there is none."""
    table = np.arange(0x600, dtype=np.uint32)
    for c in range(0x600):
        small = chr(c).lower()
        if len(small) == 1:
            table[c] = ord(small)
    return table
