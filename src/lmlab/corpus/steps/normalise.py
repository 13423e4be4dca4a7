"""Normalisation: one form for what a reader would not tell apart."""

from __future__ import annotations

import pyarrow as pa

from lmlab.config import Config
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.steps.step import drop, with_text


class Normalise(Config):
    """What is done, in this order; doing it twice changes nothing:

    1. the line ends CR LF, CR, NEL (U+0085), U+2028 and U+2029 become LF;
    2. control characters (C0 but tab and LF, DEL, C1) and the byte-order mark U+FEFF go;
    3. Unicode normalisation form C (not KC, which changes meaning and was found to hurt: survey, 4.1.2);
    4. spaces and tabs at line ends go;
    5. empty lines at the beginning and at the end go, with the last line end.

    A document with nothing left is dropped as `empty`.
    """

    enabled: bool = True
    unicode: bool = True
    """Apply form C (step 3)."""


class NormaliseStep:
    """The step; Arrow's RE2 and utf8proc do the work, without the GIL and in linear time."""

    name = "normalise"

    def __init__(self, config: Normalise) -> None:
        self.config = config
        self.identity = ["normalise", 1, config.model_dump()]

    def __call__(self, table: pa.Table) -> pa.Table:
        text = table["text"]
        if self.config.enabled:
            text = normalise(text, unicode=self.config.unicode)
        empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)
        reasons = pc.if_else(empty, pa.scalar("empty"), pa.scalar(None, pa.string()))
        return drop(with_text(table, text), self.name, reasons.combine_chunks())


def normalise(text: pa.ChunkedArray, *, unicode: bool = True) -> pa.ChunkedArray:
    """The five rules of `Normalise` on a string column."""
    text = pc.replace_substring_regex(text, pattern=r"\r\n?|\x{85}|\x{2028}|\x{2029}", replacement="\n")
    text = pc.replace_substring_regex(text, pattern=r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{feff}]", replacement="")
    if unicode:
        text = pc.utf8_normalize(text, form="NFC")
    text = pc.replace_substring_regex(text, pattern=r"(?m)[ \t]+$", replacement="")
    return pc.replace_substring_regex(text, pattern=r"\A\n+|\n+\z", replacement="")
