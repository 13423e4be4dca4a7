"""Tasks: identity, order, failure and resuming."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.corpus import engine
from lmlab.corpus.engine import Task
from lmlab.errors import Failed
from tests.corpus.helpers import table


class Upper:
    name = "upper"

    def __init__(self, version: int = 1, bad: str | None = None) -> None:
        self.identity, self.bad, self.seen = ["upper", version], bad, 0

    def __call__(self, documents: pa.Table) -> pa.Table:
        self.seen += len(documents)
        texts = documents["text"].to_pylist()
        if self.bad in texts:
            raise ValueError("no such letter")
        place = documents.schema.get_field_index("text")
        return documents.set_column(place, "text", pa.array([text.upper() for text in texts], pa.string()))


def task(tmp_path: Path, step: Upper, name: str = "a", texts: tuple[str, ...] = ("x", "y", "z")) -> Task:
    return Task(lambda: iter([table(*texts)]), [step], tmp_path / f"{name}.parquet", name)


def test_a_task_is_done_once_for_its_identity(tmp_path: Path) -> None:
    step = Upper()
    assert engine.run([task(tmp_path, step)]) == 1
    assert pq.read_table(tmp_path / "a.parquet")["text"].to_pylist() == ["X", "Y", "Z"]
    assert engine.run([task(tmp_path, step)]) == 0 and step.seen == 3
    assert engine.run([task(tmp_path, Upper(version=2))]) == 1
    (tmp_path / "a.parquet").write_bytes(b"PAR1 half")
    assert engine.run([task(tmp_path, Upper(version=2))]) == 1


def test_shards_chain_and_an_empty_source_gives_an_empty_shard(tmp_path: Path) -> None:
    first = Task(lambda: iter([]), [Upper()], tmp_path / "a.parquet", "a")
    second = Task(first.out, [Upper()], tmp_path / "b.parquet", "b")
    engine.run([first])
    engine.run([second])
    assert len(pq.read_table(tmp_path / "b.parquet")) == 0
    assert "text" in pq.read_schema(tmp_path / "b.parquet").names


def test_a_step_that_throws_names_the_document_and_the_step(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"step 'upper' failed on document 'd/1': ValueError: no such letter"):
        engine.run([task(tmp_path, Upper(bad="y"))])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_shards_that_were_finished(tmp_path: Path) -> None:
    good, bad = task(tmp_path, Upper(), "good"), task(tmp_path, Upper(bad="y"), "bad")
    with pytest.raises(Failed):
        engine.run([good, bad], threads=1)
    assert engine.done(good) and not engine.done(bad)
    assert engine.run([good, task(tmp_path, Upper(), "bad")]) == 1


def test_a_step_may_not_remove_rows(tmp_path: Path) -> None:
    class Lossy(Upper):
        def __call__(self, documents: pa.Table) -> pa.Table:
            return documents.slice(1)

    with pytest.raises(Failed, match="returned 2 documents of 3"):
        engine.run([task(tmp_path, Lossy())])


def test_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    for threads in (1, 4):
        out = tmp_path / str(threads)
        engine.run([task(out, Upper(), f"p{i}", (f"t{i}", "u")) for i in range(6)], threads=threads)
    for i in range(6):
        assert (tmp_path / "1" / f"p{i}.parquet").read_bytes() == (tmp_path / "4" / f"p{i}.parquet").read_bytes()
