"""A rank that dies, hangs or fails: the others stop, with its name. Hearts beat fast here; the law is the same."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist  # before the fork: a child that imports takes seconds

from lmlab import ranks
from lmlab.errors import Failed
from lmlab.ranks import Board
from lmlab.train.parallel import join

SECONDS = 60
"""Within which all must have stopped."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _child(work: Callable[[Board], None], rank: int, size: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    output = os.open(folder / f"{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    ranks.BEAT_SECONDS, ranks.SILENCE_SECONDS, ranks.GRACE_SECONDS = 0.2, 4.0, 1.0
    torch.set_num_threads(1)
    try:
        with ranks.together() as board:
            assert board is not None
            with board.shared():
                work(board)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        os._exit(1)
    except BaseException as error:
        print(f"traceback: {type(error).__name__}: {error}", file=sys.stderr)
        os._exit(3)
    os._exit(0)


def run(work: Callable[[Board], None], size: int, folder: Path) -> list[tuple[int, str]]:
    """(exit status, negative for a signal; what was said) of each rank."""
    port, children = free_port(), {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            _child(work, rank, size, port, folder)
        children[pid] = rank
    found: dict[int, int] = {}
    stopped, deadline = set(), time.monotonic() + SECONDS
    while len(found) < size and time.monotonic() < deadline:
        for pid, rank in children.items():
            if rank in found:
                continue
            done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if done and os.WIFSTOPPED(status):
                stopped.add(pid)
            elif done:
                found[rank] = os.waitstatus_to_exitcode(status)
        if len(found) + len(stopped) == size:
            break
        time.sleep(0.05)
    for pid, rank in children.items():
        if rank not in found:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert pid in stopped, f"rank {rank} had not stopped after {SECONDS} s"
            found[rank] = -signal.SIGSTOP
    return [(found[rank], (folder / f"{rank}.txt").read_text()) for rank in range(size)]


def steps(board: Board, at_three: Callable[[], None] = lambda: None) -> None:
    """Steps that all ranks share."""
    join(board)
    for step in range(10_000):
        if step == 3:
            at_three()
        dist.all_reduce(torch.ones(1))
        time.sleep(0.01)


def test_ranks_that_end_well_leave(tmp_path: Path) -> None:
    def work(board: Board) -> None:
        join(board)
        assert board.first(lambda: {"a": 1}) == {"a": 1}
        dist.all_reduce(torch.ones(1))

    assert [status for status, _ in run(work, 3, tmp_path)] == [0, 0, 0]


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_the_one_that_was_killed_is_named_by_the_others(tmp_path: Path, dead: int) -> None:
    def work(board: Board) -> None:
        steps(board, lambda: os.kill(os.getpid(), signal.SIGKILL) if board.rank == dead else None)

    for rank, (status, said) in enumerate(run(work, 3, tmp_path)):
        if rank == dead:
            assert status == -signal.SIGKILL
        else:
            assert status == 1, said
            assert f"error: rank {rank}: stopping, because rank {dead} has been silent for " in said


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_the_one_that_hangs_is_named_and_the_others_are_ended_where_they_wait(tmp_path: Path, dead: int) -> None:
    """No connection is closed: a collective call would wait for half an hour."""

    def work(board: Board) -> None:
        steps(board, lambda: os.kill(os.getpid(), signal.SIGSTOP) if board.rank == dead else None)

    for rank, (status, said) in enumerate(run(work, 3, tmp_path)):
        if rank != dead:
            assert status == 1, said
            assert f"error: rank {rank}: stopping, because rank {dead} has been silent for " in said


def test_the_one_that_fails_is_named_with_its_words(tmp_path: Path) -> None:
    def work(board: Board) -> None:
        def fails() -> None:
            if board.rank == 1:
                raise Failed("shard-7: no such file")

        steps(board, fails)

    (first, said), (second, own), (third, also) = run(work, 3, tmp_path)
    assert (first, second, third) == (1, 1, 1)
    assert "error: shard-7: no such file" in own
    for text in (said, also):
        assert "stopping, because rank 1 failed: shard-7: no such file" in text


def test_an_error_of_its_own_is_not_taken_for_another_s(tmp_path: Path) -> None:
    def work(board: Board) -> None:
        join(board)
        if board.rank == 0:
            raise RuntimeError("shapes differ")
        board.hear()

    (first, own), (second, said) = run(work, 2, tmp_path)
    assert first == 3 and "RuntimeError: shapes differ" in own
    assert second == 1 and "rank 1: stopping, because rank 0 did: shapes differ" in said


@pytest.mark.slow
def test_what_rank_0_does_alone_ends_when_a_follower_is_gone(tmp_path: Path) -> None:
    """And the follower of a rank 0 that is gone."""

    def alone(board: Board) -> None:
        if board.rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(SECONDS)

    status, said = run(alone, 2, tmp_path)[0]
    assert status == 1 and "rank 0: stopping, because rank 1 has been silent" in said

    def left(board: Board) -> None:
        if board.rank == 0:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        board.hear()

    status, said = run(left, 2, tmp_path)[1]
    assert status == 1 and "rank 1: stopping, because rank 0 has been silent" in said


def test_it_stays_under_a_minute() -> None:
    """The silence, told two beats later, the grace, and rank 0 waits for the others."""
    assert ranks.SILENCE_SECONDS + 2 * ranks.BEAT_SECONDS + ranks.GRACE_SECONDS + ranks.LINGER_SECONDS < 60
