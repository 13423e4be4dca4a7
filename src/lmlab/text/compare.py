"""Tokenizers side by side on the same documents: bytes per token, use of the vocabulary, what is lost, speed."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab import measure
from lmlab.errors import Refused
from lmlab.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Passage:
    """A document: where it is from, its language (a code, `code` for programs, `und` where unknown) and its text."""

    source: str
    language: str
    text: str


def round_trip(tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What does not come back: {"restored": share of documents that do, "bytes", "bytes_lost", "unknown_tokens",
    "unknown_bytes"}.

    `bytes_lost`: UTF-8 bytes of characters that a document has more often than its decoded tokens (their order is not
    looked at, so it is a lower bound). `unknown_bytes`: bytes of the text under unknown tokens.
    """
    same = lost = unknown_tokens = unknown_bytes = 0
    for text, ids in zip(texts, encoded, strict=True):
        back = tokenizer.decode(ids)
        if back == text:
            same += 1
        else:
            missing = Counter(text) - Counter(back)
            lost += sum(len(character.encode()) * count for character, count in missing.items())
        if tokenizer.unk_id is not None and tokenizer.unk_id in ids:
            encoding = tokenizer.encoding(text)
            spans = [span for i, span in zip(encoding.ids, encoding.offsets) if i == tokenizer.unk_id]
            unknown_tokens += len(spans)
            unknown_bytes += sum(len(text[low:high].encode()) for low, high in spans)
    return {
        "restored": measure.proportion(same, len(texts)).to_json(),
        "bytes": sum(len(text.encode()) for text in texts),
        "bytes_lost": lost,
        "unknown_tokens": unknown_tokens,
        "unknown_bytes": unknown_bytes,
    }


def compare(tokenizers: dict[str, Tokenizer], passages: Sequence[Passage], rounds: int = 3) -> list[dict[str, Any]]:
    """A row a tokenizer. Intervals are over documents; `tokens_relative` is its tokens over the first one's on the same
    documents, in pairs. `speed`: megabytes a CPU second of the process, the median of the rounds, which alternate.
    Raises Refused where there is no text.
    """
    passages = [passage for passage in passages if passage.text]
    if not passages:
        raise Refused("tokenizer compare: no text: expected files, a folder or a run with a corpus after --text")
    texts = [passage.text for passage in passages]
    sizes = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    speeds: dict[str, list[float]] = {name: [] for name in tokenizers}
    encoded: dict[str, list[list[int]]] = {}
    for tokenizer in tokenizers.values():
        tokenizer.encode_many(texts[:1], 1)  # whatever is built at first use is not speed
    for _ in range(rounds):
        for name, tokenizer in tokenizers.items():
            began = time.process_time()
            encoded[name] = tokenizer.encode_many(texts, 1)
            speeds[name].append(sizes.sum() / 1e6 / max(time.process_time() - began, 1e-9))
    tokens = {name: np.array([len(ids) for ids in rows], dtype=np.float64) for name, rows in encoded.items()}
    first = next(iter(tokens.values()))
    groups = {key: np.array([getattr(passage, key) for passage in passages]) for key in ("source", "language")}
    rows = []
    for name, tokenizer in tokenizers.items():
        used = np.unique(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded[name]]))
        rows.append(
            {
                "name": name,
                "algorithm": tokenizer.algorithm,
                "vocab_size": tokenizer.vocab_size,
                "bytes_per_token": measure.ratio(sizes, tokens[name]).to_json(),
                "tokens_relative": measure.ratio(tokens[name], first).to_json(),
                **{f"by_{key}": _by(names, sizes, tokens[name]) for key, names in groups.items()},
                "vocabulary_used": {"tokens": len(used), "share": len(used) / tokenizer.vocab_size},
                "round_trip": round_trip(tokenizer, texts, encoded[name]),
                "speed": {
                    "megabytes_per_cpu_second": statistics.median(speeds[name]),
                    "rounds": [round(each, 3) for each in speeds[name]],
                    "path": "tokenizers" if tokenizer.fast is None else "tiktoken",
                },
            }
        )
    return rows


def _by(names: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    groups = {str(name): names == name for name in np.unique(names)}
    return {name: measure.ratio(sizes[rows], tokens[rows]).to_json() for name, rows in groups.items()}


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a text for people."""
    lines = []
    for row in rows:
        trip, speed, used = row["round_trip"], row["speed"], row["vocabulary_used"]
        lines += [
            f"{row['name']}: {row['algorithm']}, {row['vocab_size']:,} tokens, {used['tokens']:,} of them used "
            f"({used['share']:.1%})",
            f"  bytes per token     {_score(row['bytes_per_token'])}; tokens over the first's "
            f"{_score(row['tokens_relative'])}",
            *(
                f"    {key:<8} {name:<16} {_score(score)}"
                for key in ("source", "language")
                for name, score in row[f"by_{key}"].items()
            ),
            f"  documents restored  {_score(trip['restored'])}; {trip['bytes_lost']:,} of {trip['bytes']:,} bytes lost, "
            f"{trip['unknown_bytes']:,} under {trip['unknown_tokens']:,} unknown tokens",
            f"  speed               {speed['megabytes_per_cpu_second']:.1f} MB a CPU second ({speed['path']})",
        ]
    return "\n".join(lines)


def _score(score: dict[str, Any]) -> str:
    ends = "" if score["low"] is None else f" [{score['low']:.3f}, {score['high']:.3f}]"
    return f"{score['value']:.3f}{ends} (n={score['n']})"
