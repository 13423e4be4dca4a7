"""Each source's reader on a small file of the real format: what is kept, what is passed over, what is set aside."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.corpus import readers
from lmlab.corpus.readers import Limits
from lmlab.corpus.readers.links import canonical, links
from lmlab.corpus.source import SourceConfig
from tests.corpus import samples
from tests.corpus.helpers import prose
from tests.corpus.samples import packed_tar, passed, post, read, records, rejects, response, texts, wiki_page

STORY = [prose(i, 60).replace("\n\n", " ") for i in range(4)]


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    german = ["Größe und Maß der Straße sind bekannt. " * 8, "Der Fluß läuft über das Tal hinaus. " * 8]
    chunk = samples.page("Chunked", STORY)
    chunked = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (100, chunk[:100], len(chunk) - 100, chunk[100:])
    return samples.write_warc(
        tmp_path / "CC-MAIN-20240229.warc.gz",
        [
            samples.warc_record("request", "http://a.example/1", b"GET / HTTP/1.1\r\n\r\n"),
            response("http://a.example/1", samples.page("First", STORY)),
            response("http://a.example/2", b"gone", "404 Not Found"),
            response("http://a.example/3.png", b"\x89PNG", fields={"Content-Type": "image/png"}),
            response("http://a.example/4", samples.page("Zip", STORY), fields={"Content-Encoding": "gzip"}),
            response(
                "http://a.example/5", gzip.compress(samples.page("Zip", STORY)), fields={"Content-Encoding": "gzip"}
            ),
            response("http://a.example/6", chunked, fields={"Transfer-Encoding": "chunked"}),
            response(
                "http://a.example/7",
                samples.page("Alt", german).decode().replace('<meta charset="utf-8">', "").encode("latin-1"),
                fields={"Content-Type": "text/html; charset=ISO-8859-1"},
            ),
            response("http://a.example/8", b"<html><body><script>x()</script></body></html>"),
        ],
    )


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_warc_pages_become_their_main_text(crawl: Path, extractor: str) -> None:
    items = read(crawl, web={"extractor": extractor})
    assert not rejects(items)
    kept = records(items)
    assert [r.meta["url"][-1] for r in kept] == ["1", "4", "5", "6", "7"]  # type: ignore[index]
    assert all(r.meta["date"] == "2024-02-29T01:02:03Z" for r in kept)  # type: ignore[index]
    for record in kept[:4]:
        assert all(each.split(".")[0] in record.text for each in STORY)
        assert not any(word in record.text for word in ("Shop now", "Cookie policy", "tracker", "color"))
    assert "Größe und Maß der Straße" in kept[4].text and "Fluß" in kept[4].text
    assert sorted(passed(items)) == ["HTTP status 404", "no main text", "not HTML"]


def test_warc_framing_agrees_with_fastwarc(crawl: Path) -> None:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    from lmlab.corpus.readers.records import open_bytes
    from lmlab.corpus.readers.web import WarcRecord, warc_records

    theirs = [
        (each.headers["WARC-Target-URI"], each.reader.read())
        for each in ArchiveIterator(io.BytesIO(crawl.read_bytes()), WarcRecordType.response, parse_http=False)
    ]
    with open_bytes(crawl) as stream:
        mine = [
            (each.fields["warc-target-uri"], each.content)
            for each in warc_records(stream, "response", Limits())
            if isinstance(each, WarcRecord)
        ]
    assert len(mine) == 8 and mine == theirs


def test_after_a_broken_warc_record_reading_goes_on(tmp_path: Path) -> None:
    good = [response(f"http://a.example/{i}", samples.page(f"Page {i}", STORY)) for i in range(4)]
    path = tmp_path / "crawl.warc"
    path.write_bytes(
        good[0]
        + b"this is no record\r\nnor is this\r\n"
        + good[1]
        + b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: many\r\n\r\n"
        + good[2]
        + good[3][: len(good[3]) // 2]
    )
    items = read(path)
    assert [r.meta["url"][-1] for r in records(items)] == ["0", "1", "2"]  # type: ignore[index]
    assert [r.reason.split(":")[0].split("(")[0].strip() for r in rejects(items)] == [
        "expected a WARC record, found other bytes",
        "a WARC header without a length",
        "cut off or damaged",
    ]


def test_wet_text_is_read_as_it_is(tmp_path: Path) -> None:
    path = samples.write_warc(
        tmp_path / "CC-MAIN-1.warc.wet.gz",
        [
            samples.warc_record("conversion", "http://a.example/1", "Schöne Worte\nzwei".encode(), "text/plain"),
            samples.warc_record("conversion", "http://a.example/2", b"\xff\xfe bad", "text/plain"),
            samples.warc_record("conversion", "http://a.example/3", "第三".encode(), "text/plain"),
        ],
    )
    items = read(path)
    assert texts(items) == ["Schöne Worte\nzwei", "第三"]
    assert [r.reason.split(":")[0] for r in rejects(items)] == ["not UTF-8"]


def test_wikipedia_articles_without_redirects_and_other_namespaces(tmp_path: Path) -> None:
    article = (
        "{{Infobox|name=x|image=[[Datei:a.jpg]]}}\n[[Datei:b.jpg|mini|Ein [[Bild]] hier]]\n"
        "'''Köln''' ({{IPA|xyz}}) ist eine [[Stadt|große Stadt]] am [[Rhein]].<ref name=\"a/b\">Quelle</ref>"
        '<ref name="a/b" /> Mehr & mehr.\n\n== Geschichte ==\nAlt &nbsp;und neu.\n* eins\n* zwei\n'
        '{| class="wikitable"\n|-\n| zelle || {{x}}\n|}\n== Weblinks ==\n[[Kategorie:Ort]]\n'
    )
    path = samples.write_wiki(
        tmp_path / "dewiki-20240101-pages-articles.xml.bz2",
        [
            wiki_page("Köln", article, 7),
            wiki_page("Colonia", "#REDIRECT [[Köln]]", 8, redirect="Köln"),
            wiki_page("Diskussion:Köln", "Text", 9, ns=1),
            wiki_page("Modul", "return 1", 10, model="Scribunto"),
            wiki_page("Kaputt", "x", 11).replace("<ns>0</ns>", "<ns>0<ns>"),
            wiki_page("Bonn", "Bonn ist eine Stadt.", 12),
        ],
    )
    items = read(path)
    koeln, bonn = records(items)
    assert koeln.text == (
        "Köln\n\nKöln ist eine große Stadt am Rhein. Mehr & mehr.\n\nGeschichte\n\nAlt und neu.\n- eins\n- zwei"
    )
    assert koeln.meta == {"title": "Köln", "id": "7", "date": "2024-01-02T03:04:05Z"}
    assert bonn.text == "Bonn\n\nBonn ist eine Stadt." and bonn.row == 5
    assert passed(items) == ["redirect", "namespace 1", "content model Scribunto"]
    assert len(rejects(items)) == 1 and "not XML" in rejects(items)[0].reason
    assert len(records(read(path, namespaces=[0, 1]))) == 3


def test_c4_and_the_pile(tmp_path: Path) -> None:
    rows = [{"text": f"page {i}", "timestamp": "2019", "url": f"http://{i}.example"} for i in range(3)]
    samples.write_lines(tmp_path / "c4-train.00000-of-01024.json.gz", rows)
    items = read(tmp_path, meta_fields=["url"])
    assert texts(items) == ["page 0", "page 1", "page 2"]
    assert records(items)[1].meta == {"url": "http://1.example"}
    pile = [{"text": f"doc {i}", "meta": {"pile_set_name": name}} for i, name in enumerate(
        ["Pile-CC", "Wikipedia (en)", "PubMed Central"])]  # fmt: skip
    path = samples.write_lines(tmp_path / "00.jsonl.zst", [*pile, {"text": "x", "meta": {}}])
    items = read(path, source_field="meta.pile_set_name")
    assert [r.source for r in records(items)] == ["Pile-CC", "Wikipedia-en", "PubMed-Central"]
    assert "meta.pile_set_name" in rejects(items)[0].reason


GUTENBERG = """The Project Gutenberg EBook of A Tale, by A. Writer

This eBook is for the use of anyone anywhere.

Title: A Tale

Author: A. Writer

Character set encoding: {charset}

*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***



Produced by Some Body and the Online
Distributed Proofreading Team


CHAPTER I

It was a café in the old town.

{body}

End of the Project Gutenberg EBook of A Tale, by A. Writer

*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***

***** This file should be named 1.txt *****
Updated editions will replace the previous one.
"""


def test_books_without_project_gutenbergs_header_and_footer(tmp_path: Path) -> None:
    body = "\n\n".join(prose(i) for i in range(400))
    tale = GUTENBERG.format(charset="ISO-8859-1", body=body)
    (tmp_path / "1.txt").write_bytes(tale.encode("latin-1"))
    (tmp_path / "2.txt").write_text("No header at all.\n\n*** not a marker")
    (tmp_path / "cover.jpg").write_bytes(b"\xff\xd8")
    items = read(tmp_path, reader="books")
    first, second = records(items)
    assert first.text.startswith("CHAPTER I\n\nIt was a café") and first.text.endswith(prose(399))
    assert len(first.text) > 65536, "a book is one document"
    assert first.meta == {"title": "A Tale", "author": "A. Writer"}
    assert second.text == "No header at all.\n\n*** not a marker"
    modern = tale.replace("START OF THIS", "START OF THE").replace(
        "End of the Project Gutenberg EBook of A Tale, by A. Writer", ""
    )
    (tmp_path / "1.txt").write_bytes(modern.replace("ISO-8859-1", "UTF-8").encode())
    assert records(read(tmp_path, reader="books"))[0].text == first.text


def test_epub_chapters_in_the_order_of_the_spine(tmp_path: Path) -> None:
    chapters = {
        "one.xhtml": "<h1>One</h1><p>First words &amp; more.</p><script>x()</script>",
        "two%20b.xhtml": "<h1>Two</h1><p>Then <em>these</em>.</p>",
    }
    path = samples.write_epub(tmp_path / "book.epub", {"one.xhtml": chapters["one.xhtml"], "a.xhtml": "<p>Last.</p>"})
    found = records(read(path))
    assert [r.text for r in found] == ["One\n\nFirst words & more.\n\nLast."]
    assert found[0].meta == {"title": "The Book", "author": "A. Writer", "language": "en"}
    assert texts(read(tmp_path)) == texts(read(path)), "auto knows an EPUB by its name"
    path.write_bytes(path.read_bytes()[:300])
    assert "damaged" in rejects(read(path))[0].reason


MAIN = rb"""\documentclass{article}  % the class
\newcommand{\R}{\mathbb{R}}
\newcommand{\norm}[1]{\lVert #1 \rVert}
\def\eps{\varepsilon}
\DeclareMathOperator{\argmax}{arg\,max}
\newcommand{\odd}{\ifmmode x\else y\fi}
\begin{document}
\title{On things}
% a comment line
We take $x \in \R$ with $\norm{x + \R} < \eps$, 50\% of it. % note to self
\input{sections/method}
\begin{verbatim}
a % b
\end{verbatim}
\bibliographystyle{plain}
\bibliography{refs}
\appendix
Hidden.
\end{document}
"""


def test_arxiv_sources(tmp_path: Path) -> None:
    method = rb"The method is $\argmax f$ and \odd. \begin{comment}secret\end{comment}"
    paper = packed_tar({"figure.eps": b"%!PS", "main.tex": MAIN, "sections/method.tex": method})
    single = gzip.compress(rb"\documentclass{article}\begin{document}Short note.\end{document}")
    path = samples.write_tar(
        tmp_path / "arXiv_src_2301_001.tar",
        {
            "2301/2301.00001.gz": paper,
            "2301/2301.00002.gz": single,
            "2301/2301.00003.pdf": b"%PDF",
            "2301/2301.00004.gz": b"bad",
        },
    )
    items = read(path)
    first, second = records(items)
    assert first.meta == {"paper": "2301.00001"} and second.meta == {"paper": "2301.00002"}
    assert second.text == "Short note."
    assert first.text == (
        "\\title{On things}\n"
        "We take $x \\in \\mathbb{R}$ with $\\lVert x + \\mathbb{R} \\rVert < \\varepsilon$, 50\\% of it.\n"
        "The method is $\\operatorname{arg\\,max} f$ and \\odd.\n"
        "\\begin{verbatim}\na % b\n\\end{verbatim}\n\\bibliographystyle{plain}"
    )
    assert passed(items) == ["a paper without LaTeX"]
    assert len(rejects(items)) == 1 and "2301.00004" in rejects(items)[0].reason
    # One paper by itself, known by what is in it.
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "2301.00001.tar.gz").write_bytes(paper)
    assert texts(read(tmp_path / "one")) == [first.text]


def test_stackexchange_questions_with_their_answers_by_score(tmp_path: Path) -> None:
    rows = [
        post(1, 1, "<p>How do I <b>sort</b>?</p><pre><code>a = [2, 1]\n  b\n</code></pre>", 5, Title="Sort & order?",
             Tags="<python><sorting>", AcceptedAnswerId=3),
        post(2, 2, "<p>Badly.</p>", -1, ParentId=1),
        post(3, 2, "<p>Use <code>sorted</code>.</p>", 2, ParentId=1),
        post(5, 1, "<p>Nobody knows?</p>", 1, Title="Open"),
        post(6, 2, "<p>Lost.</p>", 1, ParentId=999),
        "  <row Id=\"7\" PostTypeId=\"1\" Body=\"cut off\n",
        post(8, 4, "<p>A tag's wiki.</p>"),
        post(9, 2, "<p>The best, and late.</p>", 40, ParentId=1),
    ]  # fmt: skip
    path = samples.write_posts(tmp_path / "Posts.xml", rows)
    items = read(path)
    (found,) = records(items)
    assert found.text == (
        "Q: Sort & order?\n\nHow do I sort?\n\na = [2, 1]\n  b\n\nA: The best, and late.\n\nA: Use sorted.\n\nA: Badly."
    )
    assert found.row == 1 and found.unit == "Posts.xml#1"
    assert found.meta["tags"] == ["python", "sorting"] and found.meta["answers"] == [40, 2, -1]  # type: ignore[index]
    assert found.meta["license"] == "CC BY-SA 4.0"  # type: ignore[index]
    assert sorted(passed(items)) == [
        "a question without an answer", "an answer whose question is not here", "neither question nor answer",
    ]  # fmt: skip
    assert [r.line for r in rejects(items)] == [8]
    few = texts(read(path, questions={"answers": 1}))
    assert few[0].endswith("A: The best, and late.")
    assert "Use sorted" in texts(read(path, questions={"min_score": 10}))[0], "the accepted one stays"
    assert len(texts(read(path, questions={"unanswered": True}))) == 2


def test_the_sort_on_disk_gives_what_a_sort_in_memory_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    from lmlab.corpus.readers import spill

    monkeypatch.setattr(spill, "FAN_IN", 4)
    draw = random.Random(0)
    pairs = [(b"%02d" % draw.randrange(50), b"%d" % i) for i in range(3000)]
    with spill.Sorter(tmp_path, run_bytes=5000) as sorter:
        for pair in pairs:
            sorter.add(*pair)
        assert len(sorter._runs) > 16, "merged in more than one level"
        assert list(sorter) == sorted(pairs, key=lambda pair: pair[0])
    assert not list(tmp_path.iterdir()), "nothing stays"


def test_a_tree_of_code_by_language_licence_and_authorship(tmp_path: Path) -> None:
    mit = "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy"
    licences = {"free": mit, "copyleft": "GNU GENERAL PUBLIC LICENSE\nVersion 3", "none": ""}
    for repository, licence in licences.items():
        (tmp_path / repository / "src").mkdir(parents=True)
        (tmp_path / repository / "src" / "a.py").write_text(f"name = '{repository}'\n")
        if licence:
            (tmp_path / repository / "LICENSE").write_text(licence)
    (tmp_path / "none" / "b.go").write_text("// SPDX-License-Identifier: Apache-2.0\npackage b\n")
    (tmp_path / "free" / "x_pb2.py").write_text("x = 1\n")
    (tmp_path / "free" / "lib.min.js").write_text("a()\n")
    (tmp_path / "free" / "bundle.js").write_text("var a=1;" * 200 + "\n")
    (tmp_path / "free" / "hand.js").write_text("var a = 1;\n" * 20)
    items = read(tmp_path, reader="auto", files="*.*", code={"licenses": ["permissive"]})
    whole = {r.path: r for r in records(items)}
    assert {path: r.drop for path, r in whole.items()} == {
        "copyleft/src/a.py": "licence: gpl-3.0",
        "free/bundle.js": "minified: lines of over 110 characters on average",
        "free/hand.js": None,
        "free/lib.min.js": "minified: its name says so",
        "free/src/a.py": None,
        "free/x_pb2.py": "generated: named _pb2.py",
        "none/b.go": None,
        "none/src/a.py": "licence: not known",
    }
    assert whole["copyleft/src/a.py"].text == "", "its text is not kept"
    assert whole["none/b.go"].meta == {"language": "go", "license": "apache-2.0"}
    only = read(tmp_path, files="*.*", code={"languages": ["go"]})
    assert [r.path for r in records(only)] == ["none/b.go"] and "language python" in passed(only)
    with pytest.raises(ValueError, match="'pyton' is not known; did you mean 'python'"):
        SourceConfig(path="x", code={"languages": ["pyton"]})  # type: ignore[arg-type]


def test_parquet_of_code(tmp_path: Path) -> None:
    path = tmp_path / "stack.parquet"
    rows = {
        "content": ["x = 1\n", "y = 2\n", "fn main() {}\n", "# Title\n", "z = 3\n"],
        "max_stars_repo_path": ["src/a.py", "b.py", "c.rs", "README.md", "g_pb2.py"],
        "licenses": [["MIT"], ["GPL-3.0-only"], ["MIT", "Apache-2.0"], ["mit"], ["MIT"]],
    }
    pq.write_table(pa.table(rows), path)
    code = {"path_field": "max_stars_repo_path", "license_field": "licenses", "licenses": ["permissive"]}
    items = read(path, text_field="content", code=code)
    found = records(items)
    assert [(r.kind, r.drop, r.text) for r in found] == [
        ("code", None, "x = 1\n"),
        ("code", "licence: GPL-3.0-only", ""),
        ("code", None, "fn main() {}\n"),
        ("prose", None, "# Title\n"),
        ("code", "generated: named _pb2.py", "z = 3\n"),
    ]
    assert found[2].meta == {"path": "c.rs", "language": "rust", "license": "MIT, Apache-2.0"}


def submission(number: int, **fields: object) -> dict[str, object]:
    return {"id": f"s{number}", "title": f"Title {number}", "selftext": "", "score": 5, "is_self": False,
            "subreddit": "books", "author": "ann", "url": f"https://www.site{number}.example/page/", **fields}  # fmt: skip


def test_submissions_give_texts_and_links_and_links_choose_pages(tmp_path: Path) -> None:
    rows = [
        submission(1),
        submission(2, score=2),
        submission(3, url="https://i.imgur.com/x.jpg"),
        submission(4, is_self=True, selftext="A long story.", url="https://www.reddit.com/r/books/comments/s4/"),
        submission(5, url="http://site1.example/page#top"),  # the same page once more
        submission(6, is_self=True, selftext="[removed]"),
        {"id": "s7", "title": "no score"},
        submission(8, url="https://other.example/a?b=1"),
    ]
    path = samples.write_lines(tmp_path / "RS_2019-04.zst", rows)
    items = read(path)
    assert texts(items) == ["Title 4\n\nA long story."]
    assert sorted(passed(items)) == ["a link elsewhere"] * 4 + ["karma under 3", "no text of its own"]
    assert len(rejects(items)) == 1
    out = tmp_path / "urls.txt"
    assert links([path], 3, out) == {"links": 3, "distinct": 2, "broken": 1}
    assert out.read_text().splitlines() == ["https://other.example/a?b=1", "https://www.site1.example/page/"]
    crawl = samples.write_warc(
        tmp_path / "crawl.warc.gz",
        [response(url, samples.page(url, STORY)) for url in (
            "http://site1.example/page", "https://site2.example/page/", "https://other.example/a?b=1")],
    )  # fmt: skip
    for urls in (out, path):  # a list, or the submissions themselves
        kept = read(crawl, web={"urls": str(urls)})
        assert [r.meta["url"] for r in records(kept)] == ["http://site1.example/page", "https://other.example/a?b=1"]  # type: ignore[index]
        assert passed(kept) == ["not among the wanted addresses"]


def test_addresses_are_compared_without_what_does_not_matter() -> None:
    assert canonical("HTTPS://WWW.Site.example:443/a/#x") == canonical("http://site.example/a") == "site.example/a"
    assert canonical("http://site.example/a?x=1") != canonical("http://site.example/a?x=2")
    assert canonical("ftp://site.example/a") is canonical("nothing") is canonical("http://[bad") is None


def test_the_documents_snippets_are_corpus_settings() -> None:
    import re

    import yaml

    from lmlab.corpus.config import CorpusConfig
    from lmlab.corpus.readers.formats import READERS

    text = (Path(__file__).parents[2] / "docs" / "corpus" / "sources.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    configs = [CorpusConfig.model_validate(yaml.safe_load(snippet)["corpus"]) for snippet in snippets]
    named = {source.reader for config in configs for source in config.sources}
    assert len(snippets) >= 11 and named >= set(READERS) - {"text", "jsonl", "parquet", "topics", "arithmetic", "code"}


def test_a_missing_library_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, crawl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from lmlab.errors import Refused

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"'warc' needs resiliparse: pip install 'lmlab\[web\]'"):
        readers.listing(SourceConfig(path=str(crawl)))
    with pytest.raises(Refused, match=r"'warc' needs trafilatura: pip install 'lmlab\[web\]'"):
        readers.listing(SourceConfig(path=str(crawl), web={"extractor": "trafilatura"}))  # type: ignore[arg-type]
