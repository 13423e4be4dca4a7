"""Context parallelism: each rank has some consecutive tokens of every row, of the batch and of all activations.

Attention alone looks at the tokens of others. `gather` (as Llama 3 was trained, 2407.21783, section 3.3.2): each rank gathers
all keys and values, and keeps the scores of its own queries. `ulysses` (2309.14509): queries, keys and values change hands, so
that each rank has all tokens of some heads, and what is found goes back. Weights are whole on every rank, and their
gradients are summed as those of data-parallel ranks are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lmlab.model.attention import Attention, Place
from lmlab.model.config import ModelConfig
from lmlab.model.seeing import Sight, with_padding
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.train.parallel.collectives import exchanged, shared


def context_misfits(shape: ModelConfig, ranks: int, method: str, tensor: int = 1) -> Iterator[str]:
    """Why a model's rows cannot be cut among so many ranks."""
    where = f"parallel: context {ranks}"
    if shape.moe is not None and shape.moe.sequence_capacity is not None:
        yield f"{where}: moe.sequence_capacity counts the tokens of whole rows; use capacity_factor"
    if method != "ulysses":
        return
    for encoder in (False, True) if shape.has_encoder else (False,):
        heads = shape.sizes(encoder).heads
        if heads % (ranks * tensor):
            held = f" ({heads // tensor} on each of {tensor} tensor-parallel ranks)" * (tensor > 1)
            yield f"{where}, ulysses: {'encoder ' * encoder}heads {heads}{held} cannot be divided by it; gather can be"
    if shape.position in ("relative-bias", "transformer-xl"):
        yield f"{where}, ulysses: position {shape.position} has tables by head that are not cut; gather needs no cut"


# --- the batch -------------------------------------------------------------------------------------------------------


def cut_batch(batch: Batch, place: int, ranks: int, multiple: int = 1) -> Batch:
    """A rank's tokens of each row (and of each source), with the positions that they have in the whole. Rows are filled up
    with padding to a multiple of ranks x `multiple`, where they are none."""
    given = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    cut: dict[str, Any] = {}
    for prefix, suffix in (("", "_BT"), ("encoder_", "_BS")):
        tokens = given[f"{prefix}tokens{suffix}"]
        if tokens is None:
            continue
        side = {name: value for name, value in given.items() if name.endswith(suffix) and value is not None}
        positions, padding = f"{prefix}positions{suffix}", f"{prefix}padding{suffix}"
        if positions not in side:
            counted = with_padding(None, None, side.get(padding))[0]
            plain = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            side[positions] = plain if counted is None else counted
        missing = -tokens.shape[1] % (ranks * multiple)
        if missing:
            side.setdefault(padding, torch.zeros_like(tokens, dtype=torch.bool))
            side = {name: F.pad(value, (0, missing), value=name == padding) for name, value in side.items()}
        cut |= {name: value.chunk(ranks, 1)[place].contiguous() for name, value in side.items()}
    return dataclasses.replace(batch, **cut)


# --- the network -----------------------------------------------------------------------------------------------------


def spread_context(network: Transformer, group: Any, method: str) -> None:
    """Make a transformer, in place, attend to the tokens of all ranks of a group. After tensor parallelism has cut it."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    gather = method == "gather"

    def widened(sight: Sight) -> Sight:
        return _all_keys(sight, rank, ranks, group) if gather else _all_tokens(sight, ranks, group)

    for stack in (network, network.encoder):
        if stack is None:
            continue
        stack.widened = widened
        if stack.config.position == "alibi" and not gather:
            stack.slopes = stack.slopes.chunk(ranks)[rank]
    for module in network.modules():
        if isinstance(module, Attention):
            module.mix = _gathering(module, group) if gather else _exchanging(module, group)  # type: ignore[method-assign]


def _whole(table_BT: Tensor | None, group: Any) -> Tensor | None:
    """A table of all ranks' tokens. It has no gradient."""
    return None if table_BT is None else shared(table_BT, group)


def _all_keys(sight: Sight, rank: int, ranks: int, group: Any) -> Sight:
    """What this rank's queries see of all keys."""
    return dataclasses.replace(
        sight,
        keys=sight.keys * ranks,
        key_positions_BS=_whole(sight.key_positions_BS, group),
        key_segments_BS=_whole(sight.key_segments_BS, group),
        prefix_BS=_whole(sight.prefix_BS, group),
        first=rank * sight.queries,
    )


def _all_tokens(sight: Sight, ranks: int, group: Any) -> Sight:
    """What all queries see of all keys."""
    return dataclasses.replace(
        _all_keys(sight, 0, ranks, group),
        queries=sight.queries * ranks,
        query_positions_BT=_whole(sight.query_positions_BT, group),
        query_segments_BT=_whole(sight.query_segments_BT, group),
    )


def _gathering(attention: Attention, group: Any) -> Any:
    def mix(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, place: Place, bias_BHTS: Tensor | None = None) -> Tensor:
        k_BSGK, v_BSGK = shared(torch.cat((k_BSGK, v_BSGK), 2), group).chunk(2, 2)
        return Attention.mix(attention, q_BTHK, k_BSGK, v_BSGK, place, bias_BHTS)

    return mix


def _exchanging(attention: Attention, group: Any) -> Any:
    ranks = dist.get_world_size(group)

    def mix(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, place: Place, bias_BHTS: Tensor | None = None) -> Tensor:
        heads, kv_heads = q_BTHK.shape[2], k_BSGK.shape[2]
        if kv_heads % ranks:  # fewer than one a rank: each query head takes its own copy along
            k_BSGK, v_BSGK = (each.repeat_interleave(heads // kv_heads, 2) for each in (k_BSGK, v_BSGK))
        q_BTHK, k_BSGK, v_BSGK = (_heads_for_tokens(each, ranks, group) for each in (q_BTHK, k_BSGK, v_BSGK))
        mixed_BTHK = Attention.mix(attention, q_BTHK, k_BSGK, v_BSGK, place, bias_BHTS)
        return _tokens_for_heads(mixed_BTHK, ranks, group)

    return mix


def _heads_for_tokens(x_BTHK: Tensor, ranks: int, group: Any) -> Tensor:
    """Some tokens of all heads -> all tokens of some heads, (B, T x ranks, H / ranks, K)."""
    by_rank = x_BTHK.unflatten(2, (ranks, -1)).movedim(2, 0)
    return exchanged(by_rank, [1] * ranks, [1] * ranks, group).movedim(0, 1).flatten(1, 2)


def _tokens_for_heads(x_BTHK: Tensor, ranks: int, group: Any) -> Tensor:
    """The way back."""
    by_rank = x_BTHK.unflatten(1, (ranks, -1)).movedim(1, 0)
    return exchanged(by_rank, [1] * ranks, [1] * ranks, group).movedim(0, 2).flatten(2, 3)
