"""Gopher's and FineWeb's signals as kernels over tokens.

Signals weigh a token by how much of a word it is worth (`characters.Spaceless`), and an n-gram of words spans as many
tokens as n words are. For text with spaces all weights are 1, and every signal is the published one, to the last bit of
its float64. `tests/corpus/rule_twins.py` holds the slow twins.
"""

# ruff: noqa: PLR0912, PLR0915 (kernels: one loop over the text, positional arguments only)
from __future__ import annotations

import numpy as np

from lmlab.corpus.characters import LIMIT, TERMINAL
from lmlab.corpus.compiled import kernel

# Fixed by what they are: numba's cache cannot see a change of another file.
from lmlab.corpus.kernels import chars_in, hash_bytes, mix64
from lmlab.corpus.tokens import LETTER, NEWLINE, SYMBOL, character


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
                bullets += data[a] == 45 or (
                    b - a >= 3 and data[a] == 0xE2 and data[a + 1] == 0x80 and data[a + 2] == 0xA2
                )
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
    bounds, starts, ends, _, _, kinds, counts = found
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
                c, _ = character(data, last)
                punctuated += c < LIMIT and (table[c] & TERMINAL) != 0
                if _seen(seen, mask, hash_bytes(data, a, b)):
                    repeated += characters
            a = b + 1
        out[d, 0] = lines
        if lines:
            out[d, 1], out[d, 2] = punctuated / lines, few / lines
            out[d, 3], out[d, 4] = repeated / (counts[d, 0] - newlines), newlines / words
    return out
