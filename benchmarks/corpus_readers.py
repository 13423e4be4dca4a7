"""How fast each reader is: MB of the uncompressed file a CPU second, on one synthetic file of each format.

    python benchmarks/corpus_readers.py [--megabytes 8] [--json]

CPU seconds are this process's, all threads; a first pass over a small file loads code and is not counted. The text is random
words, so compression ratios are not those of real text. wikitext is also given to mwparserfromhell if it is installed.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.corpus import samples
from tests.corpus.helpers import prose

from lmlab.corpus import readers
from lmlab.corpus.readers import Limits, Record
from lmlab.corpus.source import SourceConfig

WIKI = (
    "{{{{Infobox|name=x|a=[[b|c]]}}}}\n'''It''' is a [[thing|great thing]] of [[place]].<ref>{{{{cite|b}}}}</ref> {0}\n\n"
    "== Part ==\n{1} [http://a.example link text]\n* [[one]]\n* two<br/>\n{{| class=x\n|-\n| cell || {{{{y}}}}\n|}}\n"
)


def _texts() -> Iterable[str]:
    draw = random.Random(0)
    pool = [prose(i, 200) for i in range(300)]
    while True:
        yield pool[draw.randrange(len(pool))]


def _until(size: int, make: Callable[[int, str], str | bytes]) -> list[bytes]:
    """Pieces of about `size` bytes together."""
    pieces, total = [], 0
    for number, text in enumerate(_texts()):
        if total >= size:
            break
        piece = make(number, text)
        pieces.append(piece.encode() if isinstance(piece, str) else piece)
        total += len(pieces[-1])
    return pieces


def _line(number: int, text: str) -> str:
    return json.dumps({"text": text, "n": number}) + "\n"


def _wiki(number: int, text: str) -> str:
    half = len(text) // 2
    return samples.wiki_page(f"T{number}", WIKI.format(text[:half], text[half:]), number)


def _qa(number: int, text: str) -> str:
    html = "".join(f"<p>{each}</p>\n" for each in text.split("\n\n")) + "<pre><code>a = 1\n</code></pre>"
    return samples.post(2 * number + 1, 1, html, 3, Title="What?") + samples.post(
        2 * number + 2, 2, html, 5, ParentId=2 * number + 1
    )


def _reply(number: int, text: str) -> str:
    tree, place = divmod(number, 20)
    parent = f"t1_{tree}x{place // 2}" if place else f"t3_{tree}"
    row = {"id": f"{tree}x{place}", "parent_id": parent, "link_id": f"t3_{tree}", "body": text[:300], "score": place}
    return json.dumps({**row, "author": f"a{number % 7}"}) + "\n"


def _tex(number: int, text: str) -> bytes:
    body = text.replace(". ", r" with $x \in \R$ and $\norm{y}$. % note" + "\n")
    head = r"\documentclass{article}\newcommand{\R}{\mathbb{R}}\newcommand{\norm}[1]{\lVert #1 \rVert}\begin{document}"
    return (head + "\n" + body * 10 + r"\end{document}").encode()


def make(folder: Path, size: int) -> dict[str, tuple[Path, int, dict]]:
    """Name -> (file, uncompressed bytes, settings of its source)."""
    found: dict[str, tuple[Path, int, dict]] = {}

    def put(name: str, file: str, data: bytes, compress: Callable[[bytes], bytes], **settings: object) -> None:
        path = folder / file
        path.write_bytes(compress(data))
        found[name] = (path, len(data), dict(settings))

    lines = b"".join(_until(size, _line))
    zst = zstandard.ZstdCompressor().compress
    put("jsonl", "a.jsonl", lines, bytes)
    put("jsonl.gz (C4)", "b.jsonl.gz", lines, gzip.compress)
    put("jsonl.zst (The Pile)", "c.jsonl.zst", lines, zst)
    texts = [text.decode() for text in _until(size, lambda _, text: text)]
    pq.write_table(pa.table({"text": texts}), folder / "d.parquet")
    found["parquet"] = (folder / "d.parquet", sum(map(len, texts)), {})
    put("text", "e.txt", "\n\n".join(texts).encode(), bytes)
    put("books", "f.txt", "\n\n".join(texts).encode()[: 15 << 20], bytes, reader="books")
    pages = _until(
        size, lambda i, text: samples.response(f"http://a.example/{i}", samples.page("T", text.split("\n\n")))
    )
    for extractor in ("resiliparse", "trafilatura"):
        some = pages if extractor == "resiliparse" else pages[: max(1, len(pages) // 8)]
        path = samples.write_warc(folder / f"{extractor}.warc.gz", some)
        found[f"warc.gz, {extractor}"] = (path, sum(map(len, some)), {"web": {"extractor": extractor}})
    wet = _until(
        size, lambda i, text: samples.warc_record("conversion", f"http://a.example/{i}", text.encode(), "text/plain")
    )
    found["wet.gz"] = (samples.write_warc(folder / "g.wet.gz", wet), sum(map(len, wet)), {})
    put(
        "wikipedia .bz2",
        "pages-articles.xml.bz2",
        samples.WIKI_HEAD.encode() + b"".join(_until(size, _wiki)),
        bz2.compress,
    )
    put("wikipedia .xml", "pages-articles.xml", samples.WIKI_HEAD.encode() + b"".join(_until(size, _wiki)), bytes)
    put("stackexchange", "Posts.xml", b"<posts>\n" + b"".join(_until(size, _qa)) + b"</posts>", bytes)
    put("dialogue .zst", "RC_2019-01.zst", b"".join(_until(size, _reply)), zst)
    papers = _until(size, _tex)
    path = samples.write_tar(folder / "arXiv_src_1.tar", {f"1/{i}.gz": gzip.compress(p) for i, p in enumerate(papers)})
    found["latex (arXiv tar)"] = (path, sum(map(len, papers)), {})
    return found


def rate(path: Path, settings: dict) -> tuple[float, int]:
    """(CPU seconds of reading a source, documents)."""
    source = SourceConfig(path=str(path), **settings)
    start = time.process_time()
    n = 0
    for file in readers.listing(source).files:
        n += sum(isinstance(item, Record) for item in readers.read(file, source, Limits()))
    return time.process_time() - start, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "small").mkdir()
        (Path(folder) / "large").mkdir()
        small, large = (
            make(Path(folder) / "small", 20_000),
            make(Path(folder) / "large", options.megabytes * 1_000_000),
        )
        for name, (path, size, settings) in large.items():
            rate(small[name][0], settings)
            seconds, n = rate(path, settings)
            rows.append(
                {"reader": name, "mb_per_cpu_second": size / 1e6 / seconds, "documents": n, "megabytes": size / 1e6}
            )
    try:
        import mwparserfromhell

        text = "".join(WIKI.format(t[:500], t[500:]) for _, t in zip(range(100), _texts(), strict=False))
        start = time.process_time()
        mwparserfromhell.parse(text).strip_code()
        rows.append(
            {"reader": "(mwparserfromhell alone)", "mb_per_cpu_second": len(text) / 1e6 / (time.process_time() - start)}
        )
    except ImportError:
        pass
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['reader']:26} {row['mb_per_cpu_second']:8.1f} MB a CPU second  {row.get('documents', ''):>7} documents"
        )


if __name__ == "__main__":
    main()
