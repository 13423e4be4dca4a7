"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, 1710.03740, section 3.2).

Gradients of activations are small, and float16 ends at 6e-8: the loss is multiplied by a scale before the backward pass, and
the weights' gradients, which are float32, divided by it after. Where one overflows the step is left out and the scale halved; after
many steps without it is doubled. (torch's GradScaler does the same for one network of plain tensors; here all ranks must take
the same decision, which they do from the one gradient norm that they share.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lmlab.errors import Failed
from lmlab.train.sharded import local

STEPS = 2000
"""Steps without an overflow after which the scale is doubled (torch's default)."""
LEAST = 1e-4
"""Where the gradients overflow even here it is not the scale's doing (as fairseq has it)."""


class LossScale:
    """The scale, which changes nothing where training is not in float16. Its state goes into checkpoints."""

    def __init__(self, on: bool, scale: float) -> None:
        self.on, self.scale, self.steps = on, scale if on else 1.0, 0

    def unscale(self, parameters: Sequence[Tensor]) -> None:
        """Divide gradients by the scale, which is a power of two unless the recipe says otherwise: no bit is lost."""
        if self.on:
            torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], 1.0 / self.scale)

    def overflown(self, loss: float, norm: float) -> bool:
        """Whether the step must be left out because gradients overflowed, from its loss and their norm, which all ranks
        have alike; and set the next scale. A loss that is no number is another matter. Raises Failed where no scale helps."""
        if not self.on or not math.isfinite(loss):
            return False
        if math.isfinite(norm):
            self.steps += 1
            if self.steps == STEPS:
                self.scale, self.steps = 2 * self.scale, 0
            return False
        self.scale, self.steps = self.scale / 2, 0
        if self.scale < LEAST:
            raise Failed(
                "float16: gradients overflow at every loss scale; the weights are untouched; use bfloat16 or float32"
            )
        return True

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "steps": self.steps}

    def load(self, saved: Mapping[str, Any] | None) -> None:
        """Take back `state`; None, or a run that was not in float16, changes nothing."""
        if self.on and saved:
            self.scale, self.steps = float(saved["scale"]), int(saved["steps"])
