"""Numbers about gradients for the log: their norm by layer, and the noise between micro-batches."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lmlab.model.wide import wide
from lmlab.train.parallel.layout import Layout
from lmlab.train.sharded import local, whole

NO_NOISE = (
    "noise_scale_every goes with data parallelism, and not with parallel.tensor, pipeline or expert: gradients of "
    "their ranks are complete only at the end of a step"
)


def layer_of(name: str) -> str:
    """The part of the network that a parameter belongs to: a block by its number, else the first part of the name."""
    found = re.match(r"(.*?\bblocks\.\d+)\.", name)
    return found[1] if found else name.split(".", maxsplit=1)[0]


def layer_norms(network: nn.Module) -> dict[str, float]:
    """{`grad_norm/LAYER`: norm of its gradients}, before clipping. An embedding's that is far above the others' is the
    early sign of a collapse (GLM-130B, 2210.02414)."""
    squares: dict[str, float] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            layer = layer_of(name)
            squares[layer] = squares.get(layer, 0.0) + float(whole(wide(parameter.grad).square().sum()))
    return {f"grad_norm/{layer}": math.sqrt(square) for layer, square in squares.items()}


class NoiseScale:
    """The simple noise scale B = tr(S) / |G|^2, about the largest batch (in whatever `sizes` count) that still saves steps
    (McCandlish et al. 2018, 1812.06162, appendix A.1): unbiased from the squared norms of micro-batches' gradients and of
    the step's. Both are averaged over steps before they are divided, because the ratio of noisy numbers is biased.
    """

    def __init__(self, parameters: Sequence[Tensor], layout: Layout | None = None, keep: float = 0.9) -> None:
        """`layout`: ranks that have their part of every micro-batch; the gradients are then the whole micro-batch's. Not
        with tensor, pipeline or expert parallelism, which complete gradients only at the end of a step. Raises ValueError
        there."""
        self.parameters, self.layout, self.keep = parameters, layout or Layout(), keep
        if max(self.layout.tensor, self.layout.pipeline, self.layout.config.expert) > 1:
            raise ValueError(NO_NOISE)
        self._before: list[Tensor] = []
        self._squares: list[float] = []
        self.trace = self.square = 0.0
        self._scale = 1.0

    def begin(self, scale: float = 1.0) -> Callable[[], None]:
        """Before a step whose noise is measured, its gradients `scale` times what they are; the function that it returns is
        to be called after each micro-batch."""
        self._scale = scale
        self._before = [torch.zeros_like(local(p)) for p in self.parameters]
        self._squares = []
        return self._after

    @torch.no_grad()
    def _after(self) -> None:
        now = [torch.zeros_like(b) if p.grad is None else local(p.grad).detach().clone()
               for p, b in zip(self.parameters, self._before)]  # fmt: skip
        self._squares.append(self._norm2([a - b for a, b in zip(now, self._before)]))
        self._before = now

    def _norm2(self, gradients: list[Tensor]) -> float:
        """The squared norm of gradients of which each rank holds a part (weights in parts) or a summand."""
        if not self.layout.sharded:
            gradients = [self.layout.total(each) for each in gradients]
        square = sum(float(wide(each).square().sum()) for each in gradients) / self._scale**2
        return self.layout.sums({"square": square})["square"] if self.layout.sharded else square

    def end(self, sizes: list[int]) -> dict[str, float]:
        """{noise_scale} after the step's last micro-batch; {} where it cannot be told (one micro-batch, or no signal).

        `sizes` are this rank's counts of the micro-batches; gradients were divided by the count of the whole step.
        """
        found = self.layout.sums({str(place): n for place, n in enumerate(sizes)})
        sizes = [round(n) for n in found.values()]
        whole = sum(sizes)
        if len(sizes) < 2 or not whole:
            return {}
        big = self._norm2(self._before)
        small = [square * (whole / n) ** 2 for square, n in zip(self._squares, sizes) if n]
        inverse = sum(1 / n for n in sizes if n) / len(small)
        mean_small = sum(small) / len(small)
        trace = (mean_small - big) / (inverse - 1 / whole)
        square = big - trace / whole
        self.trace = self.keep * self.trace + (1 - self.keep) * trace
        self.square = self.keep * self.square + (1 - self.keep) * square
        return {"noise_scale": self.trace / self.square} if self.square > 0 and self.trace > 0 else {}
