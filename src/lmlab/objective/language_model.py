"""The language-model objective: sum of -log P(x_i | x_<i) over the positions that carry loss (survey, eq. 4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.transformer import Output
from lmlab.objective.batch import Batch
from lmlab.objective.cross_entropy import linear_cross_entropy


class LanguageModel:
    """Next-token prediction, in nats. One term, `lm`."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weights = {"lm": weight}

    def count(self, batch: Batch) -> dict[str, int]:
        return {"lm": int(batch.mask_BT.sum())}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {
            "tokens_BT": batch.tokens_BT,
            "segments_BT": batch.segments_BT,
            "positions_BT": batch.positions_BT,
        }

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        hidden_ND = output.hidden_BTD.flatten(0, 1)
        targets_N, weights_N = batch.targets_BT.flatten(), batch.mask_BT.flatten()
        return {"lm": linear_cross_entropy(hidden_ND, output.head_VD, targets_N, weights_N, **output.head)}
