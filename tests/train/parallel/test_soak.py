"""A run that is killed, told to stop, damaged and laid out anew, at random, again and again: its curve is the uninterrupted one.

`LMLAB_SOAK_SECONDS` says for how long (60); every life is printed, and drawn from `LMLAB_SOAK_SEED` (0) and its number.
"""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from toys import apart, curve, source_of, train

from lmlab.errors import Stopped
from lmlab.progress import read_jsonl
from lmlab.train.checkpoint import good, listed
from lmlab.train.parallel import ParallelConfig, World

SECONDS = float(os.environ.get("LMLAB_SOAK_SECONDS", "60"))
SEED = int(os.environ.get("LMLAB_SOAK_SEED", "0"))
STEPS, EVERY = 160, 5
ALONE: list[tuple[int, dict[str, Any]]] = [(1, {})]
LAYOUTS = [
    *ALONE,
    (2, {"zero": 0}),
    (2, {"zero": 1}),
    (2, {"zero": 3}),
    (2, {"tensor": 2}),
    (4, {"zero": 2, "tensor": 2}),
]


@dataclass
class Life:
    """Processes that train together until they are done, stopped, or dead."""

    out: Path
    folder: Path
    size: int
    layout: dict[str, Any]
    pids: list[int] = field(default_factory=list)
    before: int = 0
    """Steps in the log."""

    def begin(self) -> None:
        self.folder.mkdir()
        self.before = logged(self.out)
        for rank in range(self.size):
            pid = os.fork()
            if pid == 0:
                self._child(rank)
            self.pids.append(pid)

    def _child(self, rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(self.size), "LOCAL_RANK": str(rank)}
        status = 1
        try:
            torch.set_num_threads(1)
            if self.size > 1:
                store = f"file://{self.folder}/store"
                dist.init_process_group("gloo", init_method=store, rank=rank, world_size=self.size)
            world = World(rank, self.size)
            train("dense", self.out, ParallelConfig(**self.layout), world, sources=self._noted(rank), **SETTINGS)
            status = 0
        except Stopped as stop:
            status = stop.exit_status
        except BaseException:
            (self.folder / f"{rank}.error").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def _noted(self, rank: int) -> Callable[..., Callable[[int], list[Any]]]:
        def sources(kind: str, share: tuple[int, int]) -> Callable[[int], list[Any]]:
            (self.folder / f"{rank}.begun").touch()
            return source_of(kind, share)

        return sources

    def trains(self) -> bool:
        """Whether all have begun, and what was saved is loaded: the log is cut to it."""
        return len(list(self.folder.glob("*.begun"))) == self.size and logged(self.out) != self.before

    def over(self) -> bool:
        """Has any process ended? It is left to `ended` to say how."""
        return any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in self.pids)

    def ended(self, seconds: float = 60) -> list[int]:
        """Exit statuses of all, which must come by themselves within a minute."""
        found: dict[int, int] = {}
        until = time.monotonic() + seconds
        while len(found) < self.size and time.monotonic() < until:
            for pid in self.pids:
                if pid not in found:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        found[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        for pid in set(self.pids) - set(found):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert len(found) == self.size, f"{self}: some had not ended after {seconds:.0f} s"
        return [found[pid] for pid in self.pids]

    def errors(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.error")))


SETTINGS: dict[str, Any] = {"steps": STEPS, "checkpoint_steps": EVERY, "keep": 3, "ema": 0.9}


def logged(out: Path) -> int:
    """Steps in the log."""
    return len(read_jsonl(out / "metrics.jsonl"))


def damage(out: Path, draw: random.Random) -> str:
    """Something is done to a file of the newest checkpoint, where there is another before it."""
    found = listed(out / "checkpoints")
    if len(found) < 2 or not good(found[-2]):
        return "nothing"
    file = draw.choice(sorted(found[-1].iterdir()))
    content, what = bytearray(file.read_bytes()), draw.choice(["flipped", "cut", "lost"])
    if what == "lost":
        file.unlink()
    elif what == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    return f"{found[-1].name}/{file.name} {what}"


def soak(out: Path, folder: Path, layouts: list[tuple[int, dict[str, Any]]]) -> int:
    """Lives until the time is up or the run done, then one to its end. How many."""
    until, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        draw = random.Random(f"{SEED} {number}")
        life = Life(out, folder / f"life-{number}", *draw.choice(layouts))
        number += 1
        wanted = logged(out) + draw.randint(1, 4 * EVERY)
        life.begin()
        while not life.over() and not (life.trains() and logged(out) >= wanted):
            time.sleep(0.01)
        time.sleep(0.05 * draw.random())  # anywhere in a step, or in a save
        if life.over():
            assert set(life.ended()) == {0}, life.errors()
            break
        what = draw.choice(["all killed", "one killed", "one told to stop"])
        someone = draw.choice(life.pids)
        for pid in life.pids if what == "all killed" else [someone]:
            os.kill(pid, signal.SIGTERM if what == "one told to stop" else signal.SIGKILL)
        statuses = life.ended()
        steps = logged(out)
        saved = max((int(path.name[5:]) for path in listed(out / "checkpoints")), default=0)
        if what == "one told to stop":
            assert set(statuses) <= {Stopped.exit_status, 0}, life.errors()
        else:
            assert -signal.SIGKILL in statuses or steps == STEPS, life.errors()
        # a save that was being written is lost with the process; the one before it is not
        assert steps - saved < 2 * EVERY + 1, (what, steps, saved)
        hurt = damage(out, draw) if draw.random() < 0.4 else "nothing"
        print(f"life {number}: {life.size} {life.layout}: {what} after step {steps}, saved {saved}; damaged: {hurt}")
    last = Life(out, folder / "last", *layouts[0])
    last.begin()
    assert last.ended(240) == [0], last.errors()
    return number


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("layouts", "bound"), [(ALONE, 0.0), (LAYOUTS, 1e-6)], ids=["one process", "any layout"])
def test_the_curve_is_the_uninterrupted_one(tmp_path, layouts, bound):
    train("dense", tmp_path / "whole", **SETTINGS)
    lives = soak(tmp_path / "run", tmp_path, layouts)
    assert lives >= 3
    assert len(curve(tmp_path / "run")) == STEPS
    assert apart(curve(tmp_path / "run"), curve(tmp_path / "whole")) <= bound
    print(
        f"{lives} lives; furthest from the whole curve: {apart(curve(tmp_path / 'run'), curve(tmp_path / 'whole')):.1e}"
    )
