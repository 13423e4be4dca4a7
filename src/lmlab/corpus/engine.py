"""The engine: tasks of (steps, one input shard) -> one output shard, on threads, processes or a Ray cluster.

A shard is a Parquet file of documents, or an Arrow file of records that only the build itself reads (memory-mapped). It
is written under a temporary name and renamed, and its metadata holds the identity of the work that made it: a shard that
is there with the wanted identity is not made again. So a build that was killed goes on where it was, and the output
depends neither on the engine nor on how many workers there are.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus.steps.step import DOCUMENT, Step
from lmlab.errors import Failed, LmlabError
from lmlab.progress import bar
from lmlab.run import digest

IDENTITY = b"lmlab.identity"
EngineName = Literal["auto", "threads", "processes", "ray"]
PROCESSES_BYTES = 48 << 20
"""From so much text on, `auto` takes processes: their server takes some 2 CPU seconds to start, the time of about so much
text."""


@dataclass(frozen=True)
class Task:
    """`source` is a shard, or a function that streams tables (for an Arrow file, record batches, each of which stays
    one); `identity` is what its content depends on. For processes and Ray it must be picklable."""

    source: Path | Callable[[], Iterator[Any]]
    steps: Sequence[Step]
    out: Path
    identity: str
    empty: pa.Schema = DOCUMENT

    @property
    def key(self) -> str:
        return digest([self.identity, [step.identity for step in self.steps]])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def done(task: Task) -> bool:
    """Is the task's shard there, whole, with the wanted identity?"""
    try:
        if task.out.suffix == ".arrow":
            with pa.memory_map(str(task.out)) as file:
                metadata = pa.ipc.open_file(file).schema.metadata or {}
        else:
            metadata = pq.read_schema(task.out).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return metadata.get(IDENTITY) == task.key.encode()


@contextlib.contextmanager
def workers(
    engine: EngineName = "threads", *, threads: int | None = None, address: str | None = None, size: float = 0
) -> Iterator[Any]:
    """Workers that `run` can be given again and again: processes and a Ray cluster take seconds to start. `auto` is
    processes where there are cores for two and `size` bytes of text make them worth it, else threads."""
    from lmlab.corpus import runners

    count = threads or cores()
    if engine == "auto":
        engine = "processes" if count > 1 and size >= PROCESSES_BYTES else "threads"
    with runners.RUNNERS[engine](count, address) as runner:
        yield runner


def run(
    tasks: Sequence[Task],
    *,
    threads: int | None = None,
    title: str = "corpus",
    engine: EngineName = "threads",
    address: str | None = None,
    runner: Any = None,
) -> int:
    """Do every task that is not done; returns how many that were. `threads`: how many at a time. The first failure
    stops what has not started and is raised; shards that were finished stay. A worker process that dies is named, and
    its task tried again (see `runners`). `runner`: workers that are there already, instead of `engine`.
    """
    waiting = [task for task in tasks if not done(task)]
    with bar(title, len(tasks), len(tasks) - len(waiting)) as advance:
        if waiting and runner is not None:
            runner(waiting, advance)
        elif waiting:
            with workers(engine, threads=threads, address=address) as started:
                started(waiting, advance)
    return len(waiting)


def perform(task: Task) -> None:
    """Make one shard, a row group at a time."""
    # Where an earlier attempt is still being written (by a worker whose driver was killed), each has its own name.
    temporary = task.out.with_name(f".{task.out.name}.{uuid.uuid4().hex[:8]}.tmp")
    writer, schema = None, None
    try:
        task.out.parent.mkdir(parents=True, exist_ok=True)
        for table in _tables(task):
            result = apply(task.steps, table)
            if writer is None:
                schema = result.schema.with_metadata({IDENTITY: task.key.encode()})
                writer = _writer(temporary, schema)
            _write(writer, result, schema)
        if writer is not None:
            writer.close()
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(task.out)
    except OSError as error:
        raise Failed(f"{task.out}: could not be written: {error.strerror or error}; finished shards stay") from error
    finally:
        if writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):  # a full disk says so again
                writer.close()
        temporary.unlink(missing_ok=True)


def _writer(path: Path, schema: pa.Schema) -> Any:
    if ".arrow." in path.name:
        return pa.ipc.new_file(str(path), schema)
    return pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False)


def _write(writer: Any, result: Any, schema: pa.Schema) -> None:
    if isinstance(result, pa.RecordBatch):
        writer.write_batch(result)
    else:
        writer.write_table(result.cast(schema), row_group_size=max(1, len(result)))


def read_shard(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """A Parquet shard, a row group at a time; one empty table if it has none."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns).replace_schema_metadata(None)
        if file.num_row_groups == 0:
            empty = file.schema_arrow.empty_table().replace_schema_metadata(None)
            yield empty.select(columns) if columns else empty


def _tables(task: Task) -> Iterator[Any]:
    """The input, a row group at a time; one empty table if there is nothing, so that a shard always has its columns."""
    if isinstance(task.source, Path):
        yield from read_shard(task.source)
        return
    some = False
    for table in task.source():
        some = True
        yield table
    if not some:
        yield task.empty.empty_table()


def apply(steps: Sequence[Step], table: Any) -> Any:
    """The steps one after the other. A step that throws is named with the document that it threw on."""
    for step in steps:
        try:
            result = step(table)
        except LmlabError:
            raise
        except Exception as error:
            raise Failed(
                f"step '{step.name}' failed on {_culprit(step, table)}: {type(error).__name__}: {error}"
            ) from error
        if len(result) != len(table):
            raise Failed(f"step '{step.name}' returned {len(result)} documents of {len(table)}: a step drops by `keep`")
        table = result
    return table


def _culprit(step: Step, table: pa.Table) -> str:
    """The first document on which the step throws by itself."""
    for row in range(len(table)):
        try:
            step(table.slice(row, 1))
        except Exception:  # whatever it threw on the table
            return f"document '{table['id'][row].as_py()}'"
    return f"a batch of {len(table)} documents (on none of them alone)"
