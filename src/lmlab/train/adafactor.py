"""Adafactor: Adam's second moment kept as row and column sums; and its unfactored form, with which PaLM was trained.

Source: Shazeer and Stern 2018 (1804.04235), algorithms 4 and 5; PaLM (2204.02311, section 5) keeps the second moment whole
and adds a first moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lmlab.model.wide import wide
from lmlab.train.sharded import alike, local, part, whole


class Adafactor(torch.optim.Optimizer):
    """v_t = b v_{t-1} + (1 - b)(g^2 + e1) with b = 1 - t^-decay, for matrices as the outer product of its row and column
    means; u = g / sqrt(v), scaled down to a root mean square of at most `clip`; x -= a u, where a is `lr`, times
    max(e2, RMS(x)) with `scale_parameter`.

    With `momentum` above 0, u is replaced by its running mean. `weight_decay` is decoupled, as in AdamW; None decays by
    lr^2, PaLM's rule. A stack of experts' matrices is factored one matrix at a time.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        decay: float = 0.8,
        momentum: float = 0.0,
        clip: float = 1.0,
        eps: tuple[float, float] = (1e-30, 1e-3),
        weight_decay: float | None = 0.0,
        factored: bool = True,
        scale_parameter: bool = True,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "decay": decay,
                "momentum": momentum,
                "clip": clip,
                "eps": eps,
                "weight_decay": weight_decay,
                "factored": factored,
                "scale_parameter": scale_parameter,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, wide(whole(parameter.grad)), group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """`gradient` is the whole's; the factored second moment is too, what is as large as the parameter lies as it does."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        keep = 1.0 - float(state["step"]) ** -group["decay"]
        square = gradient.square() + group["eps"][0]
        update = gradient * self._inverse_root(state, square, keep, group["factored"], parameter)
        update /= (_rms(update) / group["clip"]).clamp(min=1.0)
        rate = group["lr"]
        if group["scale_parameter"]:
            rate = rate * _rms(wide(whole(parameter))).clamp(min=group["eps"][1])
        update = part(update, parameter)
        if group["momentum"]:
            mean = state.setdefault("mean", alike(torch.zeros_like(update), parameter))
            update = local(mean).lerp_(update, 1 - group["momentum"])
        decay = group["lr"] ** 2 if group["weight_decay"] is None else group["lr"] * group["weight_decay"]
        held = local(parameter)
        held.mul_(1 - decay)
        held.sub_((rate * update).to(held.dtype))

    @staticmethod
    def _inverse_root(
        state: dict[str, Tensor], square: Tensor, keep: float, factored: bool, parameter: Tensor
    ) -> Tensor:
        """1 / sqrt(v) after v has taken in this step's squares."""
        if not factored or square.dim() < 2:
            own = part(square, parameter)
            mean = state.setdefault("square", alike(torch.zeros_like(own), parameter))
            local(mean).lerp_(own, 1 - keep)
            return whole(mean).rsqrt()
        rows = state.setdefault("rows", torch.zeros_like(square[..., 0]))
        columns = state.setdefault("columns", torch.zeros_like(square[..., 0, :]))
        rows.lerp_(square.mean(-1), 1 - keep)
        columns.lerp_(square.mean(-2), 1 - keep)
        row_factor = (rows / rows.mean(-1, keepdim=True)).rsqrt()
        return row_factor[..., None] * columns.rsqrt()[..., None, :]


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
