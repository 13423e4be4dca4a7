"""ROOTS's rules (Laurencon et al. 2022, 2303.03915): signals with thresholds a language, words cleaned out before.

Its bound on perplexity is `perplexity.maximum`, a step of its own. Two things differ from its code: words of scripts
without spaces are characters here and were SentencePiece's pieces there, and its lists of stop words (hundreds a
language) are short ones of ours, so that its bound of 0.3 asks more of a text here.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.characters import Spaceless, classes
from lmlab.corpus.repetition import SIGNALS, roots
from lmlab.corpus.steps.keywords import read_list
from lmlab.corpus.steps.step import with_text
from lmlab.corpus.steps.thresholds import Batch, StopWords, first_broken
from lmlab.corpus.tokens import hashes_of, tokens

ENGLISH = """
    a about after all also an and any are as at be because been but by can could did do does even first for from get
    had has have he her him his how i if in into is it its just like made make many may me more most much must my new
    no not now of on one only or other our out over own people said same see she should so some such than that the
    their them then there these they this those through time to too two under up us use used very was way we well were
    what when where which while who will with would you your
"""
CHINESE = """
    的一是了我不在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里
    所去行过家十用发天如然作方成者多都
"""


class Thresholds(Config):
    """Bounds for one language; the defaults are ROOTS's for English."""

    min_words: float | None = 20
    max_words: float | None = 100_000
    max_character_repetition: float | None = 0.106
    """Share of the most frequent n-grams of characters: as many of them as the square root of how many differ."""
    max_word_repetition: float | None = 0.19
    """Share of n-grams of words that occur more than once."""
    max_special_characters: float | None = 0.4
    """Punctuation, symbols, digits and white space."""
    min_stop_words: float | None = 0.3
    """Share of words that are stop words; asked of languages that have a list."""
    max_flagged_words: float | None = 0.01
    min_language_probability: float | None = 0.8
    character_ngram: int = Field(default=10, ge=1)
    word_ngram: int = Field(default=5, ge=1)


class Roots(Config):
    """ROOTS's rules, on where `rule_sets` lists `roots`."""

    languages: dict[str, Thresholds] = Field(
        default_factory=lambda: {
            "en": Thresholds(),
            "zh": Thresholds(
                max_character_repetition=0.2,
                max_word_repetition=0.96,
                max_special_characters=0.3,
                min_stop_words=0.1691,
                max_flagged_words=0.001,
                min_language_probability=0.85,
                character_ngram=3,
            ),
        }
    )
    """Thresholds by language. A language that is not listed has English's, less the bound on stop words."""
    stop_words: dict[str, list[str]] = Field(
        default_factory=lambda: {"en": [*ENGLISH.split()], "zh": [*"".join(CHINESE.split())]}
    )
    flagged_words: str | None = None
    """A file of words, one a line, that `max_flagged_words` bounds."""
    max_word_length: int | None = Field(default=25, ge=1)
    """Longer words are removed from the text; characters of a script without spaces are no part of a word."""
    remove_words_with: list[str] = Field(default_factory=lambda: ["http", "www", ".com", "href", "//"])
    """Words with one of these are removed from the text."""


_WIDE = r"\x{e00}-\x{eff}\x{1000}-\x{109f}\x{1780}-\x{17ff}\x{3000}-\x{30ff}\x{3400}-\x{9fff}\x{f900}-\x{faff}"


class RootsStep:
    """Removes words, adds `roots_signals` (a struct of float32, see `repetition.SIGNALS`) and drops by the first rule
    that is broken. A dropped document keeps the text that it came with."""

    name = "roots"

    def __init__(self, config: Roots, spaceless: Spaceless) -> None:
        flagged = read_list(config.flagged_words, "roots.flagged_words") if config.flagged_words else []
        self.config, self.worth = config, spaceless.worth()
        self.identity = ["roots", 1, config.model_dump(), spaceless.model_dump(), flagged]
        self._stops = StopWords(config.stop_words, fold=True)
        self._flagged = hashes_of(flagged, fold=True) if flagged else np.zeros(0, np.uint64)
        self._other = config.languages.get("en", Thresholds()).model_copy(update={"min_stop_words": None})

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = Batch.of(table)
        languages = batch.languages
        text = self._cleaned(batch.table["text"])
        new = Batch(batch.rows, with_text(batch.table, text))
        data, offsets = new.bytes
        found = tokens(data, offsets, fold=True)
        rules = [self.config.languages.get(language or "", self._other) for language in languages]
        points = np.frombuffer("".join(text.to_pylist()).encode("utf-32-le"), np.uint32)
        places = np.concatenate([[0], np.cumsum(pc.utf8_length(text).to_numpy().astype(np.int64))])
        sizes = np.array([(each.character_ngram, each.word_ngram) for each in rules], np.int64).reshape(-1, 2)
        which = self._stops.which(languages)
        values = roots(
            points, places, found.bounds, found.hashes, found.kinds, self.worth, classes(), sizes,
            self._stops.flat, self._stops.bounds, which, self._flagged,
        )  # fmt: skip
        sure = np.full((len(values), 1), np.nan)
        if "language_probability" in table.column_names:
            sure[:, 0] = batch.table["language_probability"].to_numpy()
        judged, names = np.hstack([values, sure]), (*SIGNALS, "language_probability")
        reasons: list[str | None] = [None] * len(values)
        for each in {id(each): each for each in rules}.values():
            rows = [row for row, mine in enumerate(rules) if mine is each]
            for row, reason in zip(rows, first_broken(judged[rows], names, each), strict=True):
                reasons[row] = reason
        places = np.arange(len(table))
        kept = np.array([reason is None for reason in reasons], bool)
        places[batch.rows[kept]] = len(table) + np.flatnonzero(kept)
        both = pa.chunked_array([*table["text"].chunks, *text.chunks], pa.string())
        table = with_text(table, pc.take(both, pa.array(places)))
        return batch.result(table, self.name, {"roots_signals": (SIGNALS, values)}, reasons)

    def _cleaned(self, text: pa.ChunkedArray) -> pa.ChunkedArray:
        if self.config.remove_words_with:
            inside = "|".join(_quoted(part) for part in self.config.remove_words_with)
            text = pc.replace_substring_regex(text, pattern=rf"[^\s{_WIDE}]*(?:{inside})[^\s{_WIDE}]*", replacement="")
        if self.config.max_word_length:
            # RE2 bounds a repetition by 1000; ROOTS never asks for more than that.
            least = min(self.config.max_word_length, 999) + 1
            text = pc.replace_substring_regex(text, pattern=rf"[^\s{_WIDE}]{{{least},}}", replacement="")
        return text


def _quoted(part: str) -> str:
    """`part` as a pattern of RE2, which knows fewer escapes than `re`."""
    return "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{{{ord(c):x}}}" for c in part)
