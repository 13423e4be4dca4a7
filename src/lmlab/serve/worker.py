"""One thread that does all model work, so that the event loop never waits and no two requests touch a model at once.

A piece of work is an iterator. The thread takes one item from each running iterator in turn, so several answers stream
side by side, a cancelled one is closed before its next item, and what waits for a turn is kept in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.errors import LmlabError


class BusyError(LmlabError):
    """Too much work is waiting already."""


@dataclass(frozen=True)
class Ended:
    """The last event of a job: its work is over, by itself, by cancelling or by an error."""

    error: Exception | None = None


class _Job:
    """One iterator, made on the worker's thread when its turn comes, and where its items go."""

    def __init__(self, start: Callable[[], Iterator[Any]], deliver: Callable[[Any], None]) -> None:
        self.start = start
        self.deliver = deliver
        self.cancelled = False
        self.iterator: Iterator[Any] | None = None

    def step(self) -> Ended | None:
        """Take one item and deliver it; once there is no more to do, close the iterator and say how it ended."""
        error: Exception | None = None
        try:
            if not self.cancelled:
                if self.iterator is None:
                    self.iterator = iter(self.start())
                self.deliver(next(self.iterator))
                return None
        except StopIteration:
            pass
        except Exception as raised:  # whatever a model raises belongs to this request and must not end the thread
            error = raised
        close = getattr(self.iterator, "close", None)
        try:
            if close is not None:
                close()
        except Exception as late:
            error = error or late
        self.iterator = None
        return Ended(error)


class Work:
    """The jobs of one request. Iterate it for (index of the job, item), or cancel it."""

    def __init__(self, jobs: Sequence[_Job], events: asyncio.Queue[tuple[int, Any]]) -> None:
        self._jobs = jobs
        self._events = events

    def cancel(self) -> None:
        """Let no job take another item. Safe from any thread, any number of times."""
        for job in self._jobs:
            job.cancelled = True

    async def __aiter__(self) -> AsyncIterator[tuple[int, Any]]:
        """Items as they come, until all jobs have ended. Raises the first error that a job raised."""
        left = len(self._jobs)
        while left:
            index, item = await self._events.get()
            if not isinstance(item, Ended):
                yield index, item
                continue
            if item.error is not None:
                raise item.error
            left -= 1


class Worker:
    """The thread. It starts with the first work and is a daemon: it never keeps a program from ending."""

    def __init__(self, parallel: int = 8, waiting: int = 256) -> None:
        """`parallel`: how many answers may be under way at once (each holds a cache of keys and values); `waiting`: how
        many more may wait before `open` raises BusyError."""
        self._parallel = parallel
        self._limit = waiting
        self._waiting: deque[_Job] = deque()
        self._active: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def load(self) -> tuple[int, int]:
        """(jobs under way, jobs waiting)"""
        with self._changed:
            return len(self._active), len(self._waiting)

    def open(self, starts: Sequence[Callable[[], Iterator[Any]]]) -> Work:
        """Queue one job for each function. Call it in a running event loop, and `cancel` the work when done with it.

        Each function is called, and its iterator used, on the worker's thread only. Raises BusyError when full.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

        def deliver_for(index: int) -> Callable[[Any], None]:
            def deliver(item: Any) -> None:
                # The loop may be closed already when a server is being stopped: then nobody listens.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(events.put_nowait, (index, item))

            return deliver

        jobs = [_Job(start, deliver_for(index)) for index, start in enumerate(starts)]
        with self._changed:
            if self._closed or len(self._waiting) + len(jobs) > self._limit:
                raise BusyError(f"{len(self._waiting)} answers are waiting already; try again later")
            self._waiting.extend(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lmlab-model", daemon=True)
                self._thread.start()
            self._changed.notify()
        return Work(jobs, events)

    def close(self, wait: bool = True) -> None:
        """Cancel all work and end the thread after the item that is being made; `wait` for that."""
        with self._changed:
            self._closed = True
            for job in (*self._active, *self._waiting):
                job.cancelled = True
            self._changed.notify()
        if wait and self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._active and not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                while self._waiting and len(self._active) < self._parallel:
                    self._active.append(self._waiting.popleft())
            for job in list(self._active):
                end = job.step()
                if end is not None:
                    with self._changed:
                        self._active.remove(job)
                    job.deliver(end)
