"""The page of a corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
from html_check import check
from tests.corpus.helpers import build, prose

from lmlab.corpus.inspect import inspect
from lmlab.report.corpus import corpus_page


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for i in range(12):
        (folder / f"{i:02d}.txt").write_text(prose(i))
    (folder / "short.txt").write_text("<b>too short</b>")
    out = folder.parent / "corpus-page" / "corpus"
    build(out, sources=[{"name": "mine", "path": str(folder)}], heldout_minimum=1, heldout_fraction=0.2)
    return out


def test_the_page_shows_sizes_lengths_reasons_and_what_was_dropped(corpus: Path) -> None:
    found = inspect(corpus, samples=2)
    text = corpus_page(found)
    page = check(text)
    shown = "".join(page.pieces)
    assert "rules: words < 20" in shown and "<b>too short</b>" in shown, "the real text, escaped"
    assert text.count("<svg") == 1, "lengths; one language needs no plot"
    assert "12 documents kept of 13" in " ".join(shown.split())


def test_lengths_are_counted_by_powers_of_two(corpus: Path) -> None:
    (lengths,) = inspect(corpus)["lengths"].values()
    assert sum(lengths["powers_of_two"]) == 12
    assert lengths["powers_of_two"][lengths["longest"].bit_length() - 1] >= 1
