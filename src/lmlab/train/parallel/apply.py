"""A network made parallel, from outside and in a fixed order. The model's code knows nothing of ranks."""

from __future__ import annotations

import functools

from torch import nn

from lmlab.device import quiet_compiling
from lmlab.model.attention import Attention
from lmlab.model.block import Block
from lmlab.model.moe import MoE
from lmlab.model.transformer import Transformer
from lmlab.train.parallel.layout import Layout
from lmlab.train.parallel.stages import keep
from lmlab.train.parallel.tensor import cut_network


def parallelize(network: nn.Module, layout: Layout, compiled: bool = False) -> nn.Module:
    """Change a network in place, which every rank holds alike, into this rank's part of it. Returns it. `compiled`: each
    block by itself, so that what stands between blocks (a gathering of weights) is no part of the graph."""
    if not layout.several:
        _recompute(network, layout.config.recompute)
        return network
    if layout.pipeline > 1:
        keep(network, layout)
    network.to(layout.world.device)
    for module in network.modules():
        if isinstance(module, MoE):
            module.total = layout.total  # type: ignore[method-assign]
    if layout.tensor > 1:
        for name, module in network.named_modules():
            if isinstance(module, Transformer):
                found = cut_network(module, layout.mesh["tensor"], layout.config.sequence)
                layout.partial |= {f"{name}.{each}" if name else each for each in found}
    layout.divide(network)
    _recompute(network, layout.config.recompute)
    if compiled:
        quiet_compiling()
        for block in blocks_of(network):
            block.compile()
    if layout.sharded:
        _shard(network, layout)
    return network


def _recompute(network: nn.Module, what: str) -> None:
    """Blocks, or their attention, keep their inputs and compute the rest again."""
    from torch.utils.checkpoint import checkpoint

    if what == "none":
        return
    kind = Block if what == "full" else Attention
    for module in [each for each in network.modules() if isinstance(each, kind)]:
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]


def blocks_of(network: nn.Module) -> list[Block]:
    """Every block, the encoder's too."""
    return [module for module in network.modules() if isinstance(module, Block)]


def _shard(network: nn.Module, layout: Layout) -> None:
    """ZeRO 2 and 3 (FSDP, 2304.11277): a block's weights are gathered when it runs. What is in no block (embedding, head) is
    gathered once a pass: the head is used by the loss, after the network's own forward."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = layout.mesh["data"]
    for module in blocks_of(network):
        fully_shard(module, mesh=mesh, reshard_after_forward=layout.config.zero == 3)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
