"""Muon: momentum, orthogonalised by a Newton-Schulz iteration, for the matrices of the hidden layers.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (the quintic coefficients), and for
the scale of the update max(1, rows/columns)^0.5 the same. Matrices of one shape are orthogonalised together as a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from lmlab.train.sharded import alike, local, part, whole

QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(g_NRC: Tensor, iterations: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values are driven into about [0.7, 1.2].

    (N, rows, columns) -> the same shape. Each step is X <- aX + (bA + cA^2)X with A = X X^T.
    """
    a, b, c = QUINTIC
    tall = g_NRC.shape[-2] > g_NRC.shape[-1]
    x = (g_NRC.mT if tall else g_NRC).to(dtype)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g_NRC.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, then `orthogonalise`; decoupled weight decay as in AdamW.

    Where a matrix lies in parts each rank gathers the momentum's, orthogonalises all of it, and moves its own part.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [local(cast(Tensor, parameter.grad)) for parameter in parameters]
        means = [local(self.state[parameter]["momentum"]) for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, means, group["momentum"])
        rows, columns = parameters[0].shape[-2:]
        scale = max(1.0, rows / columns) ** 0.5
        stacked = torch.stack([whole(alike(each, parameter)) for each, parameter in zip(ahead, parameters)])
        # (n, rows, columns), or (n, experts, rows, columns)
        updates = orthogonalise(stacked.view(-1, rows, columns), dtype=group["dtype"]).view_as(stacked)
        own = [part(update, parameter) for update, parameter in zip(updates.unbind(), parameters)]
        held = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(held, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(held, own, alpha=-group["lr"] * scale)
