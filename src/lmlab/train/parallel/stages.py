"""A stage of a pipeline: some of the blocks, and what stands before the first of them or after the last.

Blocks are counted through the encoder and then the decoder. From stage to stage passes

in the encoder     (x (B, S, D),)
between the two    (memory (B, S, D),)
in the decoder     (x (B, T, D),), beside an encoder (x, memory)

and behind it, of a model with experts, what their routers have added up so far. Masks and positions are no part of it: every
stage has the batch and makes its own. With `sequence` x holds this rank's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmlab.model.attention import Place
from lmlab.model.block import Seen, Stack
from lmlab.model.config import ModelConfig
from lmlab.model.moe import Routing
from lmlab.model.transformer import Output, Transformer
from lmlab.model.wide import wide_type
from lmlab.train.parallel.schedules import spans

if TYPE_CHECKING:
    from lmlab.train.parallel.layout import Layout, ParallelConfig


def block_counts(shape: ModelConfig) -> tuple[int, int]:
    """Blocks of (the encoder, the decoder)."""
    return shape.sizes(True).layers if shape.has_encoder else 0, shape.layers


def pipeline_misfits(config: ParallelConfig, shape: ModelConfig | None = None) -> Iterator[str]:
    """Why a pipeline cannot be so."""
    where, each = f"parallel: pipeline {config.pipeline}", config.stages // config.pipeline
    if config.schedule != "interleaved-1f1b" and each > 1:
        yield f"{where}: stages_per_rank {each} goes with schedule interleaved-1f1b, found {config.schedule}"
    if config.schedule == "interleaved-1f1b" and each < 2:
        yield f"{where}: schedule interleaved-1f1b is of at least 2 stages_per_rank, found {each}; 1f1b has one"
    if shape is not None and config.stages > sum(block_counts(shape)):
        yield f"{where}: {config.stages} stages cannot be made of {sum(block_counts(shape))} blocks"


def uses(shape: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What is in no block, by name -> the blocks in whose stages it is used."""
    encoder, decoder = block_counts(shape)
    last = encoder + decoder - 1
    begins = (0, encoder) if encoder else (0,)
    found: dict[str, tuple[int, ...]] = {
        "embedding": (*begins, last) if shape.tie_embeddings else begins,
        "project_in": begins,
        **dict.fromkeys(("project_out", "head", "head_bias"), (last,)),
    }
    for prefix, blocks in (("encoder.", range(encoder)), ("", range(encoder, last + 1))):
        if blocks:
            found |= dict.fromkeys((prefix + n for n in ("position", "block_position", "embedding_norm")), (blocks[0],))
            found |= {f"{prefix}relative_bias": tuple(blocks), f"{prefix}final_norm": (blocks[-1],)}
    return found


def keep(network: nn.Module, layout: Layout) -> None:
    """Take from a network, in place, what other ranks of the pipeline have. Names stay as they are; what several ranks use
    (a tied embedding, a table of relative positions) each has, and `layout.finish` adds their gradients up."""
    if not isinstance(network, Transformer):
        raise TypeError(f"a pipeline is made of a Transformer, found {type(network).__name__}")
    before = _trained(network)
    where = [stage % layout.pipeline for stage, span in enumerate(_cut(network.config, layout)) for _ in span]
    blocks = [(stack, at) for stack in _stacks(network) for at in range(len(stack.blocks))]
    for (stack, at), rank in zip(blocks, where, strict=True):
        if rank != layout.place:
            stack.blocks[at] = nn.Identity()
    holders: dict[str, tuple[int, ...]] = {}
    for name, used in uses(network.config).items():
        *prefix, child = name.split(".")
        stack: Any = network.encoder if prefix else network
        if getattr(stack, child) is None:
            continue
        ranks = tuple(sorted({where[block] for block in used}))
        if len(ranks) > 1:
            holders |= {each: ranks for each in before if each == name or each.startswith(f"{name}.")}
        if layout.place not in ranks:
            setattr(stack, child, None)
    layout.elsewhere = before - _trained(network)
    layout.copy(holders)


def _cut(shape: ModelConfig, layout: Layout) -> list[range]:
    return spans(sum(block_counts(shape)), layout.config.stages)


def _stacks(network: Transformer) -> list[Stack]:
    return [network] if network.encoder is None else [network.encoder, network]


def _trained(network: nn.Module) -> set[str]:
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return set(network.state_dict()) - frozen


@dataclass
class Stage:
    """One stage of a network of which `keep` has left this rank's part."""

    network: Transformer
    number: int
    span: range
    last: bool

    def passed(self, given: dict[str, Any], ranks: int, after: bool) -> tuple[Tensor, ...]:
        """What comes into this stage, or with `after` goes out, of a batch given so, as empty tensors on the meta device.
        `ranks`: those that x is divided among by tokens."""
        shape, encoder = self.network.config, block_counts(self.network.config)[0]
        B, T = given["tokens_BT"].shape
        S = given["encoder_tokens_BS"].shape[1] if encoder else 0
        at, D = self.span.stop if after else self.span.start, shape.d_model
        if after and self.last:
            return _empty([(B, T, shape.hidden_width)], _kind(self.network))
        if at == 0:
            return ()
        if at < encoder:
            found = [(B, S // ranks, D)]
        elif at == encoder:
            found = [(B, S, D)]
        else:
            found = [(B, T // ranks, D), *([(B, S, D)] if encoder else [])]
        told = [(3,)] if shape.moe is not None else []
        return _empty(found, _kind(self.network)) + _empty(told, _wide(self.network))

    def forward(self, carried: tuple[Tensor, ...], given: dict[str, Any]) -> tuple[Tensor, ...] | Output:
        """What the stage before gave -> what goes to the next one, or of the last the network's output."""
        encoder, rest, routing = block_counts(self.network.config)[0], list(carried), Routing()
        told = self._told(rest, given["tokens_BT"].device)
        memory = rest.pop() if self.span.start >= encoder > 0 else None
        x = rest.pop() if rest else None
        if self.span.start < encoder:
            x, memory = None, self._encoded(x, given, routing)
        if self.span.stop > encoder:
            x = self._decoded(x, memory, given, routing)
        told = None if told is None else _added(told, routing)
        if self.last:
            assert x is not None
            return self._output(x, told)
        found = (each.to(_kind(self.network)).contiguous() for each in (x, memory) if each is not None)
        return *found, *([] if told is None else [told])

    def _told(self, rest: list[Tensor], device: torch.device) -> Tensor | None:
        if self.network.config.moe is None:
            return None
        return rest.pop() if rest else torch.zeros(3, dtype=_wide(self.network), device=device)

    def _encoded(self, x_BSD: Tensor | None, given: dict[str, Any], routing: Routing) -> Tensor:
        """Through this stage's blocks of the encoder."""
        stack, named = self.network.encoder, ("tokens_BS", "positions_BS", "segments_BS", "padding_BS")
        assert stack is not None
        tokens_BS, *rest = (given.get(f"encoder_{name}") for name in named)
        seen = stack.seen(tokens_BS, *rest, None, self.network.kernel)  # type: ignore[arg-type]
        if x_BSD is None:
            x_BSD = stack.placed(self.network._embed(tokens_BS), seen.positions_BT, None)  # type: ignore[arg-type]
        return _through(stack, range(self.span.start, min(self.span.stop, len(stack.blocks))), x_BSD, seen, routing)

    def _decoded(
        self, x_BTD: Tensor | None, memory_BSD: Tensor | None, given: dict[str, Any], routing: Routing
    ) -> Tensor:
        """Through this stage's blocks of the decoder."""
        network, named = self.network, ("positions_BT", "segments_BT", "padding_BT", "prefix_B")
        before, tokens_BT = block_counts(network.config)[0], given["tokens_BT"]
        seen = network.seen(tokens_BT, *(given.get(name) for name in named), network.kernel)  # type: ignore[arg-type]
        if x_BTD is None:
            x_BTD = network.placed(network._embed(tokens_BT), seen.positions_BT, given.get("block_positions_BT"))
        cross = None
        if memory_BSD is not None:
            masks = given.get("encoder_segments_BS"), given.get("encoder_padding_BS")
            cross = network.crossed(seen, memory_BSD, *masks)
        blocks = range(max(self.span.start - before, 0), self.span.stop - before)
        return _through(network, blocks, x_BTD, seen, routing, memory_BSD, cross)

    def _output(self, x_BTD: Tensor, told: Tensor | None) -> Output:
        output, moe = self.network._output(x_BTD, Routing()), self.network.config.moe
        if told is not None and moe is not None:
            layers = expert_layers(self.network.config)
            output.auxiliary = {"balance": told[0] / layers, "router_z": told[1] / layers, "expert_load": told[2]}
            output.penalty = moe.balance_loss * told[0] + moe.z_loss * told[1]
        return output


def _through(
    stack: Stack,
    blocks: range,
    x: Tensor,
    seen: Seen,
    routing: Routing,
    memory: Tensor | None = None,
    cross: Place | None = None,
) -> Tensor:
    """Some blocks of a stack, and its final norm after the last."""
    routing.real_N = seen.real_N
    for at in blocks:
        x = stack.blocks[at](x, seen.place, routing, memory, cross)
    ends = blocks.stop == len(stack.blocks)
    return stack.final_norm(x) if ends and stack.final_norm is not None else x


def _kind(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _wide(network: nn.Module) -> torch.dtype:
    """Of the routers' numbers."""
    return wide_type(next(network.parameters()))


def _empty(shapes: Sequence[tuple[int, ...]], kind: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(torch.empty(shape, dtype=kind, device="meta", requires_grad=True) for shape in shapes)


def _added(told: Tensor, routing: Routing) -> Tensor:
    """The routers' balance losses and z-losses, added up over layers, and the largest load of an expert."""
    if not routing.balance:
        return told
    load = torch.maximum(told[2].detach(), torch.stack(routing.load_E).max())
    return torch.stack((told[0] + sum(routing.balance), told[1] + sum(routing.z), load))


def expert_layers(shape: ModelConfig) -> int:
    """Blocks with experts, the encoder's too."""
    return sum(shape.has_experts(layer) for count in block_counts(shape) for layer in range(count))


def stages_of(network: Transformer, layout: Layout) -> list[Stage]:
    """This rank's stages."""
    cut = _cut(network.config, layout)
    own = range(layout.place, len(cut), layout.pipeline)
    return [Stage(network, number, cut[number], number == len(cut) - 1) for number in own]
