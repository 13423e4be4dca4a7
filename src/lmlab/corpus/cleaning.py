"""C4's cleaning as a kernel: lines are kept or removed, and the page is judged by what is left.

The rules are those of Raffel et al. (1910.10683, section 2.2) as its published builders apply them, one line at a time
in this order: a word too long, citation marks taken out, no mark at the end, too few words, "lorem ipsum" (drops the
page), "javascript", a curly bracket (drops the page), a policy phrase. `tests/corpus/rule_twins.py` holds the slow twin.
"""

# ruff: noqa: PLR0912, PLR0915, SIM110 (kernels: one loop over the text, positional arguments only)
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmlab.corpus.compiled import kernel
from lmlab.corpus.tokens import NEWLINE

SIGNALS = (
    "lorem_ipsum", "curly_bracket", "sentences", "lines", "lines_kept", "lines_long_word", "lines_no_terminal",
    "lines_few_words", "lines_javascript", "lines_policy", "citations",
)  # fmt: skip
"""Columns of `c4`, in order: two flags of the page, and counts. A page is not read beyond a flag."""


def packed(phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Phrases as (uint8 [phrases, longest], int64 [phrases] lengths in bytes)."""
    encoded = [phrase.encode() for phrase in phrases]
    out = np.zeros((len(encoded), max(map(len, encoded), default=1)), np.uint8)
    for row, phrase in zip(out, encoded, strict=True):
        row[: len(phrase)] = np.frombuffer(phrase, np.uint8)
    return out, np.array(list(map(len, encoded)), np.int64)


@kernel
def _is(data, i, end, phrase, n):
    """Do the n bytes of a phrase stand at byte i, ASCII capitals read as small letters?"""
    if i + n > end:
        return False
    for k in range(n):
        b = data[i + k]
        if 65 <= b <= 90:
            b += 32
        if b != phrase[k]:
            return False
    return True


@kernel
def _ends(data, end, marks, sizes):
    """Do the bytes before `end` close with one of the marks?"""
    for k in range(len(sizes)):
        if end >= sizes[k] and _is(data, end - sizes[k], end, marks[k], sizes[k]):
            return True
    return False


@kernel
def _space(data, i, end):
    """Bytes of the white space at byte i: 0 where there is none."""
    a = data[i]
    if a == 32 or 9 <= a <= 13 or 28 <= a <= 31:
        return 1
    if a < 0xC2 or i + 1 >= end:
        return 0
    b = data[i + 1]
    if a == 0xC2:
        return 2 if b in (0x85, 0xA0) else 0
    if a > 0xE3 or i + 2 >= end:
        return 0
    c = data[i + 2]
    if a == 0xE2 and b == 0x80:
        return 3 if 0x80 <= c <= 0x8A or c in (0xA8, 0xA9, 0xAF) else 0
    wide = (a == 0xE2 and b == 0x81 and c == 0x9F) or (a == 0xE3 and b == 0x80 and c == 0x80)
    return 3 if wide or (a == 0xE1 and b == 0x9A and c == 0x80) else 0


@kernel
def _sentences(data, end):
    """Sentences of a line: . ! or ? with white space after it ends one, and a full-width mark wherever it stands."""
    count = 1
    i = 0
    while i < end:
        a = data[i]
        after = 0
        if a in (46, 33, 63):
            after = 1 if i + 1 < end and _space(data, i + 1, end) else 0
        elif a in (0xE3, 0xEF) and i + 3 < end:
            b, c = data[i + 1], data[i + 2]
            if (a == 0xE3 and b == 0x80 and c == 0x82) or (a == 0xEF and b == 0xBC and c in (0x81, 0x9F)):
                after = 3
                while i + after + 2 < end and data[i + after] == 0xE3 and data[i + after + 1] == 0x80:
                    after += 3  # closing brackets belong to the sentence
                after = after if i + after < end else 0
        count += after > 0
        i += max(1, after)
    return count


@kernel
def _citation(data, i, end):
    """Bytes of the citation mark at byte i ([12], [], [edit] or [citation needed]), or 0."""
    if data[i] != 91:
        return 0
    j = i + 1
    while j < end and 48 <= data[j] <= 57:
        j += 1
    if j < end and data[j] == 93:
        return j + 1 - i
    if i + 6 <= end and data[i + 1] == 101 and data[i + 2] == 100 and data[i + 3] == 105 and data[i + 4] == 116:
        return 6 if data[i + 5] == 93 else 0
    return 0


@kernel
def c4(data, offsets, found, worth, longest, least, marks, wide_marks, needed, phrases, page_rules):
    """Clean pages: (uint8 data, int64 offsets, signals float64 [documents, len(SIGNALS)]).

    longest, least: characters of a word and words of a line, 0 for no rule. marks, wide_marks: `packed` marks that may
    end a line, and those that may end one whose last token is of a script without spaces; none for no rule.
    needed: `packed` "[citation needed]", or nothing where citations stay. phrases: (`packed`, int64 [phrases] 0 for
    the page, 1 for javascript, 2 for policy). page_rules: do phrases of the page, and a curly bracket, end it?
    """
    bounds, starts, ends, _, lengths, kinds, _ = found
    n_docs = len(bounds) - 1
    out = np.empty(len(data) + n_docs, np.uint8)
    places = np.zeros(n_docs + 1, np.int64)
    signals = np.zeros((n_docs, 11))
    wanted = np.zeros(256, np.bool_)
    texts, sizes, classes = phrases
    for k in range(len(sizes)):
        wanted[texts[k, 0]] = True
        if 97 <= texts[k, 0] <= 122:
            wanted[texts[k, 0] - 32] = True
    widest = 1
    for d in range(n_docs):
        widest = max(widest, offsets[d + 1] - offsets[d])
    line = np.empty(widest, np.uint8)
    hit = np.zeros(3, np.bool_)
    at = 0
    for d in range(n_docs):
        row = signals[d]
        begin = at
        t = bounds[d]
        while t < bounds[d + 1]:
            first, words, widest_word = t, 0.0, 0
            while t < bounds[d + 1] and (t == first or not kinds[t] & NEWLINE):
                words += worth[kinds[t] >> 4]
                widest_word = max(widest_word, lengths[t])
                t += 1
            row[3] += 1
            if longest and widest_word > longest:
                row[5] += 1
                continue
            n = 0
            i, stop = starts[first], ends[t - 1]
            while i < stop:
                skip = 0
                if len(needed[1]) and data[i] == 91:
                    skip = _citation(data, i, stop)
                    if skip == 0 and _is(data, i, stop, needed[0][0], needed[1][0]) and data[i + 1] >= 97:
                        skip = needed[1][0]
                if skip:
                    row[10] += 1
                    i += skip
                else:
                    line[n] = data[i]
                    n += 1
                    i += 1
            if len(marks[1]):
                ended = _ends(line, n, marks[0], marks[1])
                if not ended and kinds[t - 1] >= 16:
                    ended = _ends(line, n, wide_marks[0], wide_marks[1])
                if not ended or (n >= 3 and line[n - 1] == 46 and line[n - 2] == 46 and line[n - 3] == 46):
                    row[6] += 1
                    continue
            if words < least:
                row[7] += 1
                continue
            hit[:] = False
            curly = False
            for i in range(n):
                if wanted[line[i]]:
                    for k in range(len(sizes)):
                        if not hit[classes[k]] and _is(line, i, n, texts[k], sizes[k]):
                            hit[classes[k]] = True
                curly |= line[i] == 123
            if hit[0] and page_rules[0]:
                row[0] = 1
                break
            if hit[1]:
                row[8] += 1
                continue
            if curly and page_rules[1]:
                row[1] = 1
                break
            if hit[2]:
                row[9] += 1
                continue
            row[2] += _sentences(line, n)
            row[4] += 1
            if at > begin:
                out[at] = 10
                at += 1
            i = 0
            if at == begin:  # a citation may have left white space at the front of the page, and below at its end
                while i < n and _space(line, i, n):
                    i += _space(line, i, n)
            out[at : at + n - i] = line[i:n]
            at += n - i
        while at > begin and out[at - 1] in (32, 9, 10):
            at -= 1
        places[d + 1] = at
    return out[:at], places, signals
