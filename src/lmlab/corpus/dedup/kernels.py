"""The hot loops of deduplication, over the word arrays of `corpus.kernels.words`. Slow twins: `tests/corpus/twins.py`.

`mix64` comes from another file; numba's cache watches this one only, so `mix64` must never change its answers.
"""

# ruff: noqa: PLR0912 (kernels: one loop over the bytes, positional arguments only)
from __future__ import annotations

import numpy as np

from lmlab.corpus.compiled import kernel
from lmlab.corpus.kernels import mix64

LINE, PARAGRAPH, SENTENCE = 0, 1, 2


@kernel
def signatures(words, spaceless, at, size, characters, multipliers, increments):
    """MinHash signatures, uint32 [documents, hashes], of the set of shingles of each document's words [at[d]:at[d+1]].

    A shingle is `size` words, or `characters` characters where it begins with one of a script without spaces. The k-th
    hash is the least of (a_k x + b_k) mod 2^64 over shingles x, with a_k odd (multiply-shift, Dietzfelbinger et al.
    1997), then mixed to 32 bits: only equality is asked of it. A text too short for a shingle is one.
    """
    n_docs, n_hashes = len(at) - 1, len(multipliers)
    out = np.zeros((n_docs, n_hashes), np.uint32)
    least = np.zeros(n_hashes, np.uint64)
    for d in range(n_docs):
        least[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        some = False
        begin, end = at[d], at[d + 1]
        for i in range(begin, end + 1):  # the last turn is for a text without a shingle
            first = i
            if i == end:
                if some:
                    break
                first, width = begin, end - begin
            else:
                width = characters if spaceless[i] else size
                if i + width > end:
                    continue
            some = True
            x = np.uint64(0)
            for k in range(width):
                x = mix64(x * np.uint64(31) + words[first + k])
            for k in range(n_hashes):
                h = multipliers[k] * x + increments[k]
                least[k] = min(least[k], h)
        for k in range(n_hashes):
            out[d, k] = np.uint32(mix64(least[k]) >> np.uint64(32))
    return out


@kernel
def windows(units, at, size):
    """Hashes of all `size` units in a row, by Karp and Rabin's rolling polynomial mod 2^64 (1987), mixed: (hashes
    uint64, index of the first unit int64, where each document's windows begin int64 [documents + 1]).
    """
    base = np.uint64(0x9E3779B97F4A7C15)
    power = np.uint64(1)
    for _ in range(size - 1):
        power *= base
    n_docs = len(at) - 1
    where = np.zeros(n_docs + 1, np.int64)
    for d in range(n_docs):
        where[d + 1] = where[d] + max(0, at[d + 1] - at[d] - size + 1)
    hashes, firsts = np.empty(where[n_docs], np.uint64), np.empty(where[n_docs], np.int64)
    for d in range(n_docs):
        rolling = np.uint64(0)
        for i in range(at[d], at[d + 1]):
            if i - at[d] >= size:
                rolling -= units[i - size] * power
            rolling = rolling * base + units[i]
            if i - at[d] >= size - 1:
                w = where[d] + i - at[d] - size + 1
                hashes[w], firsts[w] = mix64(rolling), i - size + 1
    return hashes, firsts, where


@kernel
def leftmost_least(keys, at, width):
    """For each `width` keys in a row within a document, the index of the leftmost least one (int64), documents after
    one another: winnowing (Schleimer et al. 2003). What stands in the window alone decides, not what is around it.
    """
    n_docs = len(at) - 1
    total = np.int64(0)
    for d in range(n_docs):
        total += max(0, at[d + 1] - at[d] - width + 1)
    out = np.empty(total, np.int64)
    w = 0
    for d in range(n_docs):
        least = np.int64(-1)
        for i in range(at[d], at[d + 1] - width + 1):
            if least < i:  # the last least one has left the window
                least = i
                for j in range(i + 1, i + width):
                    if keys[j] < keys[least]:
                        least = j
            elif keys[i + width - 1] < keys[least]:
                least = i + width - 1
            out[w] = least
            w += 1
    return out


@kernel
def units(data, offsets, words, starts, at, kind):
    """Lines, paragraphs or sentences with at least one word, hashed by their words: (hashes uint64, first bytes int64,
    end bytes int64, words int64, where each document's units begin int64 [documents + 1]).

    A paragraph ends at an empty line. A sentence ends at a line end; at . ! ? and closing quotes or brackets before
    white space; and at U+3002, U+FF01, U+FF1F. The end includes what separates a unit from the next.
    """
    n_docs = len(offsets) - 1
    most = len(words)
    hashes, sizes = np.empty(most, np.uint64), np.empty(most, np.int64)
    firsts, lasts = np.empty(most, np.int64), np.empty(most, np.int64)
    where = np.zeros(n_docs + 1, np.int64)
    n = 0
    for d in range(n_docs):
        end = offsets[d + 1]
        w, i, begin = at[d], offsets[d], offsets[d]
        while i < end:
            c = data[i]
            i += 1
            ends = i == end
            if kind == PARAGRAPH:
                if c == 10:
                    j = i
                    while j < end and (data[j] == 32 or data[j] == 9):
                        j += 1
                    ends = ends or (j < end and data[j] == 10)
            elif c == 10:
                ends = True
            elif kind == SENTENCE:
                if c in (46, 33, 63):
                    j = i
                    while j < end and data[j] in (34, 39, 41, 93):
                        j += 1
                    if j == end or data[j] == 32 or data[j] == 9 or data[j] == 10:
                        i, ends = j, True
                elif i + 1 < end and (
                    (c == 0xE3 and data[i] == 0x80 and data[i + 1] == 0x82)
                    or (c == 0xEF and data[i] == 0xBC and (data[i + 1] == 0x81 or data[i + 1] == 0x9F))
                ):
                    i, ends = i + 2, True
            if not ends:
                continue
            while i < end and (data[i] == 10 or (kind == SENTENCE and (data[i] == 32 or data[i] == 9))):
                i += 1
            h, first = np.uint64(0), w
            while w < at[d + 1] and starts[w] < i:
                h = mix64(h * np.uint64(31) + words[w])
                w += 1
            if w > first:
                hashes[n], firsts[n], lasts[n], sizes[n] = h, begin, i, w - first
                n += 1
            begin = i
        where[d + 1] = n
    return hashes[:n], firsts[:n], lasts[:n], sizes[:n], where


@kernel
def link(keys, members, rows, signs, parent, begin, threshold, window, first, second):
    """Join members of equal key whose signatures agree; returns how many edges were written to `first`, `second`.

    keys, members: [n], sorted by key and, in it, by rank. rows: [n] the row of `signs` of each. Positions from `begin`
    on are compared, each with up to `window` before it that it is not joined with yet. parent: union-find over members.
    """
    edges = 0
    bucket = 0
    n_hashes = signs.shape[1]
    for i in range(len(keys)):
        if keys[i] != keys[bucket]:
            bucket = i
        if i < begin:
            continue
        for j in range(max(bucket, i - window), i):
            a, b = members[i], members[j]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a == b:
                continue
            equal = 0
            for k in range(n_hashes):
                equal += signs[rows[i], k] == signs[rows[j], k]
            if equal >= threshold * n_hashes:
                parent[max(a, b)] = min(a, b)
                first[edges], second[edges] = members[i], members[j]
                edges += 1
    return edges


@kernel
def union(parent, first, second):
    """Union-find in place: join first[i] and second[i]. The least member is always the root."""
    for i in range(len(first)):
        a, b = first[i], second[i]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        parent[max(a, b)] = min(a, b)
