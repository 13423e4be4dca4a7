"""Seconds of a training step under a layout: products at a stated utilisation, and what ranks tell each other."""

from __future__ import annotations

from dataclasses import dataclass

from lmlab.device.hardware import Device
from lmlab.model.config import ModelConfig
from lmlab.model.count import flops_in_blocks
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
    """A step of `flops` on all ranks together, each of which has `rows` rows of `length` tokens a micro-batch.

    Compute is flops / (ranks x peak x utilisation), the peak as in `peak_of`. `full` recomputation adds the forward pass again, a
    third. Tensor parallelism waits for two gatherings and two scatterings a block and pass, in float32 (the stream's type).
    Gradients are summed in float32 after the last backward pass (ZeRO 0 and 1), or block by block beside it (2 and 3), as are
    3's gatherings of weights: of those only what outlasts the products is waited for. A pipeline's bubble is `bubble_share`'s.
    """
    compute = flops / (degrees.ranks * peak_of(shape, length, device, precision) * utilisation)
    again = {"none": 0.0, "selective": 0.03, "full": 1 / 3}[degrees.recompute] * compute
    blocks = shape.sizes().layers + (shape.sizes(encoder=True).layers if shape.has_encoder else 0)
    blocks /= degrees.pipeline
    waited = hidden = 0.0
    if degrees.tensor > 1:
        rate = device.near if degrees.tensor <= device.node else device.far
        stream = 4.0 * rows * length * shape.d_model
        passes = 3 if degrees.recompute == "full" else 2
        waited += degrees.micro_batches * blocks * passes * 4 * ring(stream, degrees.tensor, rate)
    if degrees.pipeline > 1:  # a stage hands its output on, and its gradient back
        stream = 4.0 * rows * length * shape.d_model / (degrees.tensor if degrees.sequence else 1)
        rate = device.near if degrees.ranks <= device.node else device.far
        waited += 2 * degrees.micro_batches * stream / rate
    if degrees.data > 1:
        rate = device.near if degrees.data * degrees.tensor <= device.node else device.far
        weights = 4.0 * cut(shape, degrees.tensor).parameters()["total"] / degrees.pipeline
        once = ring(weights, degrees.data, rate)
        if degrees.zero <= 1:
            waited += 2 * once
        else:  # a scattering of gradients and one or two gatherings of weights, every micro-batch
            hidden += degrees.micro_batches * (3 if degrees.zero == 3 else 2) * once
    waited += max(0.0, hidden - compute - again)
    busy, share = compute + again + waited, bubble_share(degrees.pipeline, degrees.micro_batches)
    return Step(compute, again, waited, busy * share / (1 - share))
