"""A network made parallel, from outside and in a fixed order. The model's code knows nothing of ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lmlab.device import quiet_compiling
from lmlab.errors import Refused
from lmlab.model.attention import Attention, Place
from lmlab.model.block import Block
from lmlab.model.moe import MoE
from lmlab.model.transformer import Transformer
from lmlab.progress import say
from lmlab.train import float8
from lmlab.train.parallel.context import spread_context
from lmlab.train.parallel.eight_bits import to_float8
from lmlab.train.parallel.experts import divide_experts, shard_experts
from lmlab.train.parallel.layout import Layout
from lmlab.train.parallel.stages import keep
from lmlab.train.parallel.tensor import cut_network
from lmlab.train.sharded import is_part
from lmlab.train.step import HALVES


def parallelize(network: nn.Module, layout: Layout, compiled: bool = False, precision: str = "float32") -> nn.Module:
    """Change a network in place, which every rank holds alike, into this rank's part of it, on its device. Returns it.
    `compiled`: each block by itself, so that what stands between blocks (a gathering of weights) is no part of the graph.
    `precision`: with weights in parts, 16 bits are gathered of each where that is what it is computed in; float8 changes the
    layers that multiply in it. Raises Refused where the device or the network cannot."""
    _refuse_lacking(precision, layout)
    if layout.pipeline > 1:
        keep(network, layout)
    if layout.world.device.type != "cpu":  # else nothing is touched: the planner's tensors cannot be exchanged
        network.to(layout.world.device)
    if not layout.several:
        _eight_bits(network, layout, precision)
        _recompute(network, layout.config.recompute)
        return network
    for module in network.modules():
        if isinstance(module, MoE):
            module.total = layout.total  # type: ignore[method-assign]
    if layout.expert_mesh is not None:
        layout.divided = divide_experts(network, layout.expert_mesh)
    for name, module in network.named_modules():
        if isinstance(module, Transformer) and layout.tensor > 1:
            found = cut_network(module, layout.mesh["tensor"], layout.config.sequence)
            layout.partial |= {f"{name}.{each}" if name else each for each in found}
        if isinstance(module, Transformer) and layout.context > 1:
            spread_context(module, layout.context_mesh.get_group(), layout.config.context_method)
    layout.divide(network)
    _eight_bits(network, layout, precision)
    _recompute(network, layout.config.recompute)
    if compiled:
        quiet_compiling()
        _await_embedding(network)
        for block in blocks_of(network):
            block.compile()
    if layout.sharded:
        _shard(network, layout, precision)
    return network


def _await_embedding(network: nn.Module) -> None:
    """An embedding cut by rows gives a tensor that is still on its way (torch's AsyncCollectiveTensor). Taken into a compiled
    block it leaves the graph, with an error or, worse, with none and an embedding that learns nothing; a copy is plain."""
    for module in network.modules():
        if isinstance(module, Transformer) and module.embedding is not None and is_part(module.embedding.weight):
            module.embedding.register_forward_hook(lambda _, __, x: x.clone())


def _refuse_lacking(precision: str, layout: Layout) -> None:
    if (problem := float8.lacking(precision, layout.world.device)) is not None:
        raise Refused(problem)


def _eight_bits(network: nn.Module, layout: Layout, precision: str) -> None:
    if precision == "float8":
        said = to_float8(network)
        if layout.leads:
            say(said)


def _recompute(network: nn.Module, what: str) -> None:
    """Blocks, or their attention, keep their inputs and compute the rest again."""
    from torch.utils.checkpoint import checkpoint

    if what == "none":
        return
    kind = Block if what == "full" else Attention
    for module in [each for each in network.modules() if isinstance(each, kind)]:
        kept = functools.partial(checkpoint, module.forward, use_reentrant=False)
        module.forward = functools.partial(_with_biases, kept)  # type: ignore[method-assign]


def _with_biases(forward: Callable[..., Any], *given: Any) -> Any:
    """Makes first what the layers of a pass share."""
    for each in given:
        if isinstance(each, Place):
            each.dense()
    return forward(*given)


def blocks_of(network: nn.Module) -> list[Block]:
    """Every block, the encoder's too."""
    return [module for module in network.modules() if isinstance(module, Block)]


def _shard(network: nn.Module, layout: Layout, precision: str) -> None:
    """ZeRO 2 and 3 (FSDP, 2304.11277): a block's weights are gathered when it runs. What is in no block (embedding, head) is
    gathered once a pass: the head is used by the loss, after the network's own forward.

    In 16 bits the float32 weights of each rank's part are the master copy: a cast one is gathered and computed with, and its
    gradients are added up in float32 (1710.03740, section 3.1). Activations are autocast's, as on one process."""
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh, reshard = layout.mesh["data"], layout.config.zero == 3
    settings: dict[str, Any] = {}
    if precision in HALVES:
        settings["mp_policy"] = MixedPrecisionPolicy(HALVES[precision], torch.float32, cast_forward_inputs=False)
    if layout.config.cpu_offload:
        settings["offload_policy"] = CPUOffloadPolicy()
    if layout.expert_mesh is not None:
        shard_experts(network, layout.expert_mesh, reshard, **settings)
    for module in blocks_of(network):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard, **settings)
    fully_shard(network, mesh=mesh, reshard_after_forward=False, **settings)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
