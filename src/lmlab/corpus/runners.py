"""Who does the tasks: threads of this process, processes of this machine, or workers of a Ray cluster.

All three do the same tasks (`engine.perform`) and leave the same files. What differs is what a dying worker takes with
it: a thread takes the build (run again, it goes on); a process or a Ray worker takes its task, which is named and tried
again, at most RETRIES times.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from multiprocessing import connection
from pathlib import Path
from typing import Any

from lmlab.corpus import engine
from lmlab.corpus.engine import Task
from lmlab.errors import Failed, LmlabError, Refused
from lmlab.progress import say

RETRIES = 3
Advance = Callable[[], None]


def _again(task: Task, tries: dict[Path, int], what: str) -> None:
    """Name a worker's death, and fail where the task has killed too many."""
    count = tries[task.out] = tries.get(task.out, 0) + 1
    if count > RETRIES:
        raise Failed(f"{task.out}: {what}, {count} times over; finished shards stay")
    say(f"{what} while it made {task.out.parent.name}/{task.out.name}; tried again ({count} of {RETRIES})")


def threads(tasks: Sequence[Task], workers: int, advance: Advance, address: str | None) -> None:
    """On threads: the kernels and Arrow let go of the GIL, so that all cores work, and nothing is copied."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(engine.perform, task) for task in tasks]
        for future in futures:
            future.add_done_callback(lambda _: advance())
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.result()


def _work(pipe: connection.Connection) -> None:
    """A worker process: does the tasks it is sent, until the pipe closes (so it ends with its parent)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            engine.perform(task)
        except LmlabError as error:
            pipe.send(error)
        except BaseException as error:
            pipe.send(Failed(f"{task.out}: {type(error).__name__}: {error}"))
        else:
            pipe.send(None)


class _Worker:
    def __init__(self, context: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        self.task = task
        self.pipe.send(task)


def processes(tasks: Sequence[Task], workers: int, advance: Advance, address: str | None) -> None:
    """On processes, for steps that hold the GIL. One that dies (a crash, the kernel's out-of-memory killer) is named and
    replaced, and its task tried again."""
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that Arrow's threads hold
    queue = list(reversed(tasks))
    tries: dict[Path, int] = {}
    idle = [_Worker(context) for _ in range(min(workers, len(tasks)))]
    busy: dict[Any, _Worker] = {}
    try:
        while queue or busy:
            while queue and idle:
                worker = idle.pop()
                task = queue.pop()
                try:
                    worker.give(task)
                except OSError:  # it died idle
                    queue.append(task)
                    idle.append(_Worker(context))
                    continue
                busy[worker.pipe] = worker
            for pipe in connection.wait(list(busy)):
                worker = busy.pop(pipe)
                assert worker.task is not None
                try:
                    error = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    code = worker.process.exitcode or 0
                    why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                    _again(worker.task, tries, f"worker process {worker.process.pid} died ({why})")
                    queue.append(worker.task)
                    idle.append(_Worker(context))
                    continue
                if error is not None:
                    raise error
                advance()
                idle.append(worker)
    finally:
        for worker in [*idle, *busy.values()]:
            worker.pipe.close()
            if worker in busy.values():
                worker.process.terminate()
            worker.process.join()


def ray(tasks: Sequence[Task], workers: int, advance: Advance, address: str | None) -> None:
    """As Ray core tasks, one CPU each, on the cluster at `address` (or RAY_ADDRESS), else on this machine alone. Every
    node must see the same files under the same paths. Ray itself is not asked to retry, so that a death is named."""
    try:
        import ray as cluster
        from ray import exceptions
    except ImportError:
        raise Refused('engine: ray needs the extra "ray": pip install "lmlab[ray]"') from None
    started = not cluster.is_initialized()
    if started:
        address = address or os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            cluster.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
        except ConnectionError as error:
            raise Failed(f"engine: ray: no cluster answers at '{address}': {error}") from None
    dead = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
    )
    remote = cluster.remote(num_cpus=1, max_retries=0)(_perform_named)
    tries: dict[Path, int] = {}
    try:
        running = {remote.remote(task): task for task in tasks}
        while running:
            ready, _ = cluster.wait(list(running), num_returns=1)
            task = running.pop(ready[0])
            try:
                error = cluster.get(ready[0])
            except dead as death:
                what = " ".join(str(death).split("\n", 1)[0].split())
                _again(task, tries, f"a Ray worker died ({type(death).__name__}: {what[:200]})")
                running[remote.remote(task)] = task
                continue
            if error is not None:
                for reference in running:
                    cluster.cancel(reference)
                raise error
            advance()
    finally:
        if started:
            cluster.shutdown()


def _perform_named(task: Task) -> LmlabError | None:
    """`engine.perform` with its error as a value: Ray would wrap it in a traceback."""
    try:
        engine.perform(task)
    except LmlabError as error:
        return error
    return None


RUNNERS: dict[str, Callable[[Sequence[Task], int, Advance, str | None], None]] = {
    "threads": threads,
    "processes": processes,
    "ray": ray,
}
