"""The processes that train together: this one's number, how many there are, and the device of this one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch

from lmlab.ranks import Board, rank

MINUTES = 30
"""After so long in one collective call a rank takes the others for dead (torch's default for gloo)."""


CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU


def device_here() -> torch.device:
    """This process's own GPU (of a node's the one of LOCAL_RANK, the first where one process runs alone), or the CPU."""
    gpus = torch.cuda.device_count()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank())) % gpus) if gpus else CPU


def join(board: Board | None) -> World:
    """Open torch's process group over the board's store, once: gloo on CPUs, nccl beside it where there are GPUs. The run
    closes it (`ranks.together`). Without a board there is one process."""
    device = device_here()
    if device != CPU:
        torch.cuda.set_device(device)
    if board is None:
        return World(device=device)
    import torch.distributed as dist

    if not dist.is_initialized():
        store = dist.PrefixStore("group", board.store)
        backend = "gloo" if device == CPU else "cpu:gloo,cuda:nccl"
        timeout = timedelta(minutes=MINUTES)
        dist.init_process_group(backend, store=store, rank=board.rank, world_size=board.size, timeout=timeout)
    return World(board.rank, board.size, device)
