"""Seconds of a training step under a layout: products at a stated utilisation, and what ranks tell each other."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.device.hardware import Device
from lmlab.model.config import ModelConfig
from lmlab.model.count import expert_parameters, flops_in_blocks
from lmlab.train.parallel.schedules import bubble_share
from lmlab.train.planner.memory import Degrees, cut


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step: `compute`; `recompute`, activations made again; `communication` that nothing hides;
    `bubble`, a pipeline's ranks waiting for each other."""

    compute: float
    recompute: float
    communication: float
    bubble: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compute + self.recompute + self.communication + self.bubble

    def shares(self) -> dict[str, float]:
        """Parts of the step that are not the model's own products."""
        return {name: getattr(self, name) / self.seconds for name in ("recompute", "communication", "bubble")}


def ring(size: float, ranks: int, rate: float) -> float:
    """Seconds to gather or to sum-and-scatter `size` bytes in all over a ring of ranks; an all-reduce takes twice that."""
    return size * (ranks - 1) / ranks / rate


def peak_of(shape: ModelConfig, length: int, device: Device, precision: str) -> float:
    """FLOP/s that the products of a model together can reach. In float8 those of blocks' weights go at its peak, and the head's
    and attention's at bfloat16's."""
    if precision != "float8":
        return device.peak[precision]
    tokens = (length, length) if shape.has_encoder else (0, length)
    share = flops_in_blocks(shape, *tokens) / shape.flops(*tokens, length)
    return 1 / (share / device.peak["float8"] + (1 - share) / device.peak["bfloat16"])


def step_of(
    shape: ModelConfig,
    degrees: Degrees,
    device: Device,
    *,
    flops: float,
    rows: int,
    length: int,
    precision: str,
    utilisation: float,
) -> Step:
    """A step of `flops` on all ranks together, each of which has `rows` rows of `length` tokens a micro-batch, or with
    `context` its part of each.

    Compute is flops / (ranks x peak x utilisation), the peak as in `peak_of`. `full` recomputation adds the forward pass again,
    a third. Waited for is what a block cannot go on without, in every pass: tensor parallelism's two gatherings and two
    scatterings, in float32 (the stream's type); context parallelism's keys and values, gathered, or with ulysses exchanged for
    heads with queries and what is found; the rows of a token's experts, there and back. Gradients are summed in float32 after
    the last backward pass (ZeRO 0 and 1), or block by block beside it (2 and 3), as are 3's gatherings of weights: of those
    only what outlasts the products is waited for. A pipeline's bubble is `bubble_share`'s; of several stages a rank each hands
    on what one does.
    """
    compute = flops / (degrees.ranks * peak_of(shape, length, device, precision) * utilisation)
    again = {"none": 0.0, "selective": 0.03, "full": 1 / 3}[degrees.recompute] * compute
    tokens = degrees.micro_batches * rows * length / degrees.context
    waited = _within_blocks(shape, degrees, device, tokens, precision)
    if degrees.pipeline > 1:  # a stage hands its output on, and its gradient back
        stream = 4.0 * tokens * shape.d_model / (degrees.tensor if degrees.sequence else 1)
        rate = device.near if degrees.ranks <= device.node else device.far
        waited += 2 * degrees.stages_per_rank * stream / rate
    hidden = 0.0
    if degrees.shares > 1:
        rate = device.near if degrees.shares * degrees.tensor <= device.node else device.far
        local = cut(shape, degrees.tensor)
        experts = 4.0 * expert_parameters(local) / degrees.pipeline / degrees.expert
        weights = 4.0 * (local.parameters()["total"] - expert_parameters(local)) / degrees.pipeline
        once = ring(weights, degrees.shares, rate) + ring(experts, degrees.shares // degrees.expert, rate)
        if degrees.zero <= 1:
            waited += 2 * once
        else:  # a scattering of gradients and one or two gatherings of weights, every micro-batch
            hidden += degrees.micro_batches * (3 if degrees.zero == 3 else 2) * once
    waited += max(0.0, hidden - compute - again)
    share = bubble_share(degrees.pipeline, degrees.micro_batches, degrees.stages_per_rank)
    busy = compute + again + waited
    return Step(compute, again, waited, busy * share / (1 - share))


def _within_blocks(shape: ModelConfig, degrees: Degrees, device: Device, tokens: float, precision: str) -> float:
    """Seconds a step that a rank's blocks wait for others, of `tokens` tokens of its own."""
    waited, sizes = 0.0, shape.sizes()
    blocks = (sizes.layers + (shape.sizes(encoder=True).layers if shape.has_encoder else 0)) / degrees.pipeline
    passes, half = 3 if degrees.recompute == "full" else 2, 4.0 if precision == "float32" else 2.0
    if degrees.tensor > 1:
        rate = device.near if degrees.tensor <= device.node else device.far
        waited += blocks * passes * 4 * ring(4.0 * tokens * shape.d_model, degrees.tensor, rate)
    if degrees.context > 1:
        rate = device.near if degrees.context * degrees.tensor <= device.node else device.far
        keys = 2 * half * sizes.kv_heads * sizes.head_dim / degrees.tensor
        if degrees.context_method == "gather":
            size = keys * tokens * degrees.context
        else:  # of what a rank has it keeps a share, as of a ring it has a share
            size = (2 * half * sizes.heads * sizes.head_dim / degrees.tensor + keys) * tokens
        attended = passes + (degrees.recompute == "selective")
        waited += blocks * attended * ring(size, degrees.context, rate)
    if degrees.expert > 1 and shape.moe is not None:
        rate = device.near if degrees.expert * degrees.tensor <= device.node else device.far
        # there in the stream's type, back in that of products
        routed = (4.0 + half) * shape.moe.top_k * shape.d_model * tokens
        waited += blocks / shape.moe.every * passes * ring(routed, degrees.expert, rate)
    return waited
