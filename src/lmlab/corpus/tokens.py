"""Text as flat arrays of tokens, which the signals of the rule sets are made of.

A token is what stands between white space; a character of a script without spaces is a token by itself (with the marks
and the punctuation that touch it). `tests/corpus/rule_twins.py` holds the slow twin.
"""

# ruff: noqa: PLR0912, PLR0915 (kernels: one loop over the text, positional arguments only)
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmlab.corpus.characters import (
    ALPHA,
    BREAK,
    LIMIT,
    MARK,
    PUNCTUATION,
    SCRIPT,
    SPACE,
    SPECIAL,
    classes,
    lower,
)
from lmlab.corpus.compiled import kernel
from lmlab.corpus.kernels import mix64  # fixed by what it is: numba's cache cannot see a change of another file

SYMBOL, LETTER, NEWLINE = 1, 2, 4
"""Bits of `Tokens.kinds`: only punctuation; has a letter; the first of its line. The script stands from bit 4 on."""


class Tokens(NamedTuple):
    """The tokens of a batch of documents. Document d has tokens bounds[d] to bounds[d + 1]."""

    bounds: np.ndarray  # int64 [documents + 1]
    starts: np.ndarray  # int64 [tokens]: first byte, in the batch
    ends: np.ndarray  # int64 [tokens]
    hashes: np.ndarray  # uint64 [tokens], never 0
    lengths: np.ndarray  # int32 [tokens], in characters
    kinds: np.ndarray  # uint8 [tokens]
    counts: np.ndarray  # int64 [documents, 4]: characters, lines, hash signs, ellipses


@kernel
def character(data, i):
    """(code point, bytes) of the character at byte i of valid UTF-8."""
    b = np.uint32(data[i])
    if b < 0x80:
        return b, 1
    if b < 0xE0:
        return ((b & np.uint32(31)) << np.uint32(6)) | np.uint32(data[i + 1] & 63), 2
    if b < 0xF0:
        high = ((b & np.uint32(15)) << np.uint32(12)) | (np.uint32(data[i + 1] & 63) << np.uint32(6))
        return high | np.uint32(data[i + 2] & 63), 3
    high = ((b & np.uint32(7)) << np.uint32(18)) | (np.uint32(data[i + 1] & 63) << np.uint32(12))
    return high | (np.uint32(data[i + 2] & 63) << np.uint32(6)) | np.uint32(data[i + 3] & 63), 4


@kernel
def _tokens(data, offsets, table, small, fold):
    n_docs = len(offsets) - 1
    most = (offsets[n_docs] - offsets[0]) // 2 + n_docs + 1  # a token of one byte has white space after it
    bounds = np.zeros(n_docs + 1, np.int64)
    starts, ends = np.empty(most, np.int64), np.empty(most, np.int64)
    hashes, lengths, kinds = np.empty(most, np.uint64), np.empty(most, np.int32), np.empty(most, np.uint8)
    counts = np.zeros((n_docs, 4), np.int64)
    n = 0
    for d in range(n_docs):
        i, end = offsets[d], offsets[d + 1]
        characters = breaks = sharps = ellipses = dots = 0
        first, returned, open_line = True, False, False
        while i < end:
            c, size = character(data, i)
            k = table[c] if c < LIMIT else np.uint16(0)
            if k & SPACE:
                characters += 1
                dots = 0
                open_line = not k & BREAK
                if k & BREAK:
                    first = True
                    breaks += not (c == 10 and returned)
                returned = c == 13
                i += size
                continue
            start, begin = i, np.uint64(0xCBF29CE484222325)
            h = good = begin
            good_length = script = 0
            any_class, every_class = np.uint16(0), np.uint16(PUNCTUATION)
            while i < end and not fold:  # the same as below for most of most texts: plain ASCII
                b = data[i]
                if b >= 0x80:
                    break
                k = table[b]
                if k & SPACE:
                    break
                h = (h ^ np.uint64(b)) * np.uint64(0x100000001B3)
                any_class |= k
                every_class &= k
                if b == 46:
                    dots += 1
                    ellipses += dots == 3
                    dots = 0 if dots == 3 else dots
                else:
                    dots = 0
                    sharps += b == 35
                i += 1
            length = i - start
            characters += length
            while i < end:
                b = np.uint32(data[i])
                c, size = (b, 1) if b < 0x80 else character(data, i)
                k = table[c] if c < LIMIT else np.uint16(0)
                if k & SPACE:
                    break
                own = k // SCRIPT
                if own or script:
                    if own:
                        if script or every_class == 0:
                            break
                        script, h, good = own, begin, begin
                    elif not k & (MARK | PUNCTUATION):
                        break
                if fold and c < 0x600:
                    c = small[c]
                if not script or own or k & MARK:
                    h = (h ^ np.uint64(c)) * np.uint64(0x100000001B3)
                    length += 1
                elif not fold:
                    length += 1
                if fold:
                    if not k & SPECIAL:
                        good, good_length = h, length
                    elif good_length == 0:
                        h, length = begin, 0
                any_class |= k
                every_class &= k
                if c == 46:
                    dots += 1
                    if dots == 3:
                        ellipses += 1
                        dots = 0
                else:
                    dots = 0
                    sharps += c == 35
                    ellipses += c == 0x2026
                i += size
                characters += 1
            open_line, returned = True, False
            if fold:
                h, length = good, good_length
                if length == 0:
                    continue
            h = mix64(h)
            starts[n], ends[n], hashes[n], lengths[n] = start, i, h if h else np.uint64(1), length
            symbol, letter = every_class != 0, (any_class & ALPHA) != 0
            kinds[n] = SYMBOL * symbol + LETTER * letter + NEWLINE * first + 16 * script
            first = False
            n += 1
        bounds[d + 1] = n
        counts[d, 0], counts[d, 1], counts[d, 2], counts[d, 3] = characters, breaks + open_line, sharps, ellipses
    return bounds, starts[:n], ends[:n], hashes[:n], lengths[:n], kinds[:n], counts


def tokens(data: np.ndarray, offsets: np.ndarray, *, fold: bool = False) -> Tokens:
    """The tokens of documents of valid UTF-8 (uint8 data, int64 offsets [documents + 1]).

    With `fold`, letters are made small before they are hashed, and symbols, digits and punctuation at both ends of a
    token do not count; a token of nothing else is left out.
    """
    return Tokens(*_tokens(data, offsets, classes(), lower(), fold))


def hashes_of(words: list[str] | tuple[str, ...], *, fold: bool = False) -> np.ndarray:
    """The hashes that `tokens` gives to words, sorted."""
    encoded = " ".join(words).encode()
    data = np.frombuffer(encoded, np.uint8)
    return np.unique(tokens(data, np.array([0, len(data)], np.int64), fold=fold).hashes)
