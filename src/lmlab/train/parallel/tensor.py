"""Tensor parallelism (Megatron-LM, 1909.08053): each rank has some heads, some of d_ff, some rows of the vocabulary.

q, k, v, gate and up are cut by columns, out and down by rows (torch's ColwiseParallel and RowwiseParallel); the embedding and
the head by rows, and the loss is taken over parts of the vocabulary. With `sequence` what stands between (norms, dropout,
residual stream) holds some tokens a rank (2205.05198): a block then gathers its input and scatters its output. Experts' weights
are cut along d_ff; the router is replicated and sees every token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from lmlab.model.block import Block, Stack
from lmlab.model.config import ModelConfig
from lmlab.model.feed_forward import FeedForward
from lmlab.model.moe import Experts, MoE, Routing
from lmlab.model.transformer import Output, Transformer
from lmlab.objective.cross_entropy import Vocabulary
from lmlab.train.parallel.collectives import added, cut, joined, same
from lmlab.train.sharded import is_part


def tensor_misfits(shape: ModelConfig, ranks: int, sequence: bool) -> Iterator[str]:
    """Why a model cannot be cut among so many ranks."""
    where = f"parallel: tensor {ranks}"
    for encoder in (False, True) if shape.has_encoder else (False,):
        sizes = shape.sizes(encoder)
        parts = {"heads": sizes.heads, "kv_heads": sizes.kv_heads, "d_ff": sizes.d_ff}
        for name, size in parts.items():
            if size % ranks:
                yield f"{where}: {'encoder ' * encoder}{name} {size} cannot be divided by it"
    if shape.moe is not None and shape.moe.d_ff is not None and shape.moe.d_ff % ranks:
        yield f"{where}: moe.d_ff {shape.moe.d_ff} cannot be divided by it"
    if shape.vocab_size % ranks:
        yield f"{where}: vocab_size {shape.vocab_size} cannot be divided by it"
    if sequence and shape.context_length % ranks:
        yield f"{where}: context_length {shape.context_length} cannot be divided by it; or set sequence: false"
    if sequence and shape.has_encoder and 16 % ranks:
        yield f"{where}: a decoder beside an encoder has rows of multiples of 16; or set sequence: false"
    if sequence and shape.dropout:
        yield f"{where}: dropout draws the same on every rank: it goes with sequence: false"
    if shape.position in ("relative-bias", "transformer-xl"):
        yield f"{where}: position {shape.position} has tables by head that are not cut yet; rope, alibi and others are"
    if shape.qk_norm and shape.qk_norm_width == "all":
        yield f"{where}: qk_norm_width all is a norm over heads of several ranks; expected head"
    if shape.moe is not None and shape.has_bias("feed_forward"):
        yield f"{where}: experts with biases are not cut yet"


def cut_network(network: Transformer, mesh: Any, sequence: bool) -> set[str]:
    """Cut a transformer in place. Returns the names of the parameters of which each rank gets a part of the gradient."""
    group, ranks = mesh.get_group(), mesh.size()
    for stack in (network, network.encoder):
        if stack is None:
            continue
        for block in stack.blocks:
            if isinstance(block, Block):  # else it is another rank's
                _cut_block(block, mesh, sequence)
        if stack.config.position == "alibi":
            stack.slopes = stack.slopes.chunk(ranks)[mesh.get_local_rank()]
        if sequence:
            _cut_stream(stack, group)
    _cut_vocabulary(network, mesh)
    return {name for name, p in network.named_parameters() if _partial(name, p, sequence)}


def _partial(name: str, parameter: Tensor, sequence: bool) -> bool:
    """Gains of queries and keys see some heads; with `sequence` every norm in a block sees some tokens. Weights that are cut
    see all, and so does the router."""
    if "blocks." not in name or hasattr(parameter, "placements"):
        return False
    return "q_norm" in name or "k_norm" in name or (sequence and "router" not in name)


def _cut_block(block: Block, mesh: Any, sequence: bool) -> None:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import PrepareModuleInput, parallelize_module

    ranks, between = mesh.size(), Shard(1) if sequence else Replicate()
    plan: dict[str, Any] = {}
    for name, taken in (("attention", 2), ("cross_attention", 3)):
        attention = getattr(block, name)
        if attention is None:
            continue
        plan |= _linear_plan(f"{name}.", ("q", "k", "v"), "out", between)
        attention.heads //= ranks
        attention.kv_heads //= ranks
        if sequence:
            rest = (None,) * (taken - 1)
            plan[name] = PrepareModuleInput(input_layouts=(between, *rest), desired_input_layouts=(Replicate(), *rest))
    thinking = block.feed_forward
    if isinstance(thinking, MoE):
        _cut_experts(thinking, mesh, sequence)
        if thinking.shared is not None:
            plan |= _linear_plan("feed_forward.shared.", _inner(thinking.shared), "down", Replicate())
    else:
        plan |= _linear_plan("feed_forward.", _inner(thinking), "down", between)
        if sequence:
            plan["feed_forward"] = PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),))
    parallelize_module(block, mesh, plan)


def _inner(layer: FeedForward) -> tuple[str, ...]:
    return ("up",) if layer.gate is None else ("gate", "up")


def _linear_plan(prefix: str, columns: tuple[str, ...], rows: str, after: Any) -> dict[str, Any]:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    plan: dict[str, Any] = {prefix + name: ColwiseParallel() for name in columns}
    return plan | {prefix + rows: RowwiseParallel(output_layouts=after)}


def _cut_stream(stack: Stack, group: Any) -> None:
    """The residual stream between the first block and the last holds this rank's tokens."""
    stack.blocks[0].register_forward_pre_hook(lambda _, given: (cut(given[0], group), *given[1:]))
    stack.blocks[-1].register_forward_hook(lambda _, given, x_BTD: joined(x_BTD, group))


def _distribute(module: nn.Module, name: str, mesh: Any, dim: int) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    held = getattr(module, name)
    if held is not None:
        made = distribute_tensor(held.detach(), mesh, [Shard(dim)], src_data_rank=None)
        setattr(module, name, nn.Parameter(made, requires_grad=held.requires_grad))


EXPERTS_CUT = {"gate": 1, "up": 1, "down": 2}
"""The dimension of d_ff of an expert's matrices."""


def _cut_experts(moe: MoE, mesh: Any, sequence: bool) -> None:
    """gate and up (E, F, D) and down (E, D, F) along F. What an expert gives is a part of a sum."""
    group, experts = mesh.get_group(), moe.experts
    if not is_part(experts.up):  # else expert parallelism has cut them so already
        for name, dim in EXPERTS_CUT.items():
            _distribute(experts, name, mesh, dim)
        experts.weights = lambda: parts_of(experts)  # type: ignore[method-assign]

    def dispatch(x_ND: Tensor, weights_NC: Tensor, chosen_NC: Tensor) -> Tensor:
        return added(MoE.dispatch(moe, same(x_ND, group), same(weights_NC, group), chosen_NC), group)

    moe.dispatch = dispatch  # type: ignore[method-assign]
    if sequence:
        moe.register_forward_pre_hook(lambda _, given: (joined(given[0], group), *given[1:]))
        moe.register_forward_hook(lambda _, given, x_BTD: cut(x_BTD, group))


def parts_of(experts: Experts) -> dict[str, Tensor | None]:
    """What this rank holds of the experts' weights."""
    return {name: None if held is None else held.to_local() for name, held in Experts.weights(experts).items()}  # type: ignore[attr-defined]


def _cut_vocabulary(network: Transformer, mesh: Any) -> None:
    """Embedding and head by rows. The loss gets this rank's rows, and the sums over all of them."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    group, rows = mesh.get_group(), network.config.vocab_size // mesh.size()
    if network.embedding is not None:
        parallelize_module(network.embedding, mesh, RowwiseParallel(input_layouts=Replicate()))
    if network.head is not None:
        _distribute(network.head, "weight", mesh, 0)
    _distribute(network, "head_bias", mesh, 0)

    def over(operation: Any) -> Any:
        def reduce(x: Tensor) -> Tensor:
            x = x.contiguous()
            dist.all_reduce(x, operation, group)
            return x

        return reduce

    part = Vocabulary(mesh.get_local_rank() * rows, over(dist.ReduceOp.MAX), over(dist.ReduceOp.SUM))

    made = network._output

    def localised(x_BTD: Tensor, routing: Routing) -> Output:
        output = made(x_BTD, routing)
        output.head_VD, output.vocabulary = output.head_VD.to_local(), part  # type: ignore[attr-defined]
        if output.head_bias_V is not None:
            output.head_bias_V = output.head_bias_V.to_local()  # type: ignore[attr-defined]
        return output

    network._output = localised  # type: ignore[method-assign]


def complete(network: nn.Module, partial: set[str], group: Any) -> None:
    """After a backward pass: sum the gradients of which each rank has a part, and lay each out as its parameter is."""
    for name, parameter in network.named_parameters():
        gradient: Any = parameter.grad
        if gradient is None:
            continue
        if hasattr(gradient, "placements") and gradient.placements != parameter.placements:  # type: ignore[attr-defined]
            parameter.grad = gradient.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]
        elif name in partial:
            held = gradient.to_local() if hasattr(gradient, "placements") else gradient
            dist.all_reduce(held, group=group)
