"""Language identification with py3langid's model (Lui and Baldwin 2012)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
from lmlab.corpus.arrow import buffers
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.identify import identify, model
from lmlab.corpus.steps.step import drop


class Language(Config):
    """A document is dropped if its language is uncertain or not among those wanted."""

    enabled: bool = True
    languages: list[str] = Field(default_factory=list)
    """Codes of ISO 639-1 such as en, zh; empty: any language."""
    threshold: float = Field(default=0.65, ge=0, le=1)
    """Least probability of the most likely language (FineWeb: 0.65, with fastText). Below, the language is `und`."""
    minimum_bytes: int = Field(default=200, ge=0)
    """A shorter text is `und` and is kept: too little to tell. A guess, not studied."""
    sample_chars: int = Field(default=4000, ge=100)
    """Characters looked at: this many from the start. More changes few answers and costs time."""
    exempt_code: bool = True
    """Code has no natural language: documents of kind `code` are not looked at."""


class LanguageStep:
    """Adds `language` (code, `und`, or null where not looked at) and `language_probability`."""

    name = "language"

    def __init__(self, config: Language) -> None:
        self.config = config
        self.identity = ["language", 2, config.model_dump()]

    def __call__(self, table: pa.Table) -> pa.Table:
        config = self.config
        data, offsets = buffers(table["text"])
        looked = table["keep"].to_numpy(zero_copy_only=False) & config.enabled
        if config.exempt_code:
            looked &= pc.not_equal(table["kind"], "code").to_numpy(zero_copy_only=False)
        told = looked & (np.diff(offsets) >= config.minimum_bytes)
        languages = np.full(len(table), None, object)
        languages[looked] = "und"
        probabilities = np.full(len(table), np.nan)
        reasons = np.full(len(table), None, object)
        if told.any():
            found, probabilities = identify(data, offsets, told, config.sample_chars)
            certain = told & (probabilities >= config.threshold)
            languages[certain] = np.array(model().languages, object)[found[certain]]
            reasons[told & ~certain] = f"language uncertain (probability < {config.threshold:g})"
            if config.languages:
                for row in np.flatnonzero(certain & ~np.isin(languages.astype(str), config.languages)):
                    reasons[row] = f"language {languages[row]}"
        table = table.append_column("language", pa.array(languages, pa.string()))
        table = table.append_column(
            "language_probability", pa.array(probabilities.astype(np.float32), pa.float32(), mask=~told)
        )
        return drop(table, self.name, pa.array(reasons, pa.string()))
