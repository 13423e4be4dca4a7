"""Language identification: py3langid's model (Lui and Baldwin 2012) walked by a kernel without the interpreter's lock.

The model is the library's own, out of its wheel: an automaton over bytes, whose states name features (byte n-grams), and
naive Bayes over log(1 + count) of each. Scores are divided by the square root of the text's bytes before they become
probabilities. The answers are the library's; sums are in float64, where the library's are in float32.
"""

from __future__ import annotations

import threading
import unicodedata
from typing import Any, NamedTuple

import numpy as np

from lmlab.corpus.compiled import kernel

LIMIT = 0x32000
"""Characters from here on (tags, private use) are left to Python."""
LOOK = 8
"""At least the bytes of the model's longest n-gram (6 in py3langid 0.4; a test measures them)."""
UPPER, LOWER, COMPOSES = 1, 2, 4
_PLAIN = ((0x3400, 0xA000), (0xAC00, 0xD7A4), (0x17000, 0x18D00), (0x20000, 0x2F800), (0x2FA1E, 0x32000))
"""Ranges (first, after) whose characters have no case and stand for themselves under NFC: Han, Hangul, Tangut."""
_JAMO = ((0x1161, 0x1176), (0x11A8, 0x11C3))
"""Vowels and finals of Hangul, which compose by arithmetic and not by a table."""


def characters() -> np.ndarray:
    """uint8 [LIMIT]: has a character a case, and may NFC change a text because of it?"""
    table = np.zeros(LIMIT, np.uint8)
    plain = np.zeros(LIMIT, bool)
    for first, after in _PLAIN:
        plain[first:after] = True
    for code in np.flatnonzero(~plain).tolist():
        sign = chr(code)
        if sign.isupper():
            table[code] = UPPER
        elif sign.islower() or sign.istitle():
            table[code] = LOWER
        if code < 0xC0:
            continue
        decomposed = unicodedata.decomposition(sign)
        if decomposed and decomposed[0] != "<":
            *_, last = [int(part, 16) for part in decomposed.split()]
            if unicodedata.normalize("NFC", sign) != sign:
                table[code] |= COMPOSES
            elif last < LIMIT:
                table[last] |= COMPOSES
        if unicodedata.combining(sign):
            table[code] |= COMPOSES
    for first, after in _JAMO:
        table[first:after] |= COMPOSES
    return table


class Model(NamedTuple):
    """The library's tables."""

    languages: tuple[str, ...]
    step: np.ndarray  # uint32: the next state, [rows of 256 bytes]
    states: np.ndarray  # int32 [states, 2]: its row in `step`, and the feature that ends here or -1
    weights: np.ndarray  # uint16 [features, classes]: bits of float16, log-probabilities
    prior: np.ndarray  # float64 [classes]
    same: np.ndarray  # int64 [pairs, 2]: classes of one language in two scripts
    logs: np.ndarray  # float64 [4096]: log(1 + count), in the library's float32
    characters: np.ndarray


_lock = threading.Lock()
_model: Model | None = None


def model() -> Model:
    """Loaded once a process (about half a second)."""
    global _model  # noqa: PLW0603
    with _lock:
        if _model is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            found: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
            _model = Model(
                tuple(found.nb_classes),
                np.asarray(found.tk_nextmove, np.uint32),
                np.stack([np.asarray(found.tk_row, np.int32), np.asarray(found.tk_output, np.int32)], axis=1),
                np.ascontiguousarray(found.nb_ptc, np.float16).view(np.uint16),
                np.asarray(found.nb_pc, np.float64),
                np.array(found._alias_pairs, np.int64).reshape(-1, 2),
                np.log1p(np.arange(4096, dtype=np.float32)).astype(np.float64),
                characters(),
            )
        return _model


@kernel
def _sample(data, start, end, most, table):
    """(the byte after the first `most` characters, whether Python must prepare them: they are all capitals or not NFC)."""
    i, count = start, 0
    upper = lower = composes = False
    while i < end and count < most:
        b = np.uint32(data[i])
        count += 1
        if b < 0x80:
            upper |= 65 <= b <= 90
            lower |= 97 <= b <= 122
            i += 1
            continue
        if b < 0xE0:
            c = ((b & np.uint32(31)) << np.uint32(6)) | np.uint32(data[i + 1] & 63)
            i += 2
        elif b < 0xF0:
            c = ((b & np.uint32(15)) << np.uint32(12)) | (np.uint32(data[i + 1] & 63) << np.uint32(6))
            c |= np.uint32(data[i + 2] & 63)
            i += 3
        else:
            c = ((b & np.uint32(7)) << np.uint32(18)) | (np.uint32(data[i + 1] & 63) << np.uint32(12))
            c |= (np.uint32(data[i + 2] & 63) << np.uint32(6)) | np.uint32(data[i + 3] & 63)
            i += 4
        k = table[c] if c < 0x32000 else np.uint8(4)
        upper |= (k & 1) != 0
        lower |= (k & 2) != 0
        composes |= (k & 4) != 0
    return i, composes or (upper and not lower)


@kernel
def _samples(data, offsets, wanted, most, table):
    """Of each wanted document the byte after its sample (-1 of the others), and whether Python must prepare it."""
    n = len(offsets) - 1
    ends, hard = np.full(n, -1, np.int64), np.zeros(n, np.bool_)
    for d in range(n):
        if wanted[d]:
            ends[d], hard[d] = _sample(data, offsets[d], offsets[d + 1], most, table)
    return ends, hard


@kernel
def _count(state, states, counts, visited, distinct):
    """Count the feature that ends in a state; returns how many different ones there are. (Without a branch.)"""
    f = states[state, 1]
    if f >= 0:
        visited[distinct] = f
        distinct += counts[f] == 0
        counts[f] += 1
    return distinct


@kernel
def _walk(data, start, end, step, states, counts, visited):
    """Count the features of data[start:end]; returns how many different ones there are, the first of `visited`.

    A step waits for memory, so four walks go side by side, each through a quarter. A state is the longest n-gram that ends
    here, so a walk that begins LOOK bytes early is where it would be had it begun at the start.
    """
    distinct = np.int64(0)
    quarter = (end - start) // 4
    a = b = c = d = np.int64(0)
    i = start
    if quarter >= LOOK:
        for j in range(start + quarter - LOOK, start + quarter):
            b = np.int64(step[(np.int64(states[b, 0]) << 8) + data[j]])
            c = np.int64(step[(np.int64(states[c, 0]) << 8) + data[j + quarter]])
            d = np.int64(step[(np.int64(states[d, 0]) << 8) + data[j + 2 * quarter]])
        for j in range(start, start + quarter):
            a = np.int64(step[(np.int64(states[a, 0]) << 8) + data[j]])
            b = np.int64(step[(np.int64(states[b, 0]) << 8) + data[j + quarter]])
            c = np.int64(step[(np.int64(states[c, 0]) << 8) + data[j + 2 * quarter]])
            d = np.int64(step[(np.int64(states[d, 0]) << 8) + data[j + 3 * quarter]])
            distinct = _count(a, states, counts, visited, distinct)
            distinct = _count(b, states, counts, visited, distinct)
            distinct = _count(c, states, counts, visited, distinct)
            distinct = _count(d, states, counts, visited, distinct)
        a, i = d, start + 4 * quarter
    for j in range(i, end):
        a = np.int64(step[(np.int64(states[a, 0]) << 8) + data[j]])
        distinct = _count(a, states, counts, visited, distinct)
    return distinct


@kernel
def _score(visited, distinct, counts, weights, logs, scores, bits, floats):
    """Add each feature's weights times log(1 + count) to the scores, and set its count back."""
    for k in range(distinct):
        f = visited[k]
        n = counts[f]
        counts[f] = 0
        line = weights[f]
        for c in range(len(scores)):  # float16 to float32: the bits moved into place are the number over 2^112
            h = np.uint32(line[c])
            bits[c] = ((h & np.uint32(0x8000)) << np.uint32(16)) | ((h & np.uint32(0x7FFF)) << np.uint32(13))
        weight = (logs[n] if n < len(logs) else np.log1p(np.float64(n))) * 2.0**112
        for c in range(len(scores)):
            scores[c] += weight * np.float64(floats[c])


@kernel
def _classify(data, starts, ends, step, states, weights, prior, same, logs):
    """(class int64, probability float64) of each text data[start:end] whose end is not -1."""
    n, classes = len(starts), len(prior)
    chosen, probability = np.full(n, -1, np.int64), np.zeros(n, np.float64)
    counts, visited = np.zeros(len(weights), np.int32), np.empty(len(weights) + 1, np.int64)
    scores, bits = np.empty(classes, np.float64), np.empty(classes, np.uint32)
    floats = bits.view(np.float32)
    for d in range(n):
        if ends[d] < 0:
            continue
        distinct = _walk(data, starts[d], ends[d], step, states, counts, visited)
        scores[:] = 0.0
        if distinct:  # without any feature all are equal, whatever is usual
            scores += prior
        _score(visited, distinct, counts, weights, logs, scores, bits, floats)
        scale = 1.0 / np.sqrt(max(1, ends[d] - starts[d]))
        top, total = scores.max(), 0.0
        for c in range(classes):
            scores[c] = np.exp((scores[c] - top) * scale)
            total += scores[c]
        for k in range(len(same)):
            scores[same[k, 0]] += scores[same[k, 1]]
            scores[same[k, 1]] = 0.0
        chosen[d] = scores.argmax()
        probability[d] = scores[chosen[d]] / total
    return chosen, probability


def prepare(text: str) -> bytes:
    """What the library looks at: capitals alone are made small, and characters are composed."""
    return unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode()


def identify(
    data: np.ndarray, offsets: np.ndarray, wanted: np.ndarray, most: int = 4000
) -> tuple[np.ndarray, np.ndarray]:
    """The languages of documents of valid UTF-8 (uint8 data, int64 offsets [documents + 1]), told by the first `most`
    characters of each: (place in `model().languages`, -1 where not `wanted`; probability float64)."""
    tables = model()
    ends, hard = _samples(data, offsets, wanted, most, tables.characters)
    starts = offsets[:-1]
    if hard.any():
        rows = np.flatnonzero(hard)
        given = [prepare(data[starts[row] : ends[row]].tobytes().decode()) for row in rows]
        bounds = len(data) + np.cumsum([0, *map(len, given)])
        data = np.concatenate([data, np.frombuffer(b"".join(given), np.uint8)])
        starts = starts.copy()
        starts[rows], ends[rows] = bounds[:-1], bounds[1:]
    return _classify(data, starts, ends, *tables[1:7])


def identify_text(text: str, most: int = 4000) -> tuple[str, float]:
    """(language, probability) of one text."""
    data = np.frombuffer(text.encode(), np.uint8)
    chosen, probability = identify(data, np.array([0, len(data)], np.int64), np.ones(1, bool), most)
    return model().languages[chosen[0]], float(probability[0])
