"""The kernels against their slow twins."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.corpus import compiled, kernels
from lmlab.corpus.arrow import buffers
from lmlab.corpus.dedup.index import NearDuplicates, sign
from lmlab.corpus.dedup.units import ngrams
from lmlab.corpus.steps.rules import SIGNALS, STOP_WORDS
from tests.corpus import twins
from tests.corpus.helpers import prose

STOP = np.array([kernels.hash_bytes(np.frombuffer(w.encode(), np.uint8), 0, len(w)) for w in STOP_WORDS], np.uint64)
PIECES = st.sampled_from(
    ["the", "be", "a b", " ", "  ", "\n", "\n\n", "\t", "#", "...", "…", "- ", "• ", "* ", "12", "'x'", "word", "Ünï",
     "中文", "日本語の", "ไทย", "😀", "_", "x.y", "one two three four five six ", "\"q\"", "é", "....", "。"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_signals_equal_their_twin(texts: list[str]) -> None:
    found = kernels.signals(*buffers(pa.array(texts)), STOP)
    for text, row in zip(texts, found, strict=True):
        assert dict(zip(SIGNALS, row.tolist(), strict=True)) == pytest.approx(
            twins.signals(text), abs=1e-6, rel=1e-6
        ), text


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(1, 5))
def test_ngrams_equal_their_twin(texts: list[str], n: int) -> None:
    hashes, documents, firsts, lasts = ngrams(pa.array(texts), n)
    expected = [(d, gram) for d, text in enumerate(texts) for gram in twins.grams(twins.plain_words(text), n)]
    assert documents.tolist() == [d for d, _ in expected]
    by_hash: dict[int, tuple[str, ...]] = {}
    for h, first, last, (d, gram) in zip(hashes.tolist(), firsts.tolist(), lasts.tolist(), expected, strict=True):
        assert by_hash.setdefault(h, gram) == gram
        span = texts[d].encode()[first:last].decode()
        assert tuple(twins.plain_words(span)) == gram
    assert len(by_hash) == len({gram for _, gram in expected})


def test_signatures_estimate_jaccard() -> None:
    config = NearDuplicates(bands=32, rows=8)
    base = prose(1, 300)
    words = base.split(" ")
    others = [" ".join(["zebra" if i % step == 0 else w for i, w in enumerate(words)]) for step in (100, 40, 15, 6)]
    texts = [base, *others, prose(2, 300)]
    signs = sign(pa.array(texts), config)
    for i, text in enumerate(texts):
        estimate = float((signs[0] == signs[i]).mean())
        # the standard deviation of an estimate from 256 hashes is at most 0.031
        assert estimate == pytest.approx(twins.jaccard(base, text, config.shingle), abs=0.13)
    assert (signs[0] == signs[0]).all()


def test_a_kernel_compiles_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """An unwritable package and home: numba finds no place for its cache and says so by RuntimeError."""
    calls = []
    real = compiled.numba.njit

    def refusing(**options):
        calls.append(options)
        if options["cache"] and len(calls) == 1:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**{**options, "cache": False})

    monkeypatch.setattr(compiled.numba, "njit", refusing)
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(compiled.numba.config, "CACHE_DIR", "")
    assert compiled.kernel(lambda x: x + 1)(41) == 42
    assert calls[1]["cache"] and compiled.numba.config.CACHE_DIR.startswith(str(tmp_path))


def test_a_cache_folder_that_others_can_write_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = compiled._private_cache()
    assert folder is not None
    folder.chmod(0o777)
    assert compiled._private_cache() is None
