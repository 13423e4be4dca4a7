"""C4's rules (Raffel et al. 2020, 1910.10683, section 2.2): lines that are no prose go, and pages with too little left.

Its bad words are a list that the user gives to `keywords.offensive`; its three-sentence spans are deduplication.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.characters import Spaceless
from lmlab.corpus.cleaning import SIGNALS, c4, packed
from lmlab.corpus.steps.step import with_text
from lmlab.corpus.steps.thresholds import Batch, first_broken


class C4(Config):
    """C4's rules, on where `rule_sets` lists `c4`. Numbers are those of its builder in TensorFlow Datasets (the paper's
    text says the same); datatrove's defaults are `min_line_words: 3` and `min_sentences: 5`."""

    min_line_words: float = Field(default=5, ge=0)
    """A line of fewer words is removed (0: no rule)."""
    max_word_length: int = Field(default=1000, ge=0)
    """A line with a longer word is removed (0: no rule)."""
    terminal_marks: list[str] = Field(default_factory=lambda: [".", "?", "!", '"', "'"])
    """A line must end with one of these, and not with three dots. Empty: no rule (FineWeb left it out)."""
    terminal_marks_spaceless: list[str] = Field(
        default_factory=lambda: ["。", "！", "？", "．", "”", "’", "」", "』", "）"]
    )
    """Marks that may end a line whose last character is of a script without spaces, besides those above."""
    remove_citations: bool = True
    """Take out [12], [edit] and [citation needed]."""
    page_phrases: list[str] = Field(default_factory=lambda: ["lorem ipsum"])
    """A page with one of these, in any case, is dropped."""
    code_phrases: list[str] = Field(default_factory=lambda: ["javascript"])
    """A line with one of these, in any case, is removed."""
    policy_phrases: list[str] = Field(
        default_factory=lambda: [
            "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
        ]
    )  # fmt: skip
    """A line with one of these, in any case, is removed."""
    max_lorem_ipsum: float | None = 0
    """0: `page_phrases` drop a page; null: they do not."""
    max_curly_bracket: float | None = 0
    """0: a page with a `{` in a line that was not removed before is dropped; null: it is not."""
    min_sentences: float | None = 3
    """Sentences of the lines that are left: . ! or ? with white space after it ends one, and 。！？ wherever it stands."""


class C4Step:
    """Removes lines, adds `c4_signals` (what was removed and why, see `cleaning.SIGNALS`), and drops pages. A dropped
    page keeps the text that it came with."""

    name = "c4"

    def __init__(self, config: C4, spaceless: Spaceless) -> None:
        self.config, self.worth = config, spaceless.worth()
        self.identity = ["c4", 1, config.model_dump(), spaceless.model_dump()]
        phrases = [*config.page_phrases, *config.code_phrases, *config.policy_phrases]
        kinds = np.repeat([0, 1, 2], [len(config.page_phrases), len(config.code_phrases), len(config.policy_phrases)])
        self._phrases = (*packed([phrase.lower() for phrase in phrases]), kinds)
        self._marks, self._wide = packed(config.terminal_marks), packed(config.terminal_marks_spaceless)
        self._needed = packed(["[citation needed]"] if config.remove_citations else [])
        self._page = np.array([config.max_lorem_ipsum is not None, config.max_curly_bracket is not None])

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = Batch.of(table)
        config = self.config
        data, offsets, signals = c4(
            *batch.bytes, batch.tokens, self.worth, config.max_word_length, config.min_line_words,
            self._marks, self._wide, self._needed, self._phrases, self._page,
        )  # fmt: skip
        reasons = first_broken(signals, SIGNALS, config)
        cleaned = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
        places = np.arange(len(table))
        for each, (row, reason) in enumerate(zip(batch.rows, reasons, strict=True)):
            if reason is None:
                places[row] = len(table) + each
        both = pa.chunked_array([*table["text"].chunks, cleaned.cast(pa.string())], pa.string())
        text = pc.take(both, pa.array(places))
        return batch.result(with_text(table, text), self.name, {"c4_signals": (SIGNALS, signals)}, reasons)
