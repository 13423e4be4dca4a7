"""The processes of a run. torchrun (or whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts one a rank.

Rank 0 decides and writes; the others follow what it says on a board, a row of messages in torch's store, which needs no
collective call: a follower may wait there for hours. Only what trains together (`train/parallel/`) opens process groups.

Every rank's heart beats in the store. One that failed says so there; one that is silent is found by rank 0, which the others
watch. Then all stop, with its name, within a minute: a rank that is stuck in a collective call is ended from its heart.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from lmlab.errors import Failed, LmlabError, Stopped

ASSEMBLY_SECONDS = 600.0
"""For all ranks to have started."""
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""A rank is taken for dead when its heart has not beaten for so long. With the beats until all know, and the grace, it stays
under a minute."""
GRACE_SECONDS = 5.0
"""For a rank to stop by itself, once it is known that another is gone."""
LINGER_SECONDS = 10.0
"""For how long at most rank 0, whose process may hold the store, waits until the others have left."""


def rank() -> int:
    """This process's number, 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Board:
    """What rank 0 says, read in order by each of the others, and who is gone. `store` is torch's, shared by all ranks."""

    def __init__(self, store: Any) -> None:
        self.store, self.rank, self.size = store, rank(), size()
        self.gone: str | None = None
        self._count = 0
        self._over = threading.Event()
        watched = range(1, self.size) if self.rank == 0 else range(1)
        self._assemble(watched)
        self._seen = dict.fromkeys(watched, (b"", time.monotonic()))
        for work in (self._beat, self._guard):
            threading.Thread(target=work, name=f"heart of rank {self.rank}", daemon=True).start()

    def _assemble(self, watched: Iterable[int]) -> None:
        """Wait for the first beat of those that are watched."""
        self.store.set(f"beat/{self.rank}", "0")
        until = time.monotonic() + ASSEMBLY_SECONDS
        for other in watched:
            while not self.store.check([f"beat/{other}"]):
                if time.monotonic() > until:
                    raise Failed(
                        f"rank {self.rank}: rank {other} has not come within {ASSEMBLY_SECONDS / 60:.0f} minutes"
                    )
                time.sleep(0.05)

    # --- messages ----------------------------------------------------------------------------------------------------

    def tell(self, message: dict[str, Any]) -> None:
        """Rank 0: say it to all."""
        self.store.set(f"board/{self._count}", json.dumps(message))
        self._count += 1

    def hear(self) -> dict[str, Any]:
        """The others: the next message. Raises Failed where rank 0 failed, or a rank is gone."""
        message = json.loads(self._awaited(f"board/{self._count}"))
        self._count += 1
        if "error" in message:
            raise Failed(f"rank {self.rank}: stopping, because rank 0 did: {message['error']}")
        return message

    def _awaited(self, key: str) -> bytes:
        pause, lost = 0.01, False
        while True:
            gone = self.gone
            try:
                if not lost and self.store.check([key]):
                    return self.store.get(key)
            except Exception:
                lost = True  # whoever held the store is gone: the heart will say so
            if gone is not None:
                raise Failed(f"rank {self.rank}: stopping, because {gone}")
            time.sleep(pause)
            pause = min(0.5, 1.5 * pause)

    def first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes while the others wait: plain JSON values, the same for all."""
        if self.rank:
            return self.hear()["value"]
        value = make()
        self.tell({"value": value})
        return value

    # --- who is gone -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Work that all ranks share. When one is gone, the others find a connection closed: raises Failed with its name."""
        try:
            yield
        except Exception as error:
            if isinstance(error, LmlabError) or not _lost(error):
                raise
            until = time.monotonic() + SILENCE_SECONDS + 3 * BEAT_SECONDS + GRACE_SECONDS
            while self.gone is None and time.monotonic() < until:
                time.sleep(0.1)
            if self.gone is None:
                raise
            raise Failed(f"rank {self.rank}: stopping, because {self.gone}") from error

    def fail(self, error: BaseException) -> None:
        """Say that this rank stops, and why. The first to say so is the one that all name."""
        with contextlib.suppress(Exception):
            if not isinstance(error, Stopped) and self.gone is None and self.store.add("failures", 1) == 1:
                self.store.set("gone", f"rank {self.rank} failed: {str(error) or type(error).__name__}")

    def _beat(self) -> None:
        """A thread with a connection of its own: a call on the other may block for long. It may block too, where the process
        that holds the store hangs; `_guard` does not."""
        store, count = self.store.clone(), 0
        keys = [f"beat/{other}" for other in self._seen]
        while not self._over.wait(BEAT_SECONDS if count else 0):
            count += 1
            try:
                store.set(f"beat/{self.rank}", str(count))
                if self.gone is not None:
                    store.set("gone", self.gone)
                elif store.check(["gone"]):
                    self.gone = store.get("gone").decode()
                for other, beat in zip(self._seen, store.multi_get(keys), strict=True):
                    if beat != self._seen[other][0]:
                        self._seen[other] = (beat, time.monotonic())
            except Exception:
                return  # whoever held the store is gone, and will be silent; torch prints pages at every further call

    def _guard(self) -> None:
        """Find who is silent. Once one is gone this process stops: by itself if it can."""
        while not self._over.wait(BEAT_SECONDS / 2):
            for other, (_, since) in list(self._seen.items()):
                silent = time.monotonic() - since
                if self.gone is None and silent >= SILENCE_SECONDS:
                    self.gone = f"rank {other} has been silent for {silent:.0f} s"
            if self.gone is not None:
                if not self._over.wait(GRACE_SECONDS):
                    self._leave(self.store.clone)
                    print(f"error: rank {self.rank}: stopping, because {self.gone}", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _leave(self, connect: Callable[[], Any]) -> None:
        """Rank 0, whose process may hold the store, as the last, when the others have read there who is gone. Nobody waits for
        the one that is gone, and where it is rank 0 for nothing: the store may hang."""
        if self.rank and self.gone is not None and self.gone.startswith("rank 0 "):
            return
        with contextlib.suppress(Exception):
            store, until = connect(), time.monotonic() + LINGER_SECONDS
            if self.gone is not None:
                store.set("gone", self.gone)
            if self.rank:
                store.set(f"left/{self.rank}", "1")
                return
            gone = (self.gone or "").split(" ")[1:2]
            awaited = [f"left/{other}" for other in range(1, self.size) if [str(other)] != gone]
            while awaited and not store.check(awaited) and time.monotonic() < until:
                time.sleep(0.1)

    def close(self) -> None:
        """All leave."""
        self._over.set()
        self._leave(lambda: self.store)


LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "c10d")


def _lost(error: Exception) -> bool:
    """Whether an error looks like a collective call whose other side is gone: torch has no kind of error for it."""
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(sign in text for sign in LOST))


@contextlib.contextmanager
def together() -> Iterator[Board | None]:
    """The board of a run of several processes, None where there is one. What rank 0 fails with, all hear."""
    if size() == 1:
        yield None
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://")))
    board = Board(store)
    try:
        yield board
    except BaseException as error:
        if board.rank == 0:
            with contextlib.suppress(Exception):
                board.tell({"error": str(error) or type(error).__name__})
        board.fail(error)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        board.close()


def leave(status: Any) -> NoReturn:
    """Leave with an exit status. A process of several ends at once: gloo's threads, where they are still alive at the
    interpreter's end, abort it now and then."""
    if size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))
    sys.exit(status)
