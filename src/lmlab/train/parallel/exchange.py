"""Plain values and named tensors that pass between ranks of a group. As JSON and tensors: no pickle."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def told(value: Any, group: Any, source: int, device: torch.device) -> Any:
    """A JSON value of the group's rank `source`, whatever the others give. All ranks of the group must call it."""
    mine = dist.get_rank(group) == source
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor(len(text), device=device)
    dist.broadcast(length, group=group, group_src=source)
    text = text if mine else torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(text, group=group, group_src=source)
    return json.loads(bytes(text.cpu().numpy()))


def union(tensors: dict[str, Tensor], group: Any, device: torch.device) -> dict[str, Tensor]:
    """The named tensors of all ranks of a group; of a name that several have, the first's."""
    found: dict[str, Tensor] = {}
    for source in range(dist.get_world_size(group)):
        mine = dist.get_rank(group) == source
        own = [name for name in tensors if name not in found] if mine else []
        listed = [[n, list(tensors[n].shape), str(tensors[n].dtype).removeprefix("torch.")] for n in own]
        for name, shape, dtype in told(listed, group, source, device):
            made = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            tensor = tensors[name].to(device).contiguous() if mine else made
            dist.broadcast(tensor, group=group, group_src=source)
            found[name] = tensor
    return found
