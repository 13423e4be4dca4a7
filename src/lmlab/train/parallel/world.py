"""The processes that train together: this one's number, how many there are, and the device of this one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch

from lmlab.ranks import Board

MINUTES = 30
"""After so long in one collective call a rank takes the others for dead (torch's default for gloo)."""


CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU


def join(board: Board | None) -> World:
    """Open torch's process group over the board's store, once: gloo on CPUs, nccl beside it where there are GPUs. The run
    closes it (`ranks.together`). Without a board there is one process, on the CPU."""
    if board is None:
        return World()
    import torch.distributed as dist

    gpus = torch.cuda.device_count()
    device = CPU
    if gpus:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", board.rank)) % gpus)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        store = dist.PrefixStore("group", board.store)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        timeout = timedelta(minutes=MINUTES)
        dist.init_process_group(backend, store=store, rank=board.rank, world_size=board.size, timeout=timeout)
    return World(board.rank, board.size, device)
