"""Ranks that are not there: this process as any one of many, with torch's fake process group in place of the others.

Calls to the others return at once and bring nothing. With tensors that have shapes and no values (FakeTensorMode) nothing is
missing then: what a rank holds, makes and sends depends on shapes alone, but for what experts are sent, which here is alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.moe import MoE
from lmlab.objective.batch import Batch
from lmlab.train.parallel.layout import Layout, Name
from lmlab.train.parallel.world import World


@contextlib.contextmanager
def pretended(rank: int, size: int) -> Iterator[World]:
    """This process as rank `rank` of `size`, in the block. Raises RuntimeError where it is a rank of real ones."""
    if dist.is_initialized():
        raise RuntimeError("ranks cannot be pretended in a process that is one of several already")
    import torch.distributed._tools.fake_collectives  # noqa: F401  (calls to others, for tensors without values)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield World(rank, size)
    finally:
        dist.destroy_process_group()


class Pretended(Layout):
    """A layout of which nobody else is there: what the others would say of numbers is what this rank says."""

    def sums(self, values: Mapping[Name, float]) -> dict[Name, float]:
        return dict(values)

    def agree(self, value: float) -> float:
        return value

    def norm(self, norm: float) -> float:
        return norm

    def any(self, flag: bool) -> bool:
        return flag

    def copy(self, holders: Mapping[str, tuple[int, ...]]) -> None:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        with unset_fake_temporarily():  # groups are made of ranks' numbers, which are values
            super().copy(holders)


def blank(shape: ModelConfig, rows: int, length: int) -> Batch:
    """A batch of which nothing but its shapes counts: every place is a real token of one document."""
    tokens, places = torch.zeros(rows, length, dtype=torch.long), torch.arange(length).expand(rows, length)
    source: dict[str, Any] = {}
    if shape.has_encoder:
        source = {"encoder_tokens_BS": tokens, "encoder_segments_BS": tokens, "encoder_positions_BS": places}
    real = torch.ones(rows, length, dtype=torch.bool)
    return Batch(tokens, tokens, real, segments_BT=tokens, positions_BT=places, **source)


def spread_evenly(network: nn.Module, layout: Layout) -> None:
    """Experts take equally many tokens each, whichever the router would choose: choices are values."""
    for module in network.modules():
        if isinstance(module, MoE):
            module.taken = _evenly(module.moe.experts)  # type: ignore[method-assign]
            if layout.expert_mesh is not None:
                module.experts.coming = _from_each(layout.config.expert, layout.expert_mesh.get_local_rank("expert"))  # type: ignore[attr-defined]


def _evenly(experts: int) -> Any:
    def taken(weights_NC: Tensor, chosen_NC: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        (N, C), device = weights_NC.shape, weights_NC.device
        each, more = divmod(N * C, experts)
        token_X = torch.arange(N, device=device).repeat_interleave(C)
        choice_X = torch.arange(C, device=device).repeat(N)
        return token_X, choice_X, [each + (number < more) for number in range(experts)]

    return taken


def _from_each(ranks: int, place: int) -> Any:
    def coming(sizes: list[int], device: torch.device) -> list[list[int]]:
        own = len(sizes) // ranks
        return [sizes[place * own : (place + 1) * own]] * ranks

    return coming
