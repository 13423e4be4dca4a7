"""The hot loops over the bytes of Arrow string columns: signals of quality, and words.

Two notions of a word are used. For signals (Gopher's rules) a word is what stands between white space. For shingles and
n-grams it is a run of ASCII letters and digits, lower-cased, or of bytes above 127; all else separates, and so does East
Asian punctuation, so that layout and punctuation do not hide a copy. In both, a character of a script written without
spaces (kana, CJK ideographs U+3040-9FFF, Thai) is a word by itself. `tests/corpus/twins.py` holds the slow twins.
"""

# ruff: noqa: PLR0912, PLR0915 (kernels: one loop over the bytes, positional arguments only)
from __future__ import annotations

import numpy as np

from lmlab.corpus.compiled import kernel


@kernel
def mix64(x):
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def alone(data, i, end):
    """Is the character at byte i one of a script without spaces? (Every such character takes three bytes.)"""
    if i + 2 >= end:
        return False
    first, second = data[i], data[i + 1]
    if first == 0xE3:
        return second >= 0x81
    return 0xE4 <= first <= 0xE9 or (first == 0xE0 and 0xB8 <= second <= 0xB9)


@kernel
def wide_mark(data, i, end):
    """Does a mark of East Asian punctuation begin at byte i: U+3000-3004, 3008-303F, or of the full-width forms?"""
    if i + 2 >= end:
        return False
    first, second, third = data[i], data[i + 1], data[i + 2]
    if first == 0xE3:
        return second == 0x80 and not 0x85 <= third <= 0x87
    if first != 0xEF:
        return False
    if second == 0xBC:
        return 0x81 <= third <= 0x8F or 0x9A <= third <= 0xA0 or third >= 0xBB
    return second == 0xBD and (third == 0x80 or 0x9B <= third <= 0xA5)


@kernel
def hash_bytes(data, start, end):
    """64-bit hash of data[start:end], never 0."""
    h = np.uint64(0xCBF29CE484222325)
    for i in range(start, end):
        h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    h = mix64(h)
    return h if h != np.uint64(0) else np.uint64(1)


@kernel
def chars_in(data, start, end):
    """Characters in UTF-8 bytes: all but the continuation bytes."""
    count = 0
    for i in range(start, end):
        count += (data[i] & 0xC0) != 0x80
    return count


@kernel
def _ellipsis(data, i, end):
    """Do three dots or the ellipsis sign stand at byte i?"""
    if i + 2 >= end:
        return False
    a, b, c = data[i], data[i + 1], data[i + 2]
    return (a == 46 and b == 46 and c == 46) or (a == 0xE2 and b == 0x80 and c == 0xA6)


@kernel
def _bullet(data, i, end):
    """Does a bullet stand at byte i: - * or one of U+2022, U+2023, U+25CF?"""
    if data[i] == 45 or data[i] == 42:
        return True
    if i + 2 >= end or data[i] != 0xE2:
        return False
    return (data[i + 1] == 0x80 and 0xA2 <= data[i + 2] <= 0xA3) or (data[i + 1] == 0x97 and data[i + 2] == 0x8F)


@kernel
def _slot(table, mask, h):
    """Where h stands in an open-addressing table, or the empty place where it belongs."""
    i = np.int64(h & np.uint64(mask))
    while table[i] != np.uint64(0) and table[i] != h:
        i = (i + 1) & mask
    return i


@kernel
def _white_words(data, start, end, hashes, lengths):
    """Words between white space: fills hashes and lengths; returns (words, non-symbol, alphabetic, longest)."""
    n = symbols = alphabetic = longest = 0
    i = start
    while i < end:
        c = data[i]
        if c in (32, 9, 10):
            i += 1
            continue
        j = i
        letter = number = False
        if alone(data, i, end):
            j, letter = i + 3, True
        else:
            while j < end and data[j] not in (32, 9, 10) and not alone(data, j, end):
                b = data[j]
                if b >= 128 or 65 <= b <= 90 or 97 <= b <= 122:
                    letter = True
                elif 48 <= b <= 57:
                    number = True
                j += 1
        hashes[n] = hash_bytes(data, i, j)
        lengths[n] = chars_in(data, i, j)
        longest = max(longest, lengths[n])
        alphabetic += letter
        if not (letter or number):
            symbols += 1
            lengths[n] = -lengths[n]  # marked: symbols do not count for the mean length
        n += 1
        i = j
    return n, n - symbols, alphabetic, longest


@kernel
def _repeats(hashes, lengths, n, size, table, counts, out, at):
    """Share of characters in the most frequent (size < 5) or all repeated (size >= 5) word n-grams, into out[at]."""
    total = 0
    for i in range(n):
        total += abs(lengths[i])
    if n < size or total == 0:
        return
    capacity = 8
    while capacity < 2 * n:
        capacity *= 2
    table[:capacity] = np.uint64(0)
    counts[:capacity] = 0
    best = repeated = 0
    i = 0
    while i + size <= n:
        h = np.uint64(0)
        span = 0
        for k in range(size):
            h = mix64(h * np.uint64(31) + hashes[i + k])
            span += abs(lengths[i + k])
        if h == np.uint64(0):
            h = np.uint64(1)
        slot = _slot(table, capacity - 1, h)
        seen = table[slot] == h
        table[slot] = h
        counts[slot] += 1
        if size < 5:
            if counts[slot] > 1:
                best = max(best, counts[slot] * span)
            i += 1
        elif seen:
            repeated += span
            i += size
        else:
            i += 1
    # Overlapping counts can exceed the text ("a a a a" holds "a a" three times): a share stops at 1.
    out[at] = min(1.0, (best if size < 5 else repeated) / total)


@kernel
def _line_signals(data, start, end, table, out):
    """Signals of lines and paragraphs, into their places of `out`; `table` is scratch."""
    capacity = 8
    newlines = 0
    for i in range(start, end):
        newlines += data[i] == 10
    while capacity < 2 * (newlines + 1):
        capacity *= 2
    lines = chars = bullets = ellipses = twice = twice_chars = longest = literals = 0
    for turn in range(2):  # 0: lines; 1: paragraphs
        table[:capacity] = np.uint64(0)
        paragraphs = again = again_chars = block_chars = 0
        block = np.uint64(0)
        i = start
        while i <= end:
            j = i
            while j < end and data[j] != 10:
                j += 1
            a, b = i, j
            while a < b and (data[a] == 32 or data[a] == 9):
                a += 1
            while b > a and (data[b - 1] == 32 or data[b - 1] == 9):
                b -= 1
            h = hash_bytes(data, a, b)
            n = chars_in(data, a, b)
            if turn == 0:
                longest = max(longest, chars_in(data, i, j))
                if n:
                    lines += 1
                    chars += n
                    bullets += _bullet(data, a, b)
                    literals += data[a] == 34 or data[a] == 39 or 48 <= data[a] <= 57
                    ellipses += b - a >= 3 and _ellipsis(data, b - 3, b)
                    slot = _slot(table, capacity - 1, h)
                    if table[slot] == h:
                        twice += 1
                        twice_chars += n
                    table[slot] = h
            else:
                if n:
                    block = mix64(block * np.uint64(31) + h)
                    block_chars += n
                if block_chars and (n == 0 or j >= end):
                    if block == np.uint64(0):
                        block = np.uint64(1)
                    paragraphs += 1
                    slot = _slot(table, capacity - 1, block)
                    if table[slot] == block:
                        again += 1
                        again_chars += block_chars
                    table[slot] = block
                    block = np.uint64(0)
                    block_chars = 0
            i = j + 1
        if turn == 1 and paragraphs:
            out[10] = again / paragraphs
            out[11] = again_chars / chars
    if lines:
        out[4], out[5] = bullets / lines, ellipses / lines
        out[8], out[9] = twice / lines, twice_chars / chars
        out[21], out[22], out[23], out[26] = lines, longest, chars / lines, literals / lines


@kernel
def signals(data, offsets, stop_hashes):
    """Signals of quality, float32 [documents, 27], columns as in `steps.rules.SIGNALS`.

    `stop_hashes`: hash_bytes of the stop words.
    """
    n_docs = len(offsets) - 1
    out = np.zeros((n_docs, 27), np.float32)
    largest = 8
    for d in range(n_docs):
        largest = max(largest, offsets[d + 1] - offsets[d])
    capacity = 16
    while capacity < 2 * (largest + 1):
        capacity *= 2
    hashes, lengths = np.zeros(largest + 1, np.uint64), np.zeros(largest + 1, np.int64)
    table, counts = np.zeros(capacity, np.uint64), np.zeros(capacity, np.int64)
    for d in range(n_docs):
        start, end = offsets[d], offsets[d + 1]
        row = out[d]
        n, proper, alphabetic, longest = _white_words(data, start, end, hashes, lengths)
        sharps = ellipses = useful = characters = 0
        i = start
        while i < end:
            c = data[i]
            characters += (c & 0xC0) != 0x80
            useful += 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c >= 0xC0
            sharps += c == 35
            if _ellipsis(data, i, end):
                ellipses += 1
                characters += 2 if c == 46 else 0
                i += 3
            else:
                i += 1
        if characters:
            row[24] = useful / characters
        if n:
            letters = 0
            found = 0
            for k in range(len(stop_hashes)):
                for w in range(n):
                    if hashes[w] == stop_hashes[k]:
                        found += 1
                        break
            for w in range(n):
                if lengths[w] > 0:
                    letters += lengths[w]
            row[0] = proper
            row[1] = letters / proper if proper else 0.0
            row[2], row[3], row[6], row[7], row[25] = sharps / n, ellipses / n, alphabetic / n, found, longest
            for size in range(2, 11):
                _repeats(hashes, lengths, n, size, table, counts, row, 10 + size)
        _line_signals(data, start, end, table, row)
    return out


@kernel
def _plain_words(data, start, end, hashes, starts, ends):
    """Lower-cased words of letters and digits: fills their hashes and byte spans, returns how many."""
    n = 0
    i = start
    while i < end:
        h = np.uint64(0xCBF29CE484222325)
        j = i
        if alone(data, i, end):
            while j < i + 3:
                h = (h ^ np.uint64(data[j])) * np.uint64(0x100000001B3)
                j += 1
        else:
            while j < end:
                b = data[j]
                if 65 <= b <= 90:
                    b += 32
                elif b < 128:
                    if not (48 <= b <= 57 or 97 <= b <= 122):
                        break
                elif b >= 0xE0 and (alone(data, j, end) or wide_mark(data, j, end)):
                    break
                h = (h ^ np.uint64(b)) * np.uint64(0x100000001B3)
                j += 1
        if j == i:
            i += 3 if data[i] >= 128 else 1
            continue
        hashes[n], starts[n], ends[n] = mix64(h), i, j
        n += 1
        i = j
    return n


@kernel
def words(data, offsets):
    """The plain words of all documents: (hashes uint64, first bytes int64, end bytes int64, whether it is one character
    of a script without spaces uint8, where each document's words begin int64 [documents + 1]); bytes as in `data`.
    """
    n_docs = len(offsets) - 1
    most = np.int64(0)
    for d in range(n_docs):
        most += (offsets[d + 1] - offsets[d]) // 2 + 1
    hashes, starts, ends = np.empty(most, np.uint64), np.empty(most, np.int64), np.empty(most, np.int64)
    spaceless, at = np.empty(most, np.uint8), np.zeros(n_docs + 1, np.int64)
    for d in range(n_docs):
        begin = at[d]
        n = _plain_words(data, offsets[d], offsets[d + 1], hashes[begin:], starts[begin:], ends[begin:])
        for i in range(begin, begin + n):
            spaceless[i] = alone(data, starts[i], offsets[d + 1])
        at[d + 1] = begin + n
    total = at[n_docs]
    return hashes[:total], starts[:total], ends[:total], spaceless[:total], at
