"""Files that were made to crash a reader or to fill its memory: none does, and what is whole beside them is read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import zstandard

from lmlab.corpus import readers
from lmlab.corpus.readers import Limits
from lmlab.corpus.source import SourceConfig
from tests.corpus import samples
from tests.corpus.helpers import build, prose, prose_folder
from tests.corpus.samples import read, records, rejects, texts

GOOD = json.dumps({"text": "good"}).encode() + b"\n"
MEBIBYTE = 1 << 20
SMALL = Limits(record=MEBIBYTE, expansion=20, allowance=8 * MEBIBYTE)
MEASURE = """
import json, resource, sys
from lmlab.corpus import readers
from lmlab.corpus.readers import Limits, Record, Reject
from lmlab.corpus.source import SourceConfig
import lmlab.corpus.readers.files

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

source = SourceConfig(path=sys.argv[1])
before, texts, reasons = peak(), 0, []
for file in readers.listing(source).files:
    for item in readers.read(file, source, Limits(expansion=1e9)):
        texts += isinstance(item, Record)
        if isinstance(item, Reject):
            reasons.append(item.reason)
print(json.dumps({"grown": peak() - before, "texts": texts, "reasons": reasons}))
"""


def resident(path: Path) -> dict:
    """Read in a process of its own: how far its resident memory grew (MiB), how many texts, which rejects."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def measured(path: Path, limits: Limits = SMALL, **settings: object) -> tuple[list, float]:
    """(all that a source yields, the MiB that Python's allocators held at most)."""
    tracemalloc.start()
    try:
        items = read(path, limits, **settings)
        return items, tracemalloc.get_traced_memory()[1] / MEBIBYTE
    finally:
        tracemalloc.stop()


def write_repeated_zst(path: Path, before: bytes, unit: bytes, times: int, after: bytes) -> Path:
    """A zstandard file of several frames, made without ever making what it stands for."""
    compress = zstandard.ZstdCompressor().compress
    frame = compress(unit)
    with path.open("wb") as file:
        file.write(compress(before))
        for _ in range(times):
            file.write(frame)
        file.write(compress(after))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", ".zst"])
def test_a_line_of_two_gigabytes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"line.jsonl{ending}"
    if ending:
        write_repeated_zst(path, GOOD, b"a" * (16 * MEBIBYTE), 128, b"\n" + GOOD)
        assert path.stat().st_size < MEBIBYTE
    else:
        write_sparse(path, 2 << 30)
    found = resident(path)
    assert found["texts"] == 2 and found["reasons"] == ["longer than 16,777,216 bytes"]
    assert found["grown"] < 150


def write_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(GOOD)
        file.seek(size, io.SEEK_CUR)
        file.write(b"\n" + GOOD)


def test_a_long_line_is_passed_over_in_pieces(tmp_path: Path) -> None:
    write_sparse(tmp_path / "line.jsonl", 200 * MEBIBYTE)
    items, peak = measured(tmp_path / "line.jsonl")
    assert texts(items) == ["good", "good"] and peak < 5
    assert [r.reason for r in rejects(items)] == ["longer than 1,048,576 bytes"]


COMPRESS = {
    "gz": lambda raw: gzip.compress(raw, 6),
    "zst": zstandard.ZstdCompressor().compress,
    "bz2": lambda raw: bz2.compress(raw, 1),
    "xz": lambda raw: lzma.compress(raw, preset=0),
}


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_bomb_stops_at_its_limit(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"bomb.jsonl.{ending}"
    compress = COMPRESS[ending]
    path.write_bytes(compress(GOOD) + compress(b"\0" * (4 * MEBIBYTE)) * 20)
    items, peak = measured(path)
    assert texts(items) == ["good"], "what was read before stays"
    assert len(rejects(items)) == 1 and "a decompression bomb?" in rejects(items)[0].reason
    assert peak < 20


def test_much_text_that_compresses_well_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 50_000))
    assert len(texts(read(path))) == 50_000
    assert Limits().expanded(1000) == (128 << 20) + 200_000


def test_a_window_larger_than_allowed_is_refused_with_the_setting(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as writer:
        writer.write(GOOD)  # without the size known, the frame states its window
    path = tmp_path / "RS.jsonl.zst"
    path.write_bytes(out.getvalue())
    assert "max_window_bytes" in rejects(read(path))[0].reason
    assert texts(read(path, Limits(window=1 << 28))) == ["good"]
    (tmp_path / "x.jsonl.xz").write_bytes(
        lzma.compress(GOOD, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 27}])
    )
    assert "max_window_bytes" in rejects(read(tmp_path / "x.jsonl.xz", Limits(window=1 << 24)))[0].reason


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2", "xz"])
@pytest.mark.parametrize("reader", ["jsonl", "wikipedia", "stackexchange", "submissions", "dialogue", "warc", "text"])
def test_a_file_that_ends_early_keeps_what_was_whole_and_says_so(tmp_path: Path, reader: str, ending: str) -> None:
    words = [prose(i, 40).replace("\n", " ") for i in range(1000)]
    lines = {
        "jsonl": [json.dumps({"text": each}) for each in words],
        "submissions": [json.dumps({"title": "t", "selftext": each, "score": 9, "is_self": True}) for each in words],
        "dialogue": [
            json.dumps({"id": f"{i}{k}", "parent_id": None if k == "a" else f"{i}a", "link_id": f"{i}", "body": each})
            for i, each in enumerate(words) for k in "ab"
        ],
        "wikipedia": [samples.WIKI_HEAD, *(samples.wiki_page(f"T{i}", each, i) for i, each in enumerate(words))],
        "stackexchange": [x for i, each in enumerate(words) for x in (
            samples.post(2 * i + 1, 1, each, Title="t"), samples.post(2 * i + 2, 2, each, ParentId=2 * i + 1))],
        "warc": [samples.response(f"http://a.example/{i}", samples.page("t", [each] * 3)).decode() for i, each in enumerate(words)],
        "text": [each + "\n\n" for each in words],
    }[reader]  # fmt: skip
    data = ("\n" if reader in ("jsonl", "submissions", "dialogue") else "").join(lines).encode()
    whole = COMPRESS[ending](data)
    path = tmp_path / f"data.{ending}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    items = read(path, Limits(cut=2000), reader=reader)
    bad = rejects(items)
    assert 0 < len(records(items)) < 1000
    assert len(bad) == 1 and bad[0].reason.startswith("cut off or damaged"), bad[:3]


def test_a_zip_bomb_in_a_book(tmp_path: Path) -> None:
    path = samples.write_epub(tmp_path / "bomb.epub", {"a.xhtml": "<p>" + "x" * (30 * MEBIBYTE) + "</p>"})
    assert path.stat().st_size < MEBIBYTE
    items, peak = measured(path)
    assert not texts(items) and "becomes longer than" in rejects(items)[0].reason and peak < 10
    with zipfile.ZipFile(tmp_path / "books.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(40):
            archive.writestr(f"{i:02d}.txt", "y" * (MEBIBYTE - 1))
    items, _ = measured(tmp_path / "books.zip", reader="books")
    assert 5 < len(texts(items)) < 15, "all together are limited too"


def test_names_in_archives_lead_nowhere(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "books.zip", "w") as archive:
        for name in ("../../evil.txt", "/etc/evil.txt", "C:\\evil.txt", "fine.txt"):
            archive.writestr(name, "some text")
    items = read(tmp_path / "books.zip", reader="books")
    assert texts(items) == ["some text"] and len(rejects(items)) == 3
    assert all("leads out of its archive" in reject.reason for reject in rejects(items))
    path = tmp_path / "paper.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (
            ("../../evil.tex", b"evil"),
            ("main.tex", rb"\begin{document}A \input{../../../etc/passwd} b\end{document}"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for kind, name in ((tarfile.SYMTYPE, "link.tex"), (tarfile.LNKTYPE, "hard.tex"), (tarfile.CHRTYPE, "dev.tex")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    items = read(path)
    assert texts(items) == ["A  b"] and len(rejects(items)) == 1
    assert {each.name for each in tmp_path.iterdir()} == {"books.zip", "paper.tar.gz"}, "nothing was unpacked"


def test_a_tar_header_of_a_gigabyte(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    path = tmp_path / "paper.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT)) + gzip.compress(b"0" * (8 * MEBIBYTE)) * 16)
    items, peak = measured(path, reader="latex")
    assert not texts(items) and len(rejects(items)) == 1 and peak < 40


LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">'
    '<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e SYSTEM "file:///etc/passwd">]>\n'
)


def test_entities_of_a_document_are_never_expanded(tmp_path: Path) -> None:
    wiki = samples.wiki_page("A", "one") + samples.wiki_page("B", "LAUGH").replace("LAUGH", "&d;")
    wiki += samples.wiki_page("C", "FILE").replace("FILE", "&e;") + samples.wiki_page("D", "two")
    path = tmp_path / "pages-articles.xml"
    path.write_text(LAUGHS + samples.WIKI_HEAD + wiki)
    items = read(path)
    assert texts(items) == ["A\n\none", "D\n\ntwo"] and len(rejects(items)) == 2
    path = samples.write_posts(tmp_path / "Posts.xml", [
        LAUGHS, samples.post(1, 1, "LAUGH").replace("LAUGH", "&d;"), samples.post(2, 1, "q"), 
        samples.post(3, 2, "a", ParentId=2)])  # fmt: skip
    items = read(path)
    assert texts(items) == ["Q: q\n\nA: a"]
    assert [r.reason.split(":")[0] for r in rejects(items)] == [
        "expected a whole <row .../>",
        "an entity that XML does not have",
    ]
    package = '<?xml version="1.0"?>' + LAUGHS + "<package><metadata><title>&d;</title></metadata></package>"
    items = read(samples.write_epub(tmp_path / "b.epub", {"a.xhtml": "x"}, package))
    assert "declares entities" in rejects(items)[0].reason
    bomb = LAUGHS + "<html><body><p>&d;&e;</p><p>A chapter.</p></body></html>"
    with zipfile.ZipFile(samples.write_epub(tmp_path / "c.epub", {"b.xhtml": "x"}), "a") as archive:
        archive.writestr("OEBPS/b.xhtml", bomb)
    found = texts(read(tmp_path / "c.epub"))
    assert len(found) == 1 and "A chapter." in found[0] and "root:" not in found[0] and "haha" * 20 not in found[0]


def test_deep_nesting_of_every_kind(tmp_path: Path) -> None:
    deep = 100_000
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ' + b"[" * deep + b"]" * deep + b"}\n" + b"[" * deep + b"\n" + GOOD)
    items = read(tmp_path / "a.jsonl")
    assert texts(items) == ["good"] and len(rejects(items)) == 2
    page = "<div>" * deep + "<p>" + prose(1) + "</p>" + "</div>" * deep
    crawl = samples.write_warc(tmp_path / "c.warc.gz", [samples.response("http://a.example/1", page.encode())])
    for extractor in ("resiliparse", "trafilatura"):
        assert "nested deeper" in rejects(read(crawl, web={"extractor": extractor}))[0].reason
    crawl = samples.write_warc(tmp_path / "d.warc.gz", [
        samples.response("http://a.example/1", ("<div><p>some words</p></div>" * 5000).encode())])  # fmt: skip
    assert len(read(crawl, web={"extractor": "trafilatura"})) == 1
    wiki = [
        samples.wiki_page("A", "{{" * deep + "x" + "}}" * deep),
        samples.wiki_page("B", "[[" * deep + "text" * 1000),
        samples.wiki_page("C", "x<ref>" * deep),
        samples.wiki_page("D", "<b>" * deep + "&lt;" * deep).replace("LAUGH", ""),
        samples.wiki_page("E", "fine"),
    ]
    assert texts(read(samples.write_wiki(tmp_path / "x-pages-articles.xml.bz2", wiki)))[-1] == "E\n\nfine"
    path = tmp_path / "y-pages-articles.xml"
    path.write_text(samples.WIKI_HEAD + "<page>\n" + "<a>" * deep + "\n</page>\n" + samples.wiki_page("E", "fine"))
    items = read(path)
    assert texts(items) == ["E\n\nfine"] and "nested deeper" in rejects(items)[0].reason
    macros = "".join(rf"\newcommand{{\x{chr(98 + i)}}}{{\x{chr(97 + i)}\x{chr(97 + i)}}}" for i in range(24))
    tex = rf"\newcommand{{\xa}}{{boom}}{macros}\begin{{document}}Text \xy \textbf{'{' * deep}\end{{document}}"
    (tmp_path / "bomb.tex").write_text(tex)
    found = read(tmp_path / "bomb.tex", Limits(record=MEBIBYTE), reader="latex")
    assert len(found) == 1 and len(texts(found)[0]) <= MEBIBYTE
    loop = {"main.tex": rb"\begin{document}A \input{b}\end{document}", "b.tex": rb"B \input{main} \input{b} \input{b}"}
    assert len(texts(read(samples.write_tar(tmp_path / "loop.tar", loop)))[0]) < 10_000


def test_control_characters_and_nul(tmp_path: Path) -> None:
    strange = "a\u0000b\u001bc\u0085d\u2028e\ufefff\u202eg"
    rows = [{"text": strange}, {"text": "good"}]
    samples.write_lines(tmp_path / "a.jsonl", rows)
    assert texts(read(tmp_path / "a.jsonl")) == [strange, "good"], "JSON may hold them: steps decide on them"
    path = tmp_path / "pages-articles.xml"
    path.write_text(samples.WIKI_HEAD + samples.wiki_page("A", "x\x01y") + samples.wiki_page("B", "fine"))
    items = read(path)
    assert texts(items) == ["B\n\nfine"] and "not XML" in rejects(items)[0].reason
    crawl = samples.write_warc(
        tmp_path / "c.warc.gz",
        [samples.response("http://a.example/\0\x1b", samples.page("T\0", [prose(1)]) + b"\0\x01\xff\xfe")],
    )  # fmt: skip
    assert len(records(read(crawl))) == 1


def test_a_build_keeps_going_over_all_of_it(tmp_path: Path) -> None:
    """The steps too take what readers let through, and the counts are in the statistics."""
    root = prose_folder(tmp_path / "in", 60)
    rows = [{"text": prose(900 + i) + "\u0000\u001b\u202e\ud7ff" + "\U0010ffff"} for i in range(20)]
    samples.write_lines(root / "strange.jsonl.gz", rows)
    samples.write_warc(root / "c.warc.gz", [
        samples.response(f"http://a.example/{i}", samples.page("T", prose(2000 + i).split("\n\n")), status)
        for i, status in enumerate(["200 OK"] * 5 + ["404 Not Found"] * 2)])  # fmt: skip
    samples.write_lines(
        root / "pile.jsonl", [{"text": prose(3000 + i), "meta": {"pile_set_name": "Books3"}} for i in range(5)]
    )
    (root / "empty.jsonl").write_bytes(b"")
    out = tmp_path / "out"
    build(out, sources=[
        {"name": "mixed", "path": str(root), "files": "*[!l]"},
        {"name": "pile", "path": str(root / "pile.jsonl"), "source_field": "meta.pile_set_name", "meta_fields": ["meta"]},
    ])  # fmt: skip
    statistics = json.loads((out / "statistics.json").read_text())
    assert statistics["passed_over"]["mixed"]["HTTP status 404"] == 2
    assert sum(cell["read"]["documents"] for cell in statistics["sources"]["mixed"].values()) == 60 + 20 + 5
    assert sum(cell["read"]["documents"] for cell in statistics["sources"]["Books3"].values()) == 5


def test_links_in_a_circle_pipes_and_links_to_nowhere_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    (tmp_path / "x.txt").symlink_to(tmp_path / "y.txt")
    (tmp_path / "y.txt").symlink_to(tmp_path / "x.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    found = readers.listing(SourceConfig(path=str(tmp_path)))
    assert [file.relative for file in found.files] == ["a.txt"]
    assert found.skipped == {"(broken link)": 4, "(not a file)": 1}
    assert texts(read(tmp_path)) == ["fine"]
