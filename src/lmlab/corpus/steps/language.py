"""Language identification with py3langid (Lui and Baldwin 2012), whose model is inside its wheel."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
from pydantic import Field

from lmlab.config import Config
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


_lock = threading.Lock()
_identifier: Any = None


def identifier() -> Any:
    """py3langid's classifier with normalised probabilities, loaded once a process (about half a second)."""
    global _identifier  # noqa: PLW0603
    with _lock:
        if _identifier is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            _identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        return _identifier


_NOTHING: tuple[str | None, float | None, str | None] = (None, None, None)


class LanguageStep:
    """Adds `language` (code, `und`, or null where not looked at) and `language_probability`."""

    name = "language"

    def __init__(self, config: Language) -> None:
        self.config = config
        self.identity = ["language", 1, config.model_dump()]

    def __call__(self, table: pa.Table) -> pa.Table:
        languages: list[str | None] = []
        probabilities: list[float | None] = []
        reasons: list[str | None] = []
        for text, kind, keep in zip(table["text"], table["kind"], table["keep"], strict=True):
            found = self._judge(text.as_py(), kind.as_py()) if keep.as_py() else _NOTHING
            languages.append(found[0])
            probabilities.append(found[1])
            reasons.append(found[2])
        table = table.append_column("language", pa.array(languages, pa.string()))
        table = table.append_column("language_probability", pa.array(probabilities, pa.float32()))
        return drop(table, self.name, reasons)

    def _judge(self, text: str, kind: str) -> tuple[str | None, float | None, str | None]:
        config = self.config
        if not config.enabled or (kind == "code" and config.exempt_code):
            return _NOTHING
        if len(text) < config.minimum_bytes and len(text.encode()) < config.minimum_bytes:
            return "und", None, None
        language, probability = identifier().classify(text[: config.sample_chars])
        if probability < config.threshold:
            return "und", probability, f"language uncertain (probability < {config.threshold:g})"
        if config.languages and language not in config.languages:
            return language, probability, f"language {language}"
        return language, probability, None
