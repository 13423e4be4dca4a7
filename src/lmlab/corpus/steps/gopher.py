"""Gopher's rules (Rae et al. 2021, 2112.11446, tables A1 and A2), exact: quality first, then repetition.

Where the paper leaves room, the definition is that of datatrove's filters, which FineWeb was made with: words are what
stands between white space, the shares of repeated text are of all characters, a line may be empty where bullets are
counted, and the most frequent n-gram counts as often as it occurs, overlapping or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.characters import Spaceless
from lmlab.corpus.steps.thresholds import Batch, StopWords, first_broken
from lmlab.corpus.web import gopher_quality, gopher_repetition

QUALITY = (
    "words", "mean_word_length", "hash_ratio", "ellipsis_ratio", "bullet_lines", "ellipsis_lines", "alphabetic_words",
    "stop_words",
)  # fmt: skip
REPETITION = (
    "duplicate_paragraphs", "duplicate_paragraph_chars", "duplicate_lines", "duplicate_line_chars", "top_2gram",
    "top_3gram", "top_4gram", "duplicate_5gram", "duplicate_6gram", "duplicate_7gram", "duplicate_8gram",
    "duplicate_9gram", "duplicate_10gram",
)  # fmt: skip


class Gopher(Config):
    """Gopher's rules, on where `rule_sets` lists `gopher`. `min_` and `max_` bound the signal of that name, in words,
    characters, or shares of 1; every default is Gopher's."""

    min_words: float | None = 50
    """Words that are not only punctuation. In a script without spaces, characters count as `spaceless` says."""
    max_words: float | None = 100_000
    min_mean_word_length: float | None = 3
    """Not asked of text most of whose tokens are characters of a script without spaces."""
    max_mean_word_length: float | None = 10
    max_hash_ratio: float | None = 0.1
    max_ellipsis_ratio: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alphabetic_words: float | None = 0.8
    min_stop_words: float | None = 2
    """Different words of `stop_words` that occur; asked of languages that have a list."""
    max_duplicate_paragraphs: float | None = 0.3
    max_duplicate_paragraph_chars: float | None = 0.2
    max_duplicate_lines: float | None = 0.3
    max_duplicate_line_chars: float | None = 0.2
    max_top_2gram: float | None = 0.2
    max_top_3gram: float | None = 0.18
    max_top_4gram: float | None = 0.16
    max_duplicate_5gram: float | None = 0.15
    max_duplicate_6gram: float | None = 0.14
    max_duplicate_7gram: float | None = 0.13
    max_duplicate_8gram: float | None = 0.12
    max_duplicate_9gram: float | None = 0.11
    max_duplicate_10gram: float | None = 0.10
    stop_words: dict[str, list[str]] = Field(
        default_factory=lambda: {
            "en": ["the", "be", "to", "of", "and", "that", "have", "with"],
            "zh": ["的", "是", "不", "了", "在", "有", "和", "这"],
            "ja": ["の", "に", "は", "を", "が", "と", "で", "も"],
        }
    )
    """By language. English is Gopher's list; Chinese and Japanese are the commonest function characters, a guess."""


class GopherStep:
    """Adds `gopher_signals` and `gopher_repetition` (structs of float32, null where not looked at) and drops by the
    first rule that is broken. Repetition is measured on what passed the rules before it."""

    name = "gopher"

    def __init__(self, config: Gopher, spaceless: Spaceless) -> None:
        self.config, self.worth = config, spaceless.worth()
        self.identity = ["gopher", 1, config.model_dump(), spaceless.model_dump()]
        self._stops = StopWords(config.stop_words)

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = Batch.of(table)
        data, offsets = batch.bytes
        stops, which = self._stops.matrix, self._stops.which(batch.languages)
        quality = gopher_quality(data, batch.tokens, self.worth, stops, which)
        reasons = first_broken(quality, QUALITY, self.config)
        passed = np.array([reason is None for reason in reasons], bool)
        repetition = gopher_repetition(data, offsets, batch.tokens, self.worth, passed)
        later = first_broken(repetition, REPETITION, self.config)
        reasons = [first or second for first, second in zip(reasons, later, strict=True)]
        columns: dict[str, tuple[Sequence[str], np.ndarray]] = {
            "gopher_signals": (QUALITY, quality),
            "gopher_repetition": (REPETITION, repetition),
        }
        return batch.result(table, self.name, columns, reasons)
