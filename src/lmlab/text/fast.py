"""The fast path of byte-level BPE: tiktoken's encoder with the merges of any `tokenizers` vocabulary, and the same ids.

Two things must hold for the ids to be equal, and both are checked before the fast path is taken.

*The text is cut alike.* The regular expression is one of `VERIFIED`, for which a test compares both libraries on every
code point of Unicode in several surroundings.

*The merges are done alike.* `tokenizers` merges a pair if it is in its list of merges, tiktoken if the two together are in the
vocabulary; both take the pair of lowest rank first, and of several the leftmost. Suppose that every token's own string is
encoded as that token. While no merge has crossed the borders of two neighbours a and b, what happens between those borders
is what happens when the string ab is encoded alone; so, where a and b come to stand side by side and ab is a token, the
encoding of ab alone came to a, b as well and ended in ab: (a, b) is in the list, and is the one pair that makes ab. With that
pair's place as the token's rank, both do the same merges in the same order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from lmlab.text.algorithms import pieces

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VERIFIED = frozenset({pieces(True), pieces(False), GPT2, LLAMA3})
"""Regular expressions that both libraries read alike."""

_LONG_SPACE = re.compile(r"\s{20000}")
"""A run of white space on which tiktoken's regular expressions would exhaust their stack (300,000 passed, 1,000,000 did
not); such a text goes the slow way."""


_NOTHING = "\0no token\0"
"""A special token that is never read as one."""


class FastEncoder:
    """Encodes texts to the ids that `tokenizers` gives. Made by `fast_encoder`."""

    def __init__(self, encoding: Any, slow: Backend) -> None:
        self._encoding, self._slow = encoding, slow

    def __call__(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each text. Raises UnicodeEncodeError for a lone surrogate, as `tokenizers` refuses it."""
        rough = {i for i, text in enumerate(texts) if len(text) >= 20000 and _LONG_SPACE.search(text)}
        for text in texts:
            text.encode()  # tiktoken would write U+FFFD for what is no text
        given = ["" if i in rough else text for i, text in enumerate(texts)]
        if threads > 1:
            found = self._encoding.encode_ordinary_batch(given, num_threads=threads)
        else:
            found = [self._encoding.encode_ordinary(text) for text in given]
        for i in rough:
            found[i] = self._slow.encode(texts[i], add_special_tokens=False).ids
        return found

    def arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same as arrays (uint32, or int64 where ranks are not ids): a fifth faster, since no list of Python's numbers
        is made of them, and nearly without the interpreter's lock (both measured)."""
        found = []
        for text in texts:
            if len(text) >= 20000 and _LONG_SPACE.search(text):
                found.append(np.array(self._slow.encode(text, add_special_tokens=False).ids, np.int64))
                continue
            text.encode()
            found.append(self._encoding.encode_to_numpy(text, disallowed_special=()))
        return found


def fast_encoder(backend: Backend) -> FastEncoder | None:
    """The fast path of a tokenizer, or None where its ids could differ. `backend` reads special tokens as plain text.

    Takes about as long as encoding each token's string once (4,096 tokens: 10 ms; 50,000: 0.2 s).
    """
    data = json.loads(backend.to_str())
    model = data["model"]
    expression = _expression(data)
    plain = all(token["special"] for token in data["added_tokens"])
    simple = model["type"] == "BPE" and not any(
        model.get(key) for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    )
    if expression is None or not plain or not simple or data["normalizer"] is not None or model.get("byte_fallback"):
        return None
    if model.get("ignore_merges"):  # whole pieces are looked up first, by tiktoken too; the check must not
        model["ignore_merges"] = False
    ids = _bytes_to_ids(Backend.from_str(json.dumps(data)), model, {token["content"] for token in data["added_tokens"]})
    if ids is None:
        return None
    import tiktoken

    # tiktoken's "ranks" are both the order of merges and the ids; where the two differ, ids are put back afterwards.
    ranks, place = ids
    # Without any special token tiktoken's encoding to arrays looks for one at each character.
    nothing = {_NOTHING: max(ranks.values()) + 1}
    encoding = tiktoken.Encoding("lmlab", pat_str=expression, mergeable_ranks=ranks, special_tokens=nothing)
    return FastEncoder(encoding if place is None else _Renamed(encoding, place), backend)


class _Renamed:
    """An encoding whose ranks are not the ids."""

    def __init__(self, encoding: Any, place: list[int]) -> None:
        self._encoding, self._place = encoding, place
        self._array = np.array(place, np.int64)

    def encode_ordinary(self, text: str) -> list[int]:
        place = self._place
        return [place[rank] for rank in self._encoding.encode_ordinary(text)]

    def encode_to_numpy(self, text: str, disallowed_special: tuple[()]) -> np.ndarray:
        return self._array[self._encoding.encode_to_numpy(text, disallowed_special=disallowed_special)]

    def encode_ordinary_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        place = self._place
        return [
            [place[rank] for rank in row]
            for row in self._encoding.encode_ordinary_batch(texts, num_threads=num_threads)
        ]


def _expression(data: dict[str, Any]) -> str | None:
    """The verified regular expression that a pre-tokenizer cuts text by, if it is byte-level and does nothing else."""
    found = data["pre_tokenizer"] or {}
    steps = found.get("pretokenizers", [found])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return GPT2 if last.get("use_regex", True) else None
    first = steps[0]
    known = len(steps) == 2 and not last.get("use_regex", True) and first.get("type") == "Split"
    if not known or first.get("behavior") != "Isolated" or first.get("invert"):
        return None
    expression = first["pattern"].get("Regex")
    return expression if expression in VERIFIED else None


def byte_signs() -> dict[str, int]:
    """GPT-2's printable sign of each byte: {sign: byte}. Bytes that print stand for themselves, the others are moved up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _bytes_to_ids(
    backend: Backend, model: dict[str, Any], special: set[str]
) -> tuple[dict[bytes, int], list[int] | None] | None:
    """(bytes of each token -> rank, the id of each rank or None where rank and id are one); None where the merges could
    be done otherwise: see the top of this file."""
    signs = byte_signs()
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    order = {pair[0] + pair[1]: place for place, pair in reversed(list(enumerate(pairs)))}
    made: dict[str, int] = {}
    for token, i in model["vocab"].items():
        if token in special and token not in order and len(token) > 1:
            continue
        if any(sign not in signs for sign in token):
            return None
        if len(token) == 1:
            made[token] = -1
        elif token in order:
            alone = backend.model.tokenize(token)
            if len(alone) != 1 or alone[0].id != i:
                return None
            made[token] = order[token]
        else:
            return None
    if set(signs) - set(made):
        return None
    by_rank = sorted(made, key=lambda token: (made[token], model["vocab"][token]))
    ids = [model["vocab"][token] for token in by_rank]
    as_bytes = [bytes(signs[sign] for sign in token) for token in by_rank]
    if ids == sorted(ids):
        return dict(zip(as_bytes, ids)), None
    return {token: rank for rank, token in enumerate(as_bytes)}, ids
