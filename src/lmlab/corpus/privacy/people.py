"""Names and postal addresses: keyword spotting (survey, section 4.1.2), or a recogniser of the user's."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator

from lmlab.corpus.privacy.span import Span
from lmlab.errors import Refused

Recogniser = Callable[[str], Iterable[tuple[int, int, str]]]
"""text -> (start, end, label) of what it recognises; labels `name` and `address` count, others are passed over."""

_WORD = r"[A-Z][a-z\u00e0-\u00ff]+(?:[-'\u2019][A-Z][a-z\u00e0-\u00ff]+)?"
_NAME = rf"{_WORD}(?: (?:[A-Z]\.|van|von|de|der|la|{_WORD})){{0,2}}(?: {_WORD})?"
_NAMES = (
    re.compile(rf"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Madam)\.? ({_NAME})"),
    re.compile(rf"\b(?:[Mm]y name is|[Tt]his is|[Cc]alled|[Nn]amed|[Ss]igned,?|[Cc]ontact) ({_WORD} {_WORD})\b"),
    re.compile(
        rf"(?mi:^[ \t#*/]*(?:name|authors?|patient|customer|sender|recipient|maintainer)\s?: ?)({_NAME})"
    ),
    re.compile(rf"(?:[Rr]egards|[Ss]incerely|[Yy]ours(?: truly| faithfully)?|[Cc]heers),?\s*\n+\s*({_NAME})\s*$", re.M),
)  # fmt: skip
_STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Square|Sq|Place|Pl|Terrace|Way|Close|"
    r"Crescent|Parkway|Pkwy|Highway|Hwy)\b\.?"
)
_ADDRESSES = (
    re.compile(
        rf"\b\d{{1,5}}[A-Za-z]? (?:[NSEW]\.? )?(?:{_WORD} ){{1,3}}{_STREET}"
        r"(?:,? (?:Apt|Suite|Ste|Unit|Flat|Floor)\.? ?#?\w{1,5})?"
        rf"(?:,? {_WORD}(?: {_WORD}){{0,2}})?(?:,? [A-Z]{{2}}\b)?"
        r"(?:,? (?:\d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}))?"
    ),
    re.compile(rf"\b{_WORD}(?:stra(?:ß|ss)e|weg|gasse|platz|allee) \d{{1,4}}[a-z]?(?:, \d{{5}} {_WORD})?"),
    re.compile(r"\bP\.? ?O\.? Box \d{1,6}\b"),
)


def keywords(text: str) -> Iterator[tuple[int, int, str]]:
    """Names after a title or a word that announces one; addresses by their street, in English and German forms."""
    for pattern in _ADDRESSES:
        for match in pattern.finditer(text):
            yield match.start(), match.end(), "address"
    for pattern in _NAMES:
        for match in pattern.finditer(text):
            yield match.start(1), match.end(1), "name"


def load(reference: str) -> Recogniser:
    """`keywords`; `spacy:MODEL` (a pipeline with an entity recogniser that is installed here); or `MODULE:FUNCTION`.

    Raises Refused if it is not there.
    """
    if reference == "keywords":
        return keywords
    module, _, name = reference.partition(":")
    if not name:
        raise Refused(f"redact.recogniser: expected keywords, spacy:MODEL or MODULE:FUNCTION, found {reference!r}")
    if module == "spacy":
        return _spacy(name)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Refused(f"redact.recogniser: {reference!r} cannot be imported: {error}") from None
    return found


_LABELS = {"PERSON": "name", "PER": "name", "LOC": "address", "FAC": "address", "ADDRESS": "address"}


def _spacy(model: str) -> Recogniser:
    try:
        import spacy  # pyrefly: ignore[missing-import]
    except ImportError:
        raise Refused("redact.recogniser: spacy:MODEL needs the package spacy and a model of it") from None
    try:
        pipeline = spacy.load(model, disable=["lemmatizer", "textcat"])
    except OSError as error:
        raise Refused(f"redact.recogniser: spacy cannot load {model!r}: {error}") from None

    def recognise(text: str) -> Iterator[tuple[int, int, str]]:
        for entity in pipeline(text).ents:
            if entity.label_ in _LABELS:
                yield entity.start_char, entity.end_char, _LABELS[entity.label_]

    return recognise


def people(recogniser: Recogniser) -> Callable[[str], Iterator[Span]]:
    """A detector of spans from a recogniser."""

    def detect(text: str) -> Iterator[Span]:
        for start, end, label in recogniser(text):
            if label in ("name", "address"):
                yield Span(start, end, label)

    return detect
