"""The processes of a run. torchrun (or whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts one a rank.

Rank 0 decides and writes; the others follow what it says on a board, a row of messages in torch's store, which needs no
collective call: a follower may wait there for hours. Only what trains together (`train/parallel/`) opens process groups.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

from lmlab.errors import Failed

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""Rank 0 is taken for dead when its heart has not beaten for so long."""


def rank() -> int:
    """This process's number, 0 where there is one process."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Board:
    """What rank 0 says, read in order by each of the others. `store` is torch's, shared by all ranks."""

    def __init__(self, store: Any) -> None:
        self.store, self.rank, self.size = store, rank(), size()
        self._count = 0
        self._over = threading.Event()
        if self.rank == 0:
            threading.Thread(target=self._beat, name="heart of rank 0", daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Rank 0: say it to all."""
        self.store.set(f"board/{self._count}", json.dumps(message))
        self._count += 1

    def hear(self) -> dict[str, Any]:
        """The others: the next message. Raises Failed where rank 0 failed, left, or is silent."""
        key, last = f"board/{self._count}", b""
        while True:
            try:
                self.store.wait([key], timedelta(seconds=SILENCE_SECONDS))
                message = json.loads(self.store.get(key))
                break
            except Exception:  # torch's own kinds: the time is over, or whoever held the store is gone
                with contextlib.suppress(Exception):
                    beat = self.store.get("beat") if self.store.check(["beat"]) else b""
                    if beat != last:
                        last = beat
                        continue
                raise Failed(
                    f"rank {self.rank}: rank 0 has been silent for {SILENCE_SECONDS:.0f} s: stopping"
                ) from None
        self._count += 1
        if "error" in message:
            raise Failed(f"rank {self.rank}: stopping, because rank 0 did: {message['error']}")
        return message

    def first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes while the others wait: plain JSON values, the same for all."""
        if self.rank:
            return self.hear()["value"]
        value = make()
        self.tell({"value": value})
        return value

    def _beat(self) -> None:
        beats = 0
        while not self._over.is_set():
            beats += 1
            with contextlib.suppress(Exception):
                self.store.set("beat", str(beats))
            self._over.wait(BEAT_SECONDS)

    def close(self) -> None:
        """All leave: rank 0, whose process may hold the store, as the last."""
        self._over.set()
        with contextlib.suppress(Exception):
            if self.rank:
                self.store.add("left", 1)
            else:
                for _ in range(100):
                    if self.store.add("left", 0) >= self.size - 1:
                        break
                    time.sleep(0.1)


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
