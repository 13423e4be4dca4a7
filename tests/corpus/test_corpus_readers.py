"""Each reader on small files of the real formats, whole and broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lmlab.corpus import readers
from lmlab.corpus.config import SourceConfig
from lmlab.corpus.readers import Limits, Record, Reject
from lmlab.errors import Refused

USUAL = Limits()


def read(path: Path | str, limits: Limits = USUAL, **settings) -> list[Record | Reject]:
    source = SourceConfig(path=str(path), **settings)
    return [item for file in readers.listing(source).files for item in readers.read(file, source, limits)]


def texts(items: list[Record | Reject]) -> list[str]:
    return [item.text for item in items if isinstance(item, Record)]


def rejects(items: list[Record | Reject]) -> list[Reject]:
    return [item for item in items if isinstance(item, Reject)]


def test_a_folder_of_mixed_files_is_read_by_name_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("bee")
    (tmp_path / "README").write_text("read me")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").write_text("x = 1\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "z.png").write_bytes(b"\x89PNG")
    (tmp_path / "blob").write_bytes(b"\0\1")
    (tmp_path / ".hidden.txt").write_text("no")
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "p.parquet")
    source = SourceConfig(path=str(tmp_path))
    found = readers.listing(source)
    assert [file.relative for file in found.files] == ["README", "a.jsonl", "b.txt", "p.parquet", "sub/c.py"]
    assert found.skipped == {".png": 1, "binary": 1}
    items = read(tmp_path)
    assert texts(items) == ["read me", "one", "two", "bee", "three", "x = 1\n"]
    assert [item.kind for item in items if isinstance(item, Record)] == ["prose"] * 5 + ["code"]
    assert [item.unit for item in items if isinstance(item, Record)] == [
        "README", "a.jsonl#0", "a.jsonl#1", "b.txt", "p.parquet#0", "sub/c.py",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_jsonl_and_text_compressed(tmp_path: Path, ending: str) -> None:
    def pack(data: bytes) -> bytes:
        if ending == ".gz":
            return gzip.compress(data[:5]) + gzip.compress(data[5:])  # several members, as archives have
        if ending == ".zst":
            compress = zstandard.ZstdCompressor().compress
            return compress(data[:5]) + compress(data[5:])
        return data

    lines = b"".join(json.dumps({"body": f"text {i}"}).encode() + b"\n" for i in range(3000))
    (tmp_path / f"data.jsonl{ending}").write_bytes(pack(lines))
    assert texts(read(tmp_path / f"data.jsonl{ending}", text_field="body")) == [f"text {i}" for i in range(3000)]
    (tmp_path / f"book.txt{ending}").write_bytes(pack(b"once upon a time"))
    assert texts(read(tmp_path / f"book.txt{ending}")) == ["once upon a time"]


def test_a_long_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {i} " + "word " * 30 for i in range(100)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs))
    items = read(path, Limits(cut=2000))
    assert "".join(texts(items)) == path.read_text()
    assert len(items) > 5
    assert all(isinstance(item, Record) and item.unit == f"book.txt#{item.row}" for item in items)
    assert all("paragraph" in text.lstrip("\n").split(" ")[0] for text in texts(items))
    assert all(len(text) < 2400 for text in texts(items))


def test_a_long_text_without_blank_lines_stays_bounded(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("one line\n" * 5000)
    found = texts(read(tmp_path / "log.txt", Limits(cut=1024)))
    assert "".join(found) == "one line\n" * 5000
    assert max(map(len, found)) < 5 * 1024


def test_broken_json_lines_are_set_aside_with_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    deep = b"[" * 200_000 + b"]" * 200_000
    path.write_bytes(
        b"\n".join([
            b'{"text": "good"}', b"{oops", b'{"txt": "x"}', b'{"text": 7}', b'{"text": "\xff"}', b"[1]", deep,
            b'{"text": "\\ud800"}', b'{"text": "' + b"x" * 500_000 + b'"}', b'{"text": "last"}',
        ])
    )  # fmt: skip
    items = read(path, Limits(record=450_000))
    assert texts(items) == ["good", "last"]
    assert [(r.line, r.reason.split(":")[0]) for r in rejects(items)] == [
        (2, "not JSON"),
        (3, "no field 'text' (fields"),
        (4, "field 'text' holds int, expected text"),
        (5, "not UTF-8"),
        (6, "expected a JSON object, found list"),
        (7, "JSON nested too deep"),
        (8, "field 'text' holds a lone surrogate"),
        (9, "longer than 450,000 bytes"),
    ]
    assert [item.row for item in items if isinstance(item, Record)] == [0, 9]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_truncated_or_corrupt_file_keeps_what_was_whole(tmp_path: Path, ending: str) -> None:
    lines = b"".join(json.dumps({"text": f"{i * 7919 % 100_003} text"}).encode() + b"\n" for i in range(20_000))
    whole = gzip.compress(lines) if ending == "gz" else zstandard.ZstdCompressor().compress(lines)
    path = tmp_path / f"data.jsonl.{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    items = read(path)
    assert texts(items)[0] == "0 text"
    assert len(rejects(items)) == 1 and "cut off or damaged" in rejects(items)[0].reason
    path.write_bytes(b"this is not compressed at all")
    assert len(rejects(read(path))) == 1


def test_a_zstandard_bomb_stays_small_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"\n" * 100 + b"a" * (64 << 20)))
    assert path.stat().st_size < 20_000
    items = read(path, Limits(record=1 << 20))
    assert not texts(items)
    assert rejects(items) == [Reject("bomb.txt.zst", 101, "a line longer than 1,048,576 bytes")]


def test_invalid_utf8_and_binary_text_are_set_aside_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nfine\nbad \xff\n")
    (tmp_path / "b.txt").write_bytes(b"zero\n\0")
    (tmp_path / "c.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "d.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    items = read(tmp_path)
    assert texts(items) == ["# -*- coding: latin-1 -*-\nx = 'é'\n"]
    assert [(r.file, r.line, r.reason.split(":")[0]) for r in rejects(items)] == [
        ("a.txt", 3, "not UTF-8"),
        ("b.txt", 2, "binary"),
        ("c.py", 1, "not Python SyntaxError"),
    ]


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"content": ["one", None, "two"]}), path)
    items = read(path, text_field="content")
    assert texts(items) == ["one", "two"]
    assert rejects(items) == [Reject("rows.parquet", 1, "field 'content' holds NoneType, expected text")]
    with pytest.raises(Refused, match="no column 'contents'; did you mean 'content'"):
        read(path, text_field="contents")
    path.write_bytes(path.read_bytes()[:100])
    assert "damaged" in rejects(read(path, text_field="content"))[0].reason


def test_python_that_does_not_parse_is_set_aside_only_where_it_must_be_parsed(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("print 'hello'\n")
    (tmp_path / "deep.py").write_text("x = " + "(" * 500 + ")" * 500)
    assert len(texts(read(tmp_path))) == 2
    found = rejects(read(tmp_path, extract="code"))
    assert [(r.file, r.reason[:10]) for r in found] == [("deep.py", "not Python"), ("old.py", "not Python")]


def test_the_standard_library_without_its_tests() -> None:
    files = [file.relative for file in readers.listing(SourceConfig(path="python:stdlib")).files]
    assert "json/decoder.py" in files and "os.py" in files
    assert files == sorted(files)
    assert not any({"test", "tests", "site-packages", "idle_test", "ensurepip"} & set(f.split("/")) for f in files)
    topics = read("python:topics")
    assert any("statement" in text for text in texts(topics))
    assert [item.path for item in topics if isinstance(item, Record)] == sorted(item.unit for item in topics)  # type: ignore[union-attr]


def test_a_path_that_leads_nowhere_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    with pytest.raises(Refused, match=r"sources\.path: '.*librery' does not exist; did you mean '.*/library'\?"):
        readers.listing(SourceConfig(path=str(tmp_path / "librery")))
    with pytest.raises(Refused, match=r"did you mean '.*library'"):
        readers.listing(SourceConfig(path=str(tmp_path / "librari" / "deeper" / "x.txt")))
    with pytest.raises(Refused, match="python:stdlib"):
        readers.listing(SourceConfig(path="python:stlib"))
    with pytest.raises(Refused, match="it is empty"):
        readers.listing(SourceConfig(path=str(tmp_path / "library")))


def test_a_hub_dataset_is_listed_pinned_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub's answers put in place: the network may be absent where tests run."""
    import huggingface_hub

    class Information:
        sha = "abc123"
        siblings = tuple(type("S", (), {"rfilename": name}) for name in ("data/b.jsonl", "README.md", "data/a.jsonl"))

    asked = []

    def download(name: str, filename: str, *, repo_type: str, revision: str) -> str:
        asked.append((name, filename, repo_type, revision))
        (tmp_path / "got.jsonl").write_text(json.dumps({"text": filename}) + "\n")
        return str(tmp_path / "got.jsonl")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, **_: Information())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = SourceConfig(path="hf:owner/name")
    pinned = readers.hub.files(source.path, "sources[0]")
    assert pinned == {"revision": "abc123", "files": ["data/a.jsonl", "data/b.jsonl"]}
    found = readers.listing(source, pinned=pinned)
    assert texts([i for f in found.files for i in readers.read(f, source, Limits())]) == [
        "data/a.jsonl",
        "data/b.jsonl",
    ]
    assert asked[0] == ("owner/name", "data/a.jsonl", "dataset", "abc123")


def test_a_hub_dataset_out_of_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(Refused, match=r"'owner/name' cannot be reached.*no route to host.*network"):
        readers.listing(SourceConfig(path="hf:owner/name"))
    with pytest.raises(Refused, match="expected hf:OWNER/NAME"):
        readers.listing(SourceConfig(path="hf:name"))
