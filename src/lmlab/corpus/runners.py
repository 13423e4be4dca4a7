"""Who does the tasks: threads of this process, processes of this machine, or workers of a Ray cluster.

All three do the same tasks (`engine.perform`) and leave the same files. What differs is what a dying worker takes with
it: a thread takes the build (run again, it goes on); a process or a Ray worker takes its task, which is named and tried
again, at most RETRIES times.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

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


class Threads:
    """Threads of this process: they are there at once and share all memory. Kernels and Arrow let go of the interpreter's
    lock; reading, redaction and the making of columns do not."""

    def __init__(self, workers: int, address: str | None) -> None:
        self.workers = workers

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, tasks: Sequence[Task], advance: Advance) -> None:
        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(engine.perform, task) for task in tasks]
            for future in futures:
                future.add_done_callback(lambda _: advance())
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                future.cancel()
            for future in futures:
                if not future.cancelled():
                    future.result()


def _work(pipe: Connection) -> None:
    """A worker process: does the tasks it is sent, until the pipe closes (so it ends with its parent)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    pa.set_cpu_count(1)  # there is a worker a core
    while True:
        try:
            sent = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        error: LmlabError | None = None
        what: object = "a task"
        try:
            task = pickle.loads(sent)
            what = task.out
            engine.perform(task)
        except LmlabError as refused:
            error = refused
        except Exception as other:
            error = Failed(f"{what}: {type(other).__name__}: {other}")
        try:
            pipe.send(error)
        except OSError:  # the parent is gone
            return


@contextlib.contextmanager
def _nameless() -> Iterator[None]:
    """Inside, multiprocessing does not know the file of the main program: it would run it again in each worker, and
    scripts seldom guard against that. So what is defined in the main program cannot be sent to a worker."""
    main: Any = sys.modules["__main__"]
    kept = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(kept)


class _Worker:
    def __init__(self, context: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _nameless():
            self.process.start()
        theirs.close()
        self.task: Task | None = None

    def end(self) -> None:
        self.pipe.close()
        if self.task is not None:
            self.process.terminate()
        self.process.join()


class Processes:
    """Processes of this machine, for steps that hold the GIL. One that dies (a crash, the kernel's out-of-memory killer)
    is named and replaced, and its task tried again. They are forked from a server that has loaded what they need (see
    `preload`) while this process lists its sources: a fork of this process would copy locks that Arrow's threads hold."""

    def __init__(self, workers: int, address: str | None) -> None:
        self.count = workers
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        self.workers: list[_Worker] = []

    def __enter__(self) -> Processes:
        if self.context.get_start_method() == "forkserver":
            from multiprocessing.forkserver import ensure_running

            self.context.set_forkserver_preload(["lmlab.corpus.preload"])
            with _nameless():
                ensure_running()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.end()

    def __call__(self, tasks: Sequence[Task], advance: Advance) -> None:
        queue = list(reversed(tasks))
        tries: dict[Path, int] = {}
        while queue or any(worker.task for worker in self.workers):
            while queue and (worker := self._idle()) is not None:
                task = queue.pop()
                try:
                    worker.pipe.send_bytes(pickle.dumps(task))
                except OSError:  # it died while it had nothing to do
                    self.workers.remove(worker)
                    queue.append(task)
                else:
                    worker.task = task
            busy = {worker.pipe: worker for worker in self.workers if worker.task is not None}
            for pipe in wait_for(list(busy)):
                worker = busy[cast("Connection", pipe)]
                task, worker.task = worker.task, None
                assert task is not None
                try:
                    error = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    self.workers.remove(worker)
                    code = worker.process.exitcode or 0
                    why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                    _again(task, tries, f"worker process {worker.process.pid} died ({why})")
                    queue.append(task)
                    continue
                if error is not None:
                    raise error
                advance()

    def _idle(self) -> _Worker | None:
        for worker in self.workers:
            if worker.task is None:
                return worker
        if len(self.workers) < self.count:
            self.workers.append(_Worker(self.context))
            return self.workers[-1]
        return None


class Ray:
    """Ray core tasks, one CPU each, on the cluster at `address` (or RAY_ADDRESS), else on this machine alone. Every node
    must see the same files under the same paths. Ray itself is not asked to retry, so that a death is named."""

    def __init__(self, workers: int, address: str | None) -> None:
        try:
            import ray
            from ray import exceptions
        except ImportError:
            raise Refused('engine: ray needs the extra "ray": pip install "lmlab[ray]"') from None
        self.ray: Any = ray
        self.dead = (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,
        )
        self.workers, self.address = workers, address or os.environ.get("RAY_ADDRESS")
        self.started = False

    def __enter__(self) -> Ray:
        if self.ray.is_initialized():
            return self
        local: dict[str, Any] = {} if self.address else {"num_cpus": self.workers, "include_dashboard": False}
        try:
            self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **local)
        except ConnectionError as error:
            raise Failed(f"engine: ray: no cluster answers at '{self.address}': {error}") from None
        self.started = True
        return self

    def __exit__(self, *_: object) -> None:
        if self.started:
            self.ray.shutdown()

    def __call__(self, tasks: Sequence[Task], advance: Advance) -> None:
        remote = self.ray.remote(num_cpus=1, max_retries=0)(_perform)
        tries: dict[Path, int] = {}
        folder = str(Path.cwd())
        running = {remote.remote(task, folder): task for task in tasks}
        while running:
            ready, _ = self.ray.wait(list(running), num_returns=1)
            task = running.pop(ready[0])
            try:
                error = self.ray.get(ready[0])
            except self.dead as death:
                what = " ".join(str(death).split("\n", 1)[0].split())
                _again(task, tries, f"a Ray worker died ({type(death).__name__}: {what[:200]})")
                running[remote.remote(task, folder)] = task
                continue
            if error is not None:
                for reference in running:
                    self.ray.cancel(reference)
                raise error
            advance()


def _perform(task: Task, folder: str) -> LmlabError | None:
    """`engine.perform`, where relative paths mean what they mean to the driver, with its error as a value: Ray would
    wrap it in a traceback."""
    try:
        os.chdir(folder)
        engine.perform(task)
    except LmlabError as error:
        return error
    except OSError as error:
        return Failed(f"{folder}: is not seen by every node of the cluster: {error.strerror or error}")
    return None


RUNNERS: dict[str, Any] = {"threads": Threads, "processes": Processes, "ray": Ray}
"""Each is made with (how many at a time, a cluster's address), is entered, and called with (tasks, advance)."""
