"""Orders in which files keep q, k and v in one matrix (rows) or one bias."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lmlab.model.hub.family import Weights
from lmlab.model.settings import Sizes

Three = tuple[Tensor, Tensor, Tensor]


class Order(NamedTuple):
    """`join(q, k, v, sizes)` -> fused; `split(fused, sizes)` -> (q, k, v). Rows are the first dimension."""

    join: Callable[[Tensor, Tensor, Tensor, Sizes], Tensor]
    split: Callable[[Tensor, Sizes], Three]


def _rows(sizes: Sizes) -> tuple[int, int, int]:
    return sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim


def _join_grouped(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    parts = [each.unflatten(0, (sizes.kv_heads, -1, sizes.head_dim)) for each in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 2)


def _split_grouped(fused: Tensor, sizes: Sizes) -> Three:
    each = sizes.heads // sizes.kv_heads
    groups = fused.unflatten(0, (sizes.kv_heads, each + 2, sizes.head_dim))
    q, k, v = (part.flatten(0, 2) for part in groups.split((each, 1, 1), dim=1))
    return q, k, v


SHARDS = 4
"""CodeGen's files keep the order of the four devices that it was trained on (2203.13474)."""


def _join_sharded(q: Tensor, k: Tensor, v: Tensor, sizes: Sizes) -> Tensor:
    parts = [each.unflatten(0, (SHARDS, -1)) for each in (q, v, k)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def _split_sharded(fused: Tensor, sizes: Sizes) -> Three:
    q, v, k = (part.flatten(0, 1) for part in fused.unflatten(0, (SHARDS, -1)).chunk(3, dim=1))
    return q, k, v


ORDERS: dict[str, Order] = {
    # all of q, all of k, all of v
    "plain": Order(
        lambda q, k, v, sizes: torch.cat((q, k, v)),
        lambda fused, sizes: fused.split(_rows(sizes)),  # type: ignore[return-value]
    ),
    # group by group: the queries of a key-value head, its key, its value (of multi-head: head by head)
    "grouped": Order(_join_grouped, _split_grouped),
    # device by device: its q, its v, its k
    "sharded": Order(_join_sharded, _split_sharded),
}


def parts(module: str) -> dict[str, str]:
    """The table of q, k and v as parts of one module of a file, before `fuse` and after `split`."""
    return {f"blocks.{{}}.attention.{part}": f"{module}.{part}" for part in "qkv"}


def fuse(weights: Weights, module: str, order: str, sizes: Sizes) -> Weights:
    """The `parts` of each such module (the end of its name) in one matrix, and in one bias."""
    part = re.compile(rf"(.*\.{re.escape(module)})\.[qkv]\.(weight|bias)")
    out: Weights = {}
    for name, tensor in weights.items():
        match = part.fullmatch(name)
        if match is None:
            out[name] = tensor
        elif (whole := f"{match[1]}.{match[2]}") not in out:
            q, k, v = (weights[f"{match[1]}.{each}.{match[2]}"] for each in "qkv")
            out[whole] = ORDERS[order].join(q, k, v, sizes)
    return out


def split(weights: Weights, module: str, order: str, sizes: Sizes) -> Weights:
    """The inverse of `fuse`. What has not as many rows as q, k and v together stays as it is."""
    out: Weights = {}
    for name, tensor in weights.items():
        stem, _, last = name.rpartition(".")
        if stem.endswith(f".{module}") and len(tensor) == sum(_rows(sizes)):
            separate = ORDERS[order].split(tensor, sizes)
            out |= {f"{stem}.{part}.{last}": each for part, each in zip("qkv", separate, strict=True)}
        else:
            out[name] = tensor
    return out
