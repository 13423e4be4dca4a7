"""Small corpora and a way to build one without a recipe."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.dedup.shuffle import Part
from lmlab.corpus.stage import STAGE
from lmlab.corpus.steps.step import DOCUMENT
from lmlab.progress import Metrics
from lmlab.run import Context, digest

WORDS = """
    the of and to that have with be river stone light winter garden letter morning quiet window paper bridge market
    teacher silver mountain travel answer number system little between water family reason history simple music
    country question evening engine village summer doctor language picture island forest minute second planet
""".split()  # noqa: SIM905


def prose(seed: int, words: int = 120) -> str:
    """Text of its own, which passes the prose rules: random words in sentences and paragraphs."""
    draw = random.Random(seed)
    sentences = []
    while words > 0:
        n = draw.randint(7, 13)
        sentences.append(" ".join(draw.choice(WORDS) for _ in range(n)).capitalize() + ".")
        words -= n
    return "\n\n".join(" ".join(sentences[i : i + 3]) for i in range(0, len(sentences), 3))


def table(*texts: str, kind: str = "prose", split: str = "train") -> pa.Table:
    """A table of documents d/0, d/1, ..."""
    rows = [
        {
            "id": f"d/{i}",
            "source": "d",
            "path": str(i),
            "row": 0,
            "split": split,
            "kind": kind,
            "text": text,
            "bytes_read": len(text.encode()),
            "keep": True,
        }
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=DOCUMENT)


def parts_of(folder: Path, documents: pa.Table, rows: int) -> list[Part]:
    """The documents as shards of so many rows, three to a row group."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, max(1, len(documents)), rows)):
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(documents.slice(start, rows), path, row_group_size=3)
        parts.append(Part(number, path, digest(path.read_bytes().hex())))
    return parts


def through(parts: list[Part]) -> list[dict[str, Any]]:
    """All documents of parts, with their steps applied."""
    return [row for part in parts for each in part.final() for row in each.to_pylist()]


def build(out: Path, **settings: Any) -> dict[str, Any]:
    """Run the stage into `out` and return its headline."""
    out.mkdir(parents=True, exist_ok=True)
    config = CorpusConfig.model_validate(settings)
    STAGE.sources(config)
    return dict(STAGE.run(Context("corpus", "corpus", config, {}, out, 0, Metrics(out))))


def hashes(folder: Path) -> dict[str, str]:
    """Of everything that a stage leaves, times aside."""
    logs = ("metrics.jsonl", "plan.json")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in logs and "tfevents" not in p.name]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def prose_folder(root: Path, n: int = 40) -> Path:
    """A folder of n text files of their own."""
    for i in range(n):
        path = root / f"chapter{i % 4}" / f"page{i:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(i), encoding="utf-8")
    return root
