"""The stage as a whole: what is written, the split, determinism, resuming, bad input."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmlab.corpus import engine, split, store
from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.inspect import format_inspect, format_why, inspect, why
from lmlab.corpus.stage import STAGE, sources
from lmlab.errors import Failed, LmlabError, Refused
from tests.corpus.helpers import build, hashes, prose, prose_folder


def rows(out: Path) -> list[dict]:
    return [row for table in store.tables(out) for row in table.to_pylist()]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Prose with an exact copy, a near copy, a bad page and some addresses."""
    root = prose_folder(tmp_path / "mixed")
    first = (root / "chapter0" / "page00.txt").read_text()
    (root / "copy.txt").write_text(first)
    (root / "near.txt").write_text(first + " One more line is here to tell.")
    (root / "short.txt").write_text("too short")
    (root / "mail.txt").write_text(prose(500) + " Write to someone@example.org from 203.0.113.9.")
    return root


def test_what_a_build_leaves(tmp_path: Path, mixed: Path) -> None:
    out = tmp_path / "out"
    headline = build(out, sources=[{"name": "books", "path": str(mixed)}])
    everything = rows(out)
    assert len(everything) == 44 == len({row["id"] for row in everything}), "nothing vanishes"
    assert {"id", "source", "path", "split", "text", "keep", "step", "reason"} <= set(everything[0])
    kept = [row for row in everything if row["keep"]]
    train, heldout = list(store.documents(out)), list(store.documents(out, "heldout"))
    assert len(train) + len(heldout) == len(kept) and headline["documents"] == len(train)
    assert set(train[0]) == {"id", "source", "path", "text"} and train[0]["id"] == f"books/{train[0]['path']}#0"
    assert list(store.documents(out, source="books")) == train and not list(store.documents(out, source="films"))
    assert not [row for row in everything if "example.org" in row["text"] or "203.0.113.9" in row["text"]]
    dropped = {row["path"]: (row["step"], row["reason"]) for row in everything if not row["keep"]}
    assert dropped["short.txt"] == ("rules", "words < 20")
    copies = [row for row in everything if row["step"] in ("exact_duplicates", "near_duplicates")]
    assert len(copies) == 2 and {row["duplicate_of"] for row in copies} <= {row["id"] for row in kept}
    results = json.loads((out / "results.json").read_text())
    assert results["documents"] == {"train": len(train), "heldout": len(heldout)}
    assert results["read"]["documents"] == 44 and results["rejected"] == 0
    assert sum(e["documents"] for e in results["dropped"].values()) == 44 - len(kept)
    assert results["redacted"] == {"email": 1, "ip_address": 1}
    assert results["bytes"]["train"] == sum(len(d["text"].encode()) for d in train)
    assert not (out / ".work").exists() and (out / "rejected.jsonl").read_text() == ""
    statistics = json.loads((out / "statistics.json").read_text())
    cells = statistics["sources"]["books"]
    assert (
        sum(cell["dropped"].get("rules", {}).get("words < 20", {}).get("documents", 0) for cell in cells.values()) == 1
    )
    assert "books/short.txt#0" in json.dumps(cells)


def test_same_input_same_bytes_whatever_the_threads(tmp_path: Path, mixed: Path) -> None:
    settings = {"sources": [{"name": "books", "path": str(mixed)}], "shard_bytes": 4096}
    build(tmp_path / "a", threads=1, **settings)
    build(tmp_path / "b", threads=4, **settings)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(store.parts(tmp_path / "a")) > 3


def test_resume_after_a_shard_failed(tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"sources": [{"name": "books", "path": str(mixed)}], "shard_bytes": 4096, "threads": 1}
    build(tmp_path / "whole", **settings)
    real, made = engine.perform, []
    for stop in (3, 9, 17, 25):

        def perform(task, stop=stop):
            if len(made) == stop:
                raise KeyboardInterrupt
            made.append(task.out)
            real(task)

        monkeypatch.setattr(engine, "perform", perform)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "cut", **settings)
        (tmp_path / "cut" / ".work" / "local" / ".part-00000.parquet.tmp").write_bytes(b"half a shard")
    monkeypatch.setattr(engine, "perform", lambda task: (made.append(task.out), real(task)))
    build(tmp_path / "cut", **settings)
    assert len(made) == len(set(made)), "no shard was made twice"
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    made.clear()
    (tmp_path / "cut" / ".work").mkdir()
    build(tmp_path / "cut", **settings)
    assert made == [] and not (tmp_path / "cut" / ".work").exists()


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_is_the_same(tmp_path: Path) -> None:
    root = prose_folder(tmp_path / "books", 200)
    settings = {"sources": [{"name": "books", "path": str(root)}], "shard_bytes": 4096}
    build(tmp_path / "whole", **settings)
    code = (
        "import json,sys;from pathlib import Path;from tests.corpus.helpers import build;"
        "print('go',flush=True);build(Path(sys.argv[1]),**json.loads(sys.argv[2]))"
    )
    for delay in (0.05, 0.2, 0.5, 1.0):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cut"), json.dumps(settings)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None and child.stdout.readline() == b"go\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    build(tmp_path / "cut", **settings)
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")


# --- the split ---------------------------------------------------------------------------------------------------


def test_a_module_is_on_one_side_in_every_source(tmp_path: Path) -> None:
    root = tmp_path / "library"
    for i in range(60):
        path = root / f"package{i % 5}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = prose(i).replace("\n", " ")
        path.write_text(f'"""{about}"""\n\ndef function{i}(value):\n    """{about}"""\n    return value + {i}\n' * 2)
    out = tmp_path / "out"
    both = [{"name": name, "path": str(root), "extract": name} for name in ("code", "docstrings")]
    off = {"enabled": False}
    switches = {"prose_rules": off, "code_rules": off, "near_duplicates": off, "exact_duplicates": False}
    build(out, sources=both, decontamination=off, heldout_minimum=10, **switches)
    sides: dict[str, set[str]] = {}
    for row in rows(out):
        sides.setdefault(row["path"], set()).add(row["split"])
    assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())
    assert sum(side == {"heldout"} for side in sides.values()) == 10
    kinds = {(row["source"], row["kind"]) for row in rows(out)}
    assert kinds == {("code", "code"), ("docstrings", "prose")}


def test_the_split_keeps_its_promises() -> None:
    units = [f"file{i}" for i in range(1000)]
    limit = split.threshold(units, 0.02, 12)
    held = [unit for unit in units if split.side(unit, limit) == "heldout"]
    assert 12 <= len(held) <= 40
    few = units[:20]
    limit = split.threshold(few, 0.02, 12)
    assert sum(split.side(unit, limit) == "heldout" for unit in few) == 5, "never more than a quarter"
    assert split.threshold(["only one"], 0.02, 12) == 0.02
    assert split.position("a", 0) != split.position("a", 1)
    assert 0 <= split.position("json/decoder.py") == split.position("json/decoder.py") < 1


@pytest.mark.parametrize("form", ["jsonl", "text", "parquet"])
def test_one_file_of_any_form_has_a_held_out_part(tmp_path: Path, form: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [prose(i, 200) for i in range(80)]
    if form == "jsonl":
        path = tmp_path / "data.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode()))
    elif form == "parquet":
        path = tmp_path / "data.parquet"
        pq.write_table(pa.table({"text": texts}), path)
    else:
        path = tmp_path / "book.txt"
        path.write_text("\n\n".join(texts))
    headline = build(tmp_path / "out", sources=[{"path": str(path)}], cut_bytes=2048)
    assert headline["heldout_documents"] >= 10 and headline["documents"] > 3 * headline["heldout_documents"] - 1


def test_a_planted_leak_leaves_the_training_split_only(tmp_path: Path) -> None:
    root = prose_folder(tmp_path / "books", 60)
    probe = tmp_path / "probe"
    build(probe, sources=[{"name": "books", "path": str(root)}])
    heldout = next(iter(store.documents(probe, "heldout")))
    train = next(iter(store.documents(probe, "train")))
    path = root / train["path"]
    path.write_text(path.read_text() + "\n\n" + heldout["text"])
    out = tmp_path / "out"
    build(out, sources=[{"name": "books", "path": str(root)}])
    found = why(out, train["id"])
    assert (found["kept"], found["step"]) == (False, "decontamination")
    assert found["heldout_overlap"]["heldout"] == heldout["id"] and found["heldout_overlap"]["spans"]
    assert why(out, heldout["id"])["kept"]
    assert "13-grams" in format_why(found) and heldout["id"] in format_why(found)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_few_broken_records_are_counted_and_many_fail(tmp_path: Path) -> None:
    lines = [json.dumps({"text": prose(i)}) for i in range(300)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*lines[:100], "{broken", *lines[100:]]))
    headline = build(tmp_path / "few", sources=[{"name": "web", "path": str(path)}])
    assert headline["documents"] > 200
    rejected = [json.loads(line) for line in (tmp_path / "few" / "rejected.jsonl").read_text().splitlines()]
    assert [(r["source"], r["file"], r["line"]) for r in rejected] == [("web", "data.jsonl", 101)]
    assert json.loads((tmp_path / "few" / "results.json").read_text())["rejected"] == 1
    assert "set aside unread" in format_why(why(tmp_path / "few", "web/data.jsonl#100"))
    path.write_text("\n".join(lines + ["{broken"] * 9))
    with pytest.raises(
        Failed, match=r"source 'web': 9 of 309 records \(2.9%\) are broken.*max_rejected.*data.jsonl:301"
    ):
        build(tmp_path / "many", sources=[{"name": "web", "path": str(path)}])
    assert not (tmp_path / "many" / "results.json").exists()
    build(tmp_path / "allowed", sources=[{"name": "web", "path": str(path)}], max_rejected=0.05)


def test_malicious_files_are_set_aside_and_never_crash(tmp_path: Path) -> None:
    root = prose_folder(tmp_path / "books", 60)
    (root / "huge-line.txt").write_text("a" * 3_000_000)
    (root / "invalid.txt").write_bytes(prose(70).encode() + b"\xff\xfe")
    (root / "deep.jsonl").write_bytes(b'{"text": ' + b"[" * 100_000)
    (root / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(50_000))[:20_000])
    (root / "control.txt").write_text(prose(71) + "\x1b[31m\x00" * 3)
    (root / "deep.py").write_text("x = " + "[" * 5000)
    out = tmp_path / "out"
    settings = {"sources": [{"path": str(root), "extract": "code"}], "max_record_bytes": 1 << 20, "max_rejected": 0.2}
    build(out, **settings)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert sorted(r["file"] for r in rejected) == [
        "control.txt", "cut.txt.gz", "deep.jsonl", "deep.py", "huge-line.txt", "invalid.txt",
    ]  # fmt: skip


def test_absent_paths_and_wrong_settings_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"sources\[1\]\.path"):
        sources(CorpusConfig.model_validate({"sources": [{"path": "python:topics"}, {"path": str(tmp_path / "none")}]}))
    with pytest.raises(ValueError, match="two sources are called 'a'"):
        CorpusConfig.model_validate({"sources": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]})
    with pytest.raises(ValueError, match="heldout_fraction"):
        CorpusConfig.model_validate({"heldout_fraction": 1.5})
    assert CorpusConfig.model_validate({"sources": [{"path": "/some/Folder Name/"}]}).sources[0].name == "Folder-Name"


def test_nothing_left_is_said_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.txt").write_text("also short")
    with pytest.raises(LmlabError, match=r"no document of the train split is left of 2 read.*words < 20"):
        build(tmp_path / "out", sources=[{"path": str(tmp_path)}])


def test_the_fingerprint_notices_changed_files(tmp_path: Path) -> None:
    root = prose_folder(tmp_path / "books", 3)
    config = CorpusConfig.model_validate({"sources": [{"path": str(root)}]})
    assert [p.name for p in STAGE.sources(config)] == ["page00.txt", "page01.txt", "page02.txt"]
    library = STAGE.sources(CorpusConfig())
    assert any(p.name == "decoder.py" for p in library) and any(p.name == "topics.py" for p in library)
    assert not STAGE.seeded


def test_limit_takes_the_first_documents(tmp_path: Path) -> None:
    root = prose_folder(tmp_path / "books", 60)
    build(
        tmp_path / "out",
        sources=[{"name": "b", "path": str(root), "limit": 40}],
        shard_bytes=4096,
        heldout_fraction=0.2,
    )
    assert len(rows(tmp_path / "out")) == 40


# --- looking into it ---------------------------------------------------------------------------------------------


def test_inspect_and_why(tmp_path: Path, mixed: Path) -> None:
    out = tmp_path / "out"
    build(out, sources=[{"name": "books", "path": str(mixed)}])
    found = inspect(out)
    json.dumps(found)
    assert found["totals"]["train"]["kept"]["documents"] == len(list(store.documents(out)))
    assert found["samples"]["books"]["kept"] and found["samples"]["books"]["dropped"][0]["reason"]
    assert found["lengths"]["books"]["median"] > 300
    shown = format_inspect(found)
    assert "words < 20" in shown and "books/short.txt#0" in shown and "languages: en" in shown
    short = why(out, "books/short.txt#0")
    assert (short["kept"], short["step"], short["reason"]) == (False, "rules", "words < 20")
    assert "dropped by rules: words < 20" in format_why(short)
    copy = next(row for row in rows(out) if row["duplicate_of"])
    assert f"copy of: {copy['duplicate_of']}" in format_why(why(out, copy["id"]))
    with pytest.raises(Refused, match=r"did you mean 'books/short\.txt#0'"):
        why(out, "books/shorty.txt#0")
    with pytest.raises(Refused, match="no finished corpus"):
        inspect(tmp_path)


@pytest.mark.slow
def test_the_standard_library(tmp_path: Path) -> None:
    headline = build(tmp_path / "out")
    assert headline["bytes"] > 6_000_000
    assert 60_000 < headline["heldout_bytes"] < 800_000
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rejected"] == 0
    assert {"code", "docstrings", "topics"} == set(results["sources"])
    assert all(source["train"]["documents"] > 0 for source in results["sources"].values())
    assert results["dropped"].keys() >= {"rules", "normalise", "near_duplicates", "exact_duplicates"}
    files = {row["path"]: set() for row in rows(tmp_path / "out") if row["source"] == "code"}
    for row in rows(tmp_path / "out"):
        files.setdefault(row["path"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in files.values())
    assert sum(splits == {"heldout"} for splits in files.values()) >= 12
