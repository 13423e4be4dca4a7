"""Passages of real text labelled by hand, kept as references: the text itself stays where it is.

A line of the file: {"set": "stdlib" | "data", "file": ..., "at": [first, last character], "sha256": of the passage,
"spans": [[start, end, kind], ...]}. A passage whose hash is not that of the text here (another version of Python, no
LMLAB_DATA) is passed over and counted.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sysconfig
from functools import lru_cache
from pathlib import Path

Spans = list[tuple[int, int, str]]


@lru_cache(maxsize=64)
def text_of(kind: str, file: str) -> str:
    """The whole text of a file of the running Python's library, or of the benchmark folder; "" where it is not there."""
    folder = sysconfig.get_paths()["stdlib"] if kind == "stdlib" else os.environ.get("LMLAB_DATA", "")
    path = Path(folder) / file
    if not folder or not path.is_file():
        return ""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8", errors="replace")
    if ".jsonl" not in path.name:
        return text
    return "\n\n".join(string for line in text.splitlines() for string in _strings(json.loads(line)))


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [string for each in inside for string in _strings(each)]


def passages(labels: Path) -> tuple[list[tuple[str, Spans]], int]:
    """([(text, spans)], how many are not here)."""
    found, absent = [], 0
    for line in labels.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        first, last = row["at"]
        text = text_of(row["set"], row["file"])[first:last]
        if hashlib.sha256(text.encode()).hexdigest()[:16] != row["sha256"]:
            absent += 1
            continue
        found.append((text, [(start, end, kind) for start, end, kind in row["spans"]]))
    return found, absent
