"""The engine: tasks of (steps, one input shard) -> one output shard, on this machine's threads.

A shard is a Parquet file. It is written under a temporary name and renamed, and its metadata holds the identity of the
work that made it: a shard that is there with the wanted identity is not made again. So a build that was killed goes on
where it was, and the output does not depend on how many threads there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus.steps.step import DOCUMENT, Step
from lmlab.errors import Failed, LmlabError
from lmlab.progress import bar
from lmlab.run import digest

IDENTITY = b"lmlab.identity"


@dataclass(frozen=True)
class Task:
    """`source` is a shard, or a function that streams tables; `identity` is what its content depends on."""

    source: Path | Callable[[], Iterator[pa.Table]]
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
        metadata = pq.read_schema(task.out).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return metadata.get(IDENTITY) == task.key.encode()


def run(tasks: Sequence[Task], *, threads: int | None = None, title: str = "corpus") -> int:
    """Do every task that is not done; returns how many that were. The first failure stops what has not started and is
    raised; shards that were finished stay.
    """
    waiting = [task for task in tasks if not done(task)]
    with bar(title, len(tasks), len(tasks) - len(waiting)) as advance, ThreadPoolExecutor(threads or cores()) as pool:
        futures = [pool.submit(perform, task) for task in waiting]
        for future in futures:
            future.add_done_callback(lambda _: advance())
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.result()
    return len(waiting)


def perform(task: Task) -> None:
    """Make one shard, a row group at a time."""
    task.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = task.out.with_name(f".{task.out.name}.tmp")
    writer = None
    try:
        for table in _tables(task):
            result = apply(task.steps, table)
            if writer is None:
                schema = result.schema.with_metadata({IDENTITY: task.key.encode()})
                writer = pq.ParquetWriter(temporary, schema, compression="zstd", write_statistics=False)
            writer.write_table(result.cast(writer.schema), row_group_size=max(1, len(result)))
        if writer is not None:
            writer.close()
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(task.out)
    except OSError as error:
        raise Failed(f"{task.out}: could not be written: {error.strerror or error}; finished shards stay") from error
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)


def _tables(task: Task) -> Iterator[pa.Table]:
    """The input, a row group at a time; one empty table if there is nothing, so that a shard always has its columns."""
    some = False
    if isinstance(task.source, Path):
        with pq.ParquetFile(task.source) as file:
            for group in range(file.num_row_groups):
                some = True
                yield file.read_row_group(group).replace_schema_metadata(None)
            if not some:
                yield file.schema_arrow.empty_table().replace_schema_metadata(None)
        return
    for table in task.source():
        some = True
        yield table
    if not some:
        yield task.empty.empty_table()


def apply(steps: Sequence[Step], table: pa.Table) -> pa.Table:
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
