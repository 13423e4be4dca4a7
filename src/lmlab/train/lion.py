"""Lion: the sign of an interpolated momentum (Chen et al. 2023, 2302.06675, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lmlab.train.sharded import local


class Lion(torch.optim.Optimizer):
    """x -= lr (sign(b1 m + (1 - b1) g) + weight_decay x), then m = b2 m + (1 - b2) g.

    Rates are three to ten times smaller than AdamW's, weight decay as much larger (the paper, section 5).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum, gradient = local(state["momentum"]), local(parameter.grad)
                direction = momentum.lerp(gradient, 1 - first).sign_()
                local(parameter).mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                momentum.lerp_(gradient, 1 - second)
