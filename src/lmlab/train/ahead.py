"""A step's batches are made while the step before it computes, so that a run waits for its input only where making a batch
takes longer than a step. Each step's wait is logged (`input_wait`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lmlab.train.step import Source


class Ahead:
    """A source's batches, the following step's in a thread of its own.

    Only of a source with `ahead`, which says that its batches are a pure function of the step: one that asks the network for
    samples must be called when it is its turn. What is asked for is what is given, wherever the run goes back to.
    """

    def __init__(self, source: Source, prepare: Callable[[list[Any]], list[Any]] = list) -> None:
        """`prepare`: what is done to a step's batches there too."""
        self.source, self.prepare = source, prepare
        self.pool = ThreadPoolExecutor(1, "batches") if getattr(source, "ahead", False) else None
        self.coming: dict[int, Future[list[Any]]] = {}
        self.waited = 0.0
        """Seconds that the last call took."""

    def __call__(self, step: int, following: int | None = None) -> list[Any]:
        """The batches of a step; those of `following` are begun, if it is given. Raises what the source raises, when its
        step is asked for."""
        begun = time.monotonic()
        known = self.coming.pop(step, None)
        for other in self.coming.values():  # of a way that was not taken: one thread at a time asks the source
            if not other.cancel():
                other.exception()
        self.coming.clear()
        found = known.result() if known else self._make(step)
        if self.pool is not None and following is not None:
            self.coming[following] = self.pool.submit(self._make, following)
        self.waited = time.monotonic() - begun
        return found

    def _make(self, step: int) -> list[Any]:
        return self.prepare(self.source(step))

    def close(self) -> None:
        """End the thread; what it has begun is thrown away."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
