"""FineWeb's own rules (Penedo et al. 2024, 2406.17557, section 3.6), which it applied after Gopher's and C4's."""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.characters import Spaceless, classes
from lmlab.corpus.steps.thresholds import Batch, first_broken
from lmlab.corpus.web import fineweb

SIGNALS = ("lines", "punctuated_lines", "short_lines", "duplicate_line_chars", "newlines_per_word")


class FineWeb(Config):
    """FineWeb's rules, on where `rule_sets` lists `fineweb`: shares of the lines that are not empty."""

    min_lines: float | None = 1
    min_punctuated_lines: float | None = 0.12
    """Share of lines that end with a mark that ends a sentence."""
    max_short_lines: float | None = 0.67
    short_line: int = Field(default=30, ge=0)
    """Characters of the longest line that is short."""
    max_duplicate_line_chars: float | None = 0.01
    """Characters in repeated lines. The released code says 0.01, the paper 0.1."""
    max_newlines_per_word: float | None = 0.3


class FineWebStep:
    """Adds `fineweb_signals` (a struct of float32) and drops by the first rule that is broken. In a script without
    spaces a short line is shorter, by what `spaceless` says."""

    name = "fineweb"

    def __init__(self, config: FineWeb, spaceless: Spaceless) -> None:
        self.config, self.worth = config, spaceless.worth()
        self.identity = ["fineweb", 1, config.model_dump(), spaceless.model_dump()]

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = Batch.of(table)
        values = fineweb(*batch.bytes, batch.tokens, self.worth, classes(), self.config.short_line)
        reasons = first_broken(values, SIGNALS, self.config)
        return batch.result(table, self.name, {"fineweb_signals": (SIGNALS, values)}, reasons)
