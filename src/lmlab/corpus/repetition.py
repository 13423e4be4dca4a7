"""ROOTS's signals as a kernel: repeated character and word n-grams, special characters, stop words, flagged words.

The definitions are those of the filtering code of Laurencon et al. (2303.03915, appendix). `tests/corpus/rule_twins.py`
holds the slow twin.
"""

from __future__ import annotations

import math

import numpy as np

from lmlab.corpus.characters import LIMIT, SPECIAL
from lmlab.corpus.compiled import kernel
from lmlab.corpus.kernels import mix64

SIGNALS = ("words", "character_repetition", "word_repetition", "special_characters", "stop_words", "flagged_words")


@kernel
def _frequencies(items, a, n, size, table, times):
    """Count the n-grams of items[a : a + n]: fills times[:m], returns m, the number of different ones."""
    capacity = 8
    while capacity < 2 * n:
        capacity *= 2
    table[:capacity] = np.uint64(0)
    times[:capacity] = 0
    base = np.uint64(1)
    for _ in range(size):
        base = base * np.uint64(0x9E3779B97F4A7C15)
    rolling = np.uint64(0)
    different = 0
    for t in range(n):
        rolling = rolling * np.uint64(0x9E3779B97F4A7C15) + mix64(np.uint64(items[a + t]) + np.uint64(1))
        if t >= size:
            rolling -= mix64(np.uint64(items[a + t - size]) + np.uint64(1)) * base
        if t >= size - 1:
            h = mix64(rolling)
            h = h if h else np.uint64(1)
            i = np.int64(h & np.uint64(capacity - 1))
            while table[i] != np.uint64(0) and table[i] != h:
                i = (i + 1) & (capacity - 1)
            different += table[i] == np.uint64(0)
            table[i] = h
            times[i] += 1
    m = 0
    for i in range(capacity):
        if times[i]:
            times[m] = times[i]
            m += 1
    return different


@kernel
def _among(words, h):
    """Is h in the sorted array?"""
    i = np.searchsorted(words, h)
    return i < len(words) and words[i] == h


@kernel
def roots(points, places, bounds, hashes, kinds, worth, table, sizes, stops, stop_bounds, which, flagged):
    """Signals of documents, float64 [documents, len(SIGNALS)].

    points, places: uint32 code points and [documents + 1] where each text begins. bounds, hashes, kinds: folded tokens.
    sizes: int64 [documents, 2] characters and words of an n-gram. stops, stop_bounds: the sorted stop words of each
    list, one list after the other. which: [documents] its list, or -1 (then the share is NaN). flagged: sorted hashes.
    """
    n_docs = len(bounds) - 1
    out = np.zeros((n_docs, 6))
    largest = 1
    for d in range(n_docs):
        largest = max(largest, places[d + 1] - places[d], bounds[d + 1] - bounds[d])
    capacity = 8
    while capacity < 2 * largest:
        capacity *= 2
    seen, times = np.zeros(capacity, np.uint64), np.zeros(capacity, np.int64)
    for d in range(n_docs):
        row = out[d]
        row[4] = np.nan if which[d] < 0 else 0.0
        a, n = places[d], places[d + 1] - places[d]
        if n == 0:
            continue
        special = 0
        for i in range(a, a + n):
            special += points[i] < LIMIT and (table[points[i]] & SPECIAL) != 0
        row[3] = special / n
        m = _frequencies(points, a, n, sizes[d, 0], seen, times)
        if m:
            counted = np.sort(times[:m])
            ones = np.searchsorted(counted, 2)
            top = min(int(math.sqrt(m)), m - ones)
            row[1] = counted[m - top :].sum() / counted.sum()
        a, n = bounds[d], bounds[d + 1] - bounds[d]
        words = common = bad = 0.0
        for t in range(a, a + n):
            weight = worth[kinds[t] >> 4]
            words += weight
            if which[d] >= 0:
                common += _among(stops[stop_bounds[which[d]] : stop_bounds[which[d] + 1]], hashes[t])
            bad += _among(flagged, hashes[t])
        row[0] = words
        if n:
            if which[d] >= 0:
                row[4] = common / n
            row[5] = bad / n
            m = _frequencies(hashes, a, n, sizes[d, 1], seen, times)
            if m:
                repeated = 0
                for i in range(m):
                    repeated += times[i] * (times[i] > 1)
                row[2] = repeated / times[:m].sum()
    return out
