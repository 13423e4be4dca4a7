"""Ranks for tests: processes that are forked, one thread each, with gloo between them."""

import faulthandler
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor  # imported before the fork: a child that imports takes seconds

from lmlab.train.parallel import World

torch.ones((), requires_grad=True).backward()
"""Backward passes are readied once a process. After a test that uses fake tensors torch would start threads for a GPU that it takes
to be there, and forked children could not train."""

SECONDS = float(os.environ.get("LMLAB_RANKS_SECONDS", "600"))
"""After which ranks that have not ended are ended; more in `make laws`, whose eight ranks share what cores there are."""


def _child(work: Callable[[World], Any], rank: int, size: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    status = 1
    faulthandler.enable((folder / f"{rank}.fault").open("w"))
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
        (folder / f"{rank}.json").write_text(json.dumps(work(World(rank, size))))
        dist.barrier()
        dist.destroy_process_group()
        status = 0
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def run_ranks(work: Callable[[World], Any], size: int, folder: Path) -> list[Any]:
    """What `work(world)` returns (JSON values) on each of `size` ranks. The first error stops all."""
    folder.mkdir(parents=True)
    children: dict[int, int] = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            _child(work, rank, size, folder)
        children[pid] = rank
    deadline, failed, died = time.monotonic() + SECONDS, False, []
    while children and not failed:
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                rank = children.pop(pid)
                failed = failed or status != 0
                if os.WIFSIGNALED(status):
                    died.append(f"rank {rank} was ended by signal {os.WTERMSIG(status)}")
        failed = failed or time.monotonic() > deadline
        time.sleep(0.02)
    if failed:
        time.sleep(0.5)  # the others' own errors
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if failed:
        errors = [f"rank {path.stem}:\n{path.read_text()}" for path in sorted(folder.glob("*.error"))]
        errors.sort(key=lambda said: "by peer" not in said)  # the cause last, where short summaries of a run end
        crashes = ["".join(path.open().readlines()[:12]) for path in sorted(folder.glob("*.fault"))]
        pytest.fail("\n".join([*errors, *filter(None, crashes), *died]) or f"no end after {SECONDS:g} s")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """ranks(work, size) -> what each rank returns."""
    count = iter(range(100))
    return lambda work, size: run_ranks(work, size, tmp_path / f"ranks-{next(count)}")
