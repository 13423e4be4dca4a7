"""Plain values passed between ranks, as JSON: torch's own calls for objects pickle them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

MINUTES = 30


class Messages:
    """A group of all ranks beside those that train, so that a thread may speak there while the trainer is at work. Every rank
    makes one at the same time. Of one process nothing is opened."""

    def __init__(self, several: bool) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(minutes=MINUTES)) if several else None

    def gather(self, value: Any) -> list[Any]:
        """What each rank says, in the order of ranks."""
        text = json.dumps(value)
        if self._group is None:
            return [json.loads(text)]
        size = dist.get_world_size(self._group)
        own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_gather(lengths, torch.tensor([len(own)]), group=self._group)
        longest = max(int(each) for each in lengths)
        rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
        dist.all_gather(rows, torch.nn.functional.pad(own, (0, longest - len(own))), group=self._group)
        return [json.loads(bytes(row[: int(n)].numpy())) for row, n in zip(rows, lengths, strict=True)]
