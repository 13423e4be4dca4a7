"""What a text is made of when spans of it are compared: lines, paragraphs, sentences, words, bytes or tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from lmlab.corpus.arrow import buffers
from lmlab.corpus.dedup import kernels
from lmlab.corpus.kernels import words
from lmlab.errors import Refused

Unit = Literal["line", "paragraph", "sentence", "word", "byte", "token"]
BLOCKS = {"line": kernels.LINE, "paragraph": kernels.PARAGRAPH, "sentence": kernels.SENTENCE}


@dataclass(frozen=True)
class Units:
    """The units of a column of texts, documents after one another."""

    hashes: np.ndarray  # uint64 [units]: equal for equal units
    firsts: np.ndarray  # int64 [units]: first byte, relative to the document
    lasts: np.ndarray  # int64 [units]: end byte
    words: np.ndarray  # int64 [units]: words in it (1 for words, bytes and tokens)
    at: np.ndarray  # int64 [documents + 1]: where each document's units begin

    @property
    def documents(self) -> np.ndarray:
        """The document of each unit, int64."""
        return np.repeat(np.arange(len(self.at) - 1), np.diff(self.at))


def units(text: pa.ChunkedArray | pa.Array, unit: Unit, tokenizer: str | None = None) -> Units:
    """Cut texts into units. Words are lower-cased runs of letters and digits, so are the words that lines, paragraphs
    and sentences are compared by: case, layout and punctuation do not hide a copy. Bytes and tokens are as they are."""
    data, offsets = buffers(text)
    if unit == "token":
        return _tokens(text, tokenizer or "")
    if unit == "byte":
        begin, end = int(offsets[0]), int(offsets[-1])
        at = (offsets - begin).astype(np.int64)
        hashes = (data[begin:end].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
        first = np.arange(end - begin) - np.repeat(at[:-1], np.diff(at))
        return Units(hashes, first, first + 1, np.ones(end - begin, np.int64), at)
    hashes, firsts, lasts, _, at = words(data, offsets)
    sizes = np.ones(len(hashes), np.int64)
    if unit != "word":
        hashes, firsts, lasts, sizes, at = kernels.units(data, offsets, hashes, firsts, at, BLOCKS[unit])
    base = np.repeat(offsets[:-1], np.diff(at))
    return Units(hashes, firsts - base, lasts - base, sizes, at)


def ngrams(text: pa.ChunkedArray | pa.Array, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All word n-grams: (hashes uint64, documents int64, first bytes int64, end bytes int64), spans relative to the
    document. A text of fewer words has none.
    """
    found = units(text, "word")
    hashes, first, where = kernels.windows(found.hashes, found.at, size)
    documents = np.repeat(np.arange(len(where) - 1), np.diff(where))
    return hashes, documents, found.firsts[first], found.lasts[first + size - 1]


@cache
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library raises plain Exception
        raise Refused(f"tokenizer '{path}': is no tokenizer.json that can be read: {error}") from None


def _tokens(text: pa.ChunkedArray | pa.Array, tokenizer: str) -> Units:
    texts = text.to_pylist()
    encoded = _tokenizer(tokenizer).encode_batch([each or "" for each in texts], add_special_tokens=False)
    at = np.cumsum([0, *(len(each.ids) for each in encoded)])
    ids, spans = [], []
    for each, written in zip(encoded, texts, strict=True):
        ids.append(np.array(each.ids, np.uint64))
        # The library counts characters; a cut needs bytes.
        sizes = [len(c.encode("utf-8", "surrogatepass")) for c in written or ""]
        byte = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        spans.append(byte[np.array(each.offsets, np.int64).reshape(-1, 2)])
    hashes = (np.concatenate([np.zeros(0, np.uint64), *ids]) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(29)
    both = np.concatenate([np.zeros((0, 2), np.int64), *spans])
    return Units(hashes, both[:, 0], both[:, 1], np.ones(len(hashes), np.int64), at)
