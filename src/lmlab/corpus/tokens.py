"""Text as flat arrays of tokens, and the signals that are made of them: Gopher's and FineWeb's, document by document.

A token is what stands between white space; a character of a script without spaces is a token by itself (with the marks
and the punctuation that touch it). Signals weigh a token by how much of a word it is worth (`characters.Spaceless`),
and an n-gram of words spans as many tokens as n words are. For text with spaces all weights are 1, and every signal is
the published one, to the last bit of its float64. `tests/corpus/twins.py` holds the slow twins.
"""

# ruff: noqa: PLR0912, PLR0915 (kernels: one loop over the text, positional arguments only)
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmlab.corpus.characters import ALPHA, BREAK, LIMIT, MARK, PUNCTUATION, SCRIPT, SPACE, SPECIAL, TERMINAL, classes, lower
from lmlab.corpus.compiled import kernel
from lmlab.corpus.kernels import chars_in, hash_bytes, mix64  # fixed by what they are: numba's cache cannot see a change

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
def _character(data, i):
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
            c, size = _character(data, i)
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
                c, size = (b, 1) if b < 0x80 else _character(data, i)
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


@kernel
def gopher_quality(data, found, worth, stops, which):
    """Gopher's quality signals, float64 [documents, 8], columns as in `steps.gopher.QUALITY`.

    worth: [4] words a token is worth, by script. stops: uint64 [lists, words] hashes of stop words, 0 where a list is
    shorter. which: [documents] the list of each document, or -1. What is not asked of a document is NaN.
    """
    bounds, starts, ends, hashes, lengths, kinds, counts = found
    n_docs = len(bounds) - 1
    out = np.zeros((n_docs, 8))
    present = np.zeros(stops.shape[1], np.bool_)
    for d in range(n_docs):
        row = out[d]
        all_words = proper = letters = 0.0
        characters = spoken = scripted = bullets = ellipses = 0
        present[:] = False
        for t in range(bounds[d], bounds[d + 1]):
            kind = kinds[t]
            weight = worth[kind >> 4]
            all_words += weight
            scripted += kind >= 16
            if not kind & SYMBOL:
                proper += weight
                spoken += 1
                characters += lengths[t]
            if kind & LETTER:
                letters += weight
            a, b = starts[t], ends[t]
            if kind & NEWLINE:
                bullets += data[a] == 45 or (b - a >= 3 and data[a] == 0xE2 and data[a + 1] == 0x80 and data[a + 2] == 0xA2)
            if (t + 1 == bounds[d + 1] or kinds[t + 1] & NEWLINE) and b - a >= 3:
                x, y, z = data[b - 3], data[b - 2], data[b - 1]
                ellipses += (x == 46 and y == 46 and z == 46) or (x == 0xE2 and y == 0x80 and z == 0xA6)
            if which[d] >= 0:
                for k in range(stops.shape[1]):
                    if stops[which[d], k] == hashes[t]:
                        present[k] = True
        n, lines = bounds[d + 1] - bounds[d], counts[d, 1]
        row[0] = proper
        row[1] = characters / spoken if spoken and 2 * scripted <= n else np.nan
        row[2] = counts[d, 2] / all_words if n else 0.0
        row[3] = counts[d, 3] / all_words if n else 0.0
        row[4] = bullets / lines if lines else 0.0
        row[5] = ellipses / lines if lines else 0.0
        row[6] = letters / all_words if n else 0.0
        row[7] = present.sum() if which[d] >= 0 else np.nan
    return out


@kernel
def _power_of_two(n):
    capacity = 8
    while capacity < n:
        capacity *= 2
    return capacity


@kernel
def _seen(table, mask, h):
    """Put h into an open-addressing table; was it there?"""
    i = np.int64(h & np.uint64(mask))
    while table[i] != np.uint64(0):
        if table[i] == h:
            return True
        i = (i + 1) & mask
    table[i] = h
    return False


@kernel
def _most_lines(data, offsets):
    most = 0
    for d in range(len(offsets) - 1):
        lines = 1
        for i in range(offsets[d], offsets[d + 1]):
            lines += data[i] == 10
        most = max(most, lines)
    return most


@kernel
def _pieces(data, start, end, line_table, block_table, out):
    """Lines (pieces between runs of line ends) and paragraphs (pieces between runs of two and more) of a text: fills out
    with (lines, repeated lines, characters of those, the same three of paragraphs)."""
    newlines = 0
    for i in range(start, end):
        newlines += data[i] == 10
    mask = _power_of_two(2 * (newlines + 1)) - 1
    line_table[: mask + 1] = np.uint64(0)
    block_table[: mask + 1] = np.uint64(0)
    out[:] = 0
    block, block_characters = np.uint64(0), 0
    i = start
    while True:
        h, characters = np.uint64(0xCBF29CE484222325), 0
        while i < end and data[i] != 10:
            h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
            characters += (data[i] & 0xC0) != 0x80
            i += 1
        h = mix64(h)
        run = i
        while run < end and data[run] == 10:
            run += 1
        out[0] += 1
        if _seen(line_table, mask, h if h else np.uint64(1)):
            out[1] += 1
            out[2] += characters
        block = mix64(block * np.uint64(31) + h)
        block_characters += characters
        if i == end or run - i > 1:
            out[3] += 1
            if _seen(block_table, mask, block if block else np.uint64(1)):
                out[4] += 1
                out[5] += block_characters
            block, block_characters = np.uint64(0), 0
        else:
            block_characters += 1
        if i == end:
            break
        i = run


@kernel
def gopher_repetition(data, offsets, found, worth, wanted):
    """Gopher's repetition signals, float64 [documents, 13], columns as in `steps.gopher.REPETITION`.

    wanted: bool [documents]; the others get NaN.
    """
    bounds, starts, ends, hashes, lengths, kinds, counts = found
    n_docs = len(bounds) - 1
    out = np.zeros((n_docs, 13))
    largest = 1
    for d in range(n_docs):
        largest = max(largest, bounds[d + 1] - bounds[d])
    lines = _power_of_two(2 * _most_lines(data, offsets))
    table, blocks = np.zeros(max(lines, _power_of_two(2 * largest)), np.uint64), np.zeros(lines, np.uint64)
    pieces = np.zeros(6, np.int64)
    grams = np.zeros((_power_of_two(2 * largest), 2), np.uint64)  # an n-gram's hash; its first place and how often
    prefix, sums = np.zeros(largest + 1, np.uint64), np.zeros(largest + 1, np.int64)
    places, slots = np.zeros(largest, np.int64), np.zeros(largest, np.int64)
    for d in range(n_docs):
        total = counts[d, 0]
        row = out[d]
        if not wanted[d]:
            row[:] = np.nan
        if total == 0 or not wanted[d]:
            continue
        a, n = bounds[d], bounds[d + 1] - bounds[d]
        _pieces(data, offsets[d], offsets[d + 1], table, blocks, pieces)
        row[2], row[3] = pieces[1] / pieces[0], pieces[2] / total
        if n:  # paragraphs are those of the text without white space around it
            if starts[a] > offsets[d] or ends[a + n - 1] < offsets[d + 1]:
                _pieces(data, starts[a], ends[a + n - 1], table, blocks, pieces)
            row[0], row[1] = pieces[4] / pieces[3], pieces[5] / total
        words = 0.0
        for t in range(n):
            # A polynomial in an odd base: the hash of any run of tokens is one multiplication away.
            prefix[t + 1] = prefix[t] * np.uint64(0x9E3779B97F4A7C15) + hashes[a + t]
            sums[t + 1] = sums[t] + lengths[a + t]
            words += worth[kinds[a + t] >> 4]
        # An n-gram repeats only where its beginning does: `places` keeps, from size to size, where that is so.
        many = n
        for t in range(n):
            places[t] = t
        for size in range(2, 11):
            span = int(size * n / words + 0.5) if words else size
            if n < span:
                break
            base = np.uint64(1)
            for _ in range(span):
                base = base * np.uint64(0x9E3779B97F4A7C15)
            while many and places[many - 1] + span > n:
                many -= 1
            mask = _power_of_two(2 * many) - 1
            if size < 5:
                grams[: mask + 1] = np.uint64(0)
                best, best_first = 1, 0
                for j in range(many):
                    t = places[j]
                    h = mix64(prefix[t + span] - prefix[t] * base)
                    h = h if h else np.uint64(1)
                    i = np.int64(h & np.uint64(mask))
                    while grams[i, 0] != np.uint64(0) and grams[i, 0] != h:
                        i = (i + 1) & mask
                    if grams[i, 0] == np.uint64(0):
                        grams[i, 0], grams[i, 1] = h, np.uint64(t) << np.uint64(32)
                    grams[i, 1] += np.uint64(1)
                    slots[j] = i
                    times, place = np.int64(grams[i, 1] & np.uint64(0xFFFFFFFF)), np.int64(grams[i, 1] >> np.uint64(32))
                    if times > best or (times == best and place < best_first):
                        best, best_first = times, place
                left = 0
                for j in range(many):
                    if grams[slots[j], 1] & np.uint64(0xFFFFFFFF) > np.uint64(1):
                        places[left] = places[j]
                        left += 1
                many = left
                long = sums[best_first + span] - sums[best_first]
                for t in range(best_first + 1, best_first + span):
                    long += not (kinds[a + t] >= 16 and kinds[a + t - 1] >= 16)  # the space between two words
                row[2 + size] = long * best / total
            else:
                table[: mask + 1] = np.uint64(0)
                repeated = after = 0
                for j in range(many):
                    t = places[j]
                    if t >= after:
                        h = mix64(prefix[t + span] - prefix[t] * base)
                        if _seen(table, mask, h if h else np.uint64(1)):
                            repeated += sums[t + span] - sums[t]
                            after = t + span
                row[2 + size] = repeated / total
                if repeated == 0:
                    break  # no run repeats, so no longer one does
    return out


@kernel
def fineweb(data, offsets, found, worth, table, short):
    """FineWeb's signals, float64 [documents, 5]: non-empty lines, shares of lines that end a sentence and of lines of
    at most `short` characters, repeated lines' share of the characters, line ends a word.

    Where most tokens are of a script without spaces, `short` is the characters that say as much as `short` of English,
    whose words take 5.7 characters with the space.
    """
    bounds, starts, ends, hashes, lengths, kinds, counts = found
    n_docs = len(bounds) - 1
    out = np.zeros((n_docs, 5))
    seen = np.zeros(_power_of_two(2 * _most_lines(data, offsets)), np.uint64)
    for d in range(n_docs):
        words = 0.0
        scripted = 0
        n = bounds[d + 1] - bounds[d]
        for t in range(bounds[d], bounds[d + 1]):
            words += worth[kinds[t] >> 4]
            scripted += kinds[t] >= 16
        limit = short * n / words / 5.7 if 2 * scripted > n else float(short)
        newlines = 0
        for i in range(offsets[d], offsets[d + 1]):
            newlines += data[i] == 10
        mask = _power_of_two(2 * (newlines + 1)) - 1
        seen[: mask + 1] = np.uint64(0)
        lines = punctuated = few = repeated = 0
        t = bounds[d]
        a = offsets[d]
        while a <= offsets[d + 1]:
            b = a
            while b < offsets[d + 1] and data[b] != 10:
                b += 1
            while t < bounds[d + 1] and ends[t] <= a:
                t += 1
            if t < bounds[d + 1] and starts[t] < b:
                characters = chars_in(data, a, b)
                lines += 1
                few += characters <= limit
                last = b - 1
                while data[last] & 0xC0 == 0x80:
                    last -= 1
                c, _ = _character(data, last)
                punctuated += c < LIMIT and (table[c] & TERMINAL) != 0
                if _seen(seen, mask, hash_bytes(data, a, b)):
                    repeated += characters
            a = b + 1
        out[d, 0] = lines
        if lines:
            out[d, 1], out[d, 2] = punctuated / lines, few / lines
            out[d, 3], out[d, 4] = repeated / (counts[d, 0] - newlines), newlines / words
    return out
