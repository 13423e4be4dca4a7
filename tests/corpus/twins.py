"""The slow, plain-Python twin of each kernel: what it should compute, said once more in another way."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict

from lmlab.corpus.steps.rules import SIGNALS, STOP_WORDS

ALONE = "\u0e00-\u0e7f\u3040-\u9fff"
MARKS = "\u3000-\u3004\u3008-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"


def white_words(text: str) -> list[str]:
    return re.findall(f"[{ALONE}]|[^ \t\n{ALONE}]+", text)


def plain_words(text: str) -> list[str]:
    lowered = "".join(c.lower() if c.isascii() else c for c in text)
    return re.findall(f"[{ALONE}]|(?:[a-z0-9]|[^\x00-\x7f{ALONE}{MARKS}])+", lowered)


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def signals(text: str) -> dict[str, float]:
    out = dict.fromkeys(SIGNALS, 0.0)
    words = white_words(text)
    proper = [w for w in words if any((c.isascii() and c.isalnum()) or not c.isascii() for c in w)]
    alphabetic = [w for w in words if any((c.isascii() and c.isalpha()) or not c.isascii() for c in w)]
    ellipses = text.count("...") + text.count("…")
    if words:
        out["words"] = len(proper)
        out["mean_word_length"] = sum(map(len, proper)) / len(proper) if proper else 0.0
        out["hash_ratio"] = text.count("#") / len(words)
        out["ellipsis_ratio"] = ellipses / len(words)
        out["alphabetic_words"] = len(alphabetic) / len(words)
        out["stop_words"] = len(set(words) & set(STOP_WORDS))
        out["longest_word"] = max(map(len, words))
        total = sum(map(len, words))
        for n in (2, 3, 4):
            counts = Counter(grams(words, n))
            repeated = [count * sum(map(len, gram)) for gram, count in counts.items() if count > 1]
            out[f"top_{n}gram"] = min(1.0, max(repeated, default=0) / total)
        for n in range(5, 11):
            seen, covered, i = set(), 0, 0
            while i + n <= len(words):
                gram = tuple(words[i : i + n])
                if gram in seen:
                    covered += sum(map(len, gram))
                    i += n
                else:
                    seen.add(gram)
                    i += 1
            out[f"duplicate_{n}gram"] = min(1.0, covered / total)
    if text:
        out["alphanumeric"] = sum((c.isascii() and c.isalnum()) or not c.isascii() for c in text) / len(text)
    every = text.split("\n")
    lines = [line.strip(" \t") for line in every if line.strip(" \t")]
    if lines:
        size = sum(map(len, lines))
        out["lines"], out["max_line"], out["mean_line"] = len(lines), max(map(len, every)), size / len(lines)
        out["bullet_lines"] = sum(line[0] in "-*•‣●" for line in lines) / len(lines)
        out["ellipsis_lines"] = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
        out["literal_lines"] = sum(line[0] in "0123456789\"'" for line in lines) / len(lines)
        out["duplicate_lines"], out["duplicate_line_chars"] = repeats(lines, [len(line) for line in lines], size)
        blocks = [
            tuple(line.strip(" \t") for line in group)
            for blank, group in itertools.groupby(every, key=lambda line: not line.strip(" \t"))
            if not blank
        ]
        sizes = [sum(map(len, block)) for block in blocks]
        out["duplicate_paragraphs"], out["duplicate_paragraph_chars"] = repeats(blocks, sizes, size)
    return out


def repeats(items: list, sizes: list[int], total: int) -> tuple[float, float]:
    seen, count, chars = set(), 0, 0
    for item, size in zip(items, sizes, strict=True):
        if item in seen:
            count, chars = count + 1, chars + size
        seen.add(item)
    return count / len(items), chars / total


def normalise(text: str) -> str:
    text = re.sub("\r\n?|\x85|\u2028|\u2029", "\n", text)
    text = "".join(c for c in text if c in "\t\n" or not (unicodedata.category(c) == "Cc" or c == "\ufeff"))
    text = unicodedata.normalize("NFC", text)
    return "\n".join(line.rstrip(" \t") for line in text.split("\n")).strip("\n")


def jaccard(a: str, b: str, n: int) -> float:
    x, y = (set(grams(words, min(n, len(words)))) for words in (plain_words(a), plain_words(b)))
    return len(x & y) / len(x | y) if x | y else 1.0


def kneser_ney(training: list[str], order: int):
    """p(byte | context) of interpolated modified Kneser-Ney by dictionaries, and the contexts that were seen."""
    counts: list[Counter[bytes]] = [Counter() for _ in range(order + 1)]
    for text in training:
        padded = b"\0" * (order - 1) + text.encode()
        for i in range(order - 1, len(padded)):
            counts[order][padded[i - order + 1 : i + 1]] += 1
    for k in range(order, 1, -1):
        for gram in counts[k]:
            counts[k - 1][gram[1:]] += 1
    discounts, by_context = {}, {}
    for k in range(1, order + 1):
        n = Counter(min(c, 5) for c in counts[k].values())
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            raw = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
            discounts[k] = [0.0] + [min(max(d, 0.05), top - 0.05) for d, top in zip(raw, (1, 2, 3), strict=True)]
        else:
            discounts[k] = [0.0, 0.5, 0.5, 0.5]
        by_context[k] = defaultdict(dict)
        for gram, c in counts[k].items():
            by_context[k][gram[:-1]][gram[-1]] = c

    def probability(context: bytes, byte: int) -> float:
        p = 1 / 256
        for k in range(1, order + 1):
            found = by_context[k].get(context[len(context) - k + 1 :])
            if not found:
                continue
            total = sum(found.values())
            d = discounts[k]
            left = sum(d[min(c, 3)] for c in found.values()) / total
            c = found.get(byte, 0)
            p = max(c - d[min(c, 3)], 0) / total + left * p
        return p

    return probability


def bits(probability, text: str, order: int) -> float:
    padded = b"\0" * (order - 1) + text.encode()
    return -sum(math.log2(probability(padded[i - order + 1 : i], padded[i])) for i in range(order - 1, len(padded)))


def _sentences(text: str) -> list[str]:
    return re.findall(r"(?s).*?(?:[。！？][\n \t]*|[.!?][\"')\]]*(?=[ \t\n]|\Z)[\n \t]*|\n[\n \t]*|\Z)", text)


def _lines(text: str) -> list[str]:
    return re.findall(r"(?s).*?(?:\n+|\Z)", text)


def _paragraphs(text: str) -> list[str]:
    return re.findall(r"(?s).*?(?:\n(?=[ \t]*\n)\n*|\Z)", text)


def _blocks(split):
    return lambda text: [(piece, piece, plain_words(piece)) for piece in split(text) if plain_words(piece)]


UNITS = {
    name: (lambda text, cut=cut: [(span, words) for _, span, words in _blocks(cut)(text)])
    for name, cut in (("line", _lines), ("paragraph", _paragraphs), ("sentence", _sentences))
}
"""Cuts a text into (what a unit spans, its words), those without words left out."""
