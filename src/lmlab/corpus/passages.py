"""Documents for `lmlab tokenizer compare`: a run's held-out ones, or files and folders, with their languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lmlab.corpus import store
from lmlab.corpus.identify import identify_text
from lmlab.errors import Refused
from lmlab.text.compare import Passage

MOST_BYTES = 64 << 10
"""A file is cut at line ends into passages of about so many bytes: they are the units of the intervals."""


def passages(places: Sequence[str]) -> list[Passage]:
    """The passages of runs (kept held-out documents, with their sources and languages), and of text files and folders of
    them (the source is the name given; the language is found where the text is long enough). Raises Refused for what is
    not there or not text."""
    found: list[Passage] = []
    for text in places:
        place = Path(text)
        corpus = next((each for each in (place, place / "corpus") if (each / "documents").is_dir()), None)
        if corpus is not None:
            found += _corpus(corpus)
        elif place.exists():
            files = [place] if place.is_file() else sorted(each for each in place.rglob("*") if each.is_file())
            for file in files:
                found += _file(file, place.name)
        else:
            raise Refused(f"--text {text}: no such file, folder or run")
    return found


def _corpus(corpus: Path) -> Iterator[Passage]:
    for table in store.tables(corpus, ["source", "split", "keep", "kind", "language", "text"]):
        for row in table.to_pylist():
            if row["keep"] and row["split"] == "heldout":
                language = "code" if row["kind"] == "code" else row["language"] or "und"
                yield Passage(row["source"], language, row["text"])


def _file(file: Path, source: str) -> Iterator[Passage]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"--text {file}: is not UTF-8 text (byte {error.start})") from None
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line.encode())
        if size >= MOST_BYTES:
            yield _passage(source, "".join(piece))
            piece, size = [], 0
    if piece:
        yield _passage(source, "".join(piece))


def _passage(source: str, text: str) -> Passage:
    if len(text.encode()) < 200:
        return Passage(source, "und", text)
    language, probability = identify_text(text)
    return Passage(source, language if probability >= 0.65 else "und", text)
