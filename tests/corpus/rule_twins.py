"""The slow, plain-Python twins of the rule sets' kernels, written from the published definitions."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

import numpy as np

from lmlab.corpus.characters import RANGES, TERMINALS, Spaceless

WORTH = Spaceless().worth()
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]", re.ASCII)


def punctuation(c: str) -> bool:
    category = unicodedata.category(c)
    return category[0] == "P" or c in "$+<=>^`|~" or (category == "Cc" and not c.isspace())


def special(c: str) -> bool:
    return unicodedata.category(c)[0] in "PSZC" or unicodedata.category(c) == "Nd"


def script(c: str) -> int:
    found = [number for number, first, last in RANGES if first <= ord(c) <= last]
    return found[0] if found and not punctuation(c) and unicodedata.category(c)[0] != "M" else 0


def tokens(text: str) -> list[tuple[str, int]]:
    """(token, script): white space separates, and so does each character of a script without spaces."""
    out: list[tuple[str, int]] = []
    for word in text.split():
        piece, kind = "", 0
        for c in word:
            own = script(c)
            joins = not piece or (own and not kind and all(map(punctuation, piece))) or (
                not own and (not kind or punctuation(c) or unicodedata.category(c)[0] == "M")
            )  # fmt: skip
            if not joins:
                out.append((piece, kind))
                piece, kind = "", 0
            piece, kind = piece + c, own or kind
        out.append((piece, kind))
    return out


def key(token: tuple[str, int]) -> str:
    """What is compared: a character of a script without spaces without the punctuation that touches it."""
    text, kind = token
    return "".join(c for c in text if not kind or script(c) or unicodedata.category(c)[0] == "M")


def weight(found: list[tuple[str, int]]) -> float:
    return float(sum(WORTH[kind] for _, kind in found))


def quality(text: str, stops: list[str] | None) -> list[float]:
    found = tokens(text)
    proper = [each for each in found if not all(map(punctuation, each[0]))]
    words, lines = weight(found), text.splitlines()
    asked = proper and 2 * sum(kind > 0 for _, kind in found) <= len(found)
    return [
        weight(proper),
        sum(len(each) for each, _ in proper) / len(proper) if asked else math.nan,
        text.count("#") / words if words else 0.0,
        (text.count("...") + text.count("…")) / words if words else 0.0,
        sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) if lines else 0.0,
        sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) if lines else 0.0,
        weight([each for each in found if any(map(str.isalpha, each[0]))]) / words if words else 0.0,
        math.nan if stops is None else len(set(stops) & {key(each) for each in found}),
    ]


def duplicates(pieces: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    count = characters = 0
    for piece in pieces:
        if piece in seen:
            count, characters = count + 1, characters + len(piece)
        seen.add(piece)
    return count, characters


def repetition(text: str) -> list[float]:
    out = [0.0] * 13
    if not text:
        return out
    found = tokens(text)
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    if found:
        count, characters = duplicates(paragraphs)
        out[0], out[1] = count / len(paragraphs), characters / len(text)
    count, characters = duplicates(lines)
    out[2], out[3] = count / len(lines), characters / len(text)
    keys, sizes = [key(each) for each in found], [len(each) for each, _ in found]
    for n in range(2, 11):
        span = int(n * len(found) / weight(found) + 0.5) if found else n
        if len(found) < span:
            break
        runs = [tuple(keys[i : i + span]) for i in range(len(keys) - span + 1)]
        if n < 5:
            top, times = Counter(runs).most_common(1)[0]
            at = runs.index(top)
            gaps = sum(not (found[i][1] and found[i - 1][1]) for i in range(at + 1, at + span))
            out[n + 2] = (sum(sizes[at : at + span]) + gaps) * times / len(text)
        else:
            seen: set[tuple[str, ...]] = set()
            i = repeated = 0
            while i < len(runs):
                if runs[i] in seen:
                    repeated += sum(sizes[i : i + span])
                    i += span
                else:
                    seen.add(runs[i])
                    i += 1
            out[n + 2] = repeated / len(text)
    return out


def fineweb(text: str, short: int = 30) -> list[float]:
    found = tokens(text)
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return [0.0] * 5
    wide = 2 * sum(kind > 0 for _, kind in found) > len(found)
    limit = short * len(found) / weight(found) / 5.7 if wide else short
    return [
        len(lines),
        sum(line[-1] in TERMINALS for line in lines) / len(lines),
        sum(len(line) <= limit for line in lines) / len(lines),
        duplicates(lines)[1] / len(text.replace("\n", "")),
        text.count("\n") / weight(found),
    ]


def sentences(line: str) -> int:
    return len(re.findall(r"(?:[.!?](?=\s)|(?:[。！？][\u3000-\u303f]*(?=.)))", line, re.S)) + 1


def c4(text: str, config) -> tuple[str, dict[str, float]]:
    out = dict.fromkeys(
        ["lorem_ipsum", "curly_bracket", "sentences", "lines", "lines_kept", "lines_long_word", "lines_no_terminal",
         "lines_few_words", "lines_javascript", "lines_policy", "citations"], 0.0,
    )  # fmt: skip
    kept = []
    for whole in text.splitlines():
        line = whole.strip()
        found = tokens(line)
        if not found:
            continue
        out["lines"] += 1
        if config.max_word_length and max(len(each) for each, _ in found) > config.max_word_length:
            out["lines_long_word"] += 1
            continue
        line, n = CITATION.subn("", line) if config.remove_citations else (line, 0)
        out["citations"] += n
        marks = tuple(config.terminal_marks) + (tuple(config.terminal_marks_spaceless) if found[-1][1] else ())
        if config.terminal_marks and (not line.endswith(marks) or line.endswith("...")):
            out["lines_no_terminal"] += 1
            continue
        if weight(found) < config.min_line_words:
            out["lines_few_words"] += 1
            continue
        small = line.lower()
        if any(each in small for each in config.page_phrases) and config.max_lorem_ipsum is not None:
            out["lorem_ipsum"] = 1.0
            break
        if any(each in small for each in config.code_phrases):
            out["lines_javascript"] += 1
            continue
        if "{" in line and config.max_curly_bracket is not None:
            out["curly_bracket"] = 1.0
            break
        if any(each in small for each in config.policy_phrases):
            out["lines_policy"] += 1
            continue
        out["sentences"] += sentences(line)
        out["lines_kept"] += 1
        kept.append(line)
    return "\n".join(kept), out


def folded(text: str) -> list[tuple[str, int]]:
    """Tokens in small letters, without symbols, digits and punctuation at both ends; none that is nothing else."""
    out = []
    for token, kind in tokens(text):
        small = "".join(c.lower() if ord(c) < 0x600 and len(c.lower()) == 1 else c for c in key((token, kind)))
        while small and special(small[0]):
            small = small[1:]
        while small and special(small[-1]):
            small = small[:-1]
        if small:
            out.append((small, kind))
    return out


def roots(text: str, stops: list[str] | None, flagged: list[str], character_n: int, word_n: int) -> list[float]:
    out = [0.0, 0.0, 0.0, 0.0, math.nan if stops is None else 0.0, 0.0]
    if not text:
        return out
    out[3] = sum(map(special, text)) / len(text)
    counts = sorted(Counter(text[i : i + character_n] for i in range(len(text) - character_n + 1)).values())
    if counts:
        top = min(int(np.sqrt(len(counts))), len(counts) - counts.count(1))
        out[1] = sum(counts[len(counts) - top :]) / sum(counts)
    found = folded(text)
    words = [word for word, _ in found]
    out[0] = weight(found)
    if words:
        if stops is not None:
            out[4] = sum(word in stops for word in words) / len(words)
        out[5] = sum(word in flagged for word in words) / len(words)
        grams = Counter(tuple(words[i : i + word_n]) for i in range(len(words) - word_n + 1))
        out[2] = sum(n for n in grams.values() if n > 1) / max(1, sum(grams.values()))
    return out
