"""The language-model objective: sum of -log P(x_i | x_<i) over the positions that carry loss (survey, eq. 4).

All pretraining objectives end here: they differ in what a batch holds and where it carries loss (tasks.py, layout.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lmlab.model.transformer import Output
from lmlab.objective.batch import Batch
from lmlab.objective.cross_entropy import linear_cross_entropy, linear_cross_entropy_and_z


class LanguageModel:
    """Next-token prediction, in nats: the term `lm`. With `z_loss` also `z`, the squared logarithm of the softmax's
    normaliser, of that weight (PaLM: 1e-4)."""

    def __init__(self, weight: float = 1.0, z_loss: float = 0.0) -> None:
        self.z_loss = z_loss
        self.weights = {"lm": weight, "z": weight * z_loss} if z_loss else {"lm": weight}

    def count(self, batch: Batch) -> dict[str, int]:
        return dict.fromkeys(self.weights, int(batch.mask_BT.sum()))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        given = {
            "tokens_BT": batch.tokens_BT,
            "segments_BT": batch.segments_BT,
            "positions_BT": batch.positions_BT,
            "padding_BT": batch.padding_BT,
            "prefix_B": batch.prefix_BT,
            "encoder_tokens_BS": batch.encoder_tokens_BS,
            "encoder_segments_BS": batch.encoder_segments_BS,
            "encoder_positions_BS": batch.encoder_positions_BS,
            "encoder_padding_BS": batch.encoder_padding_BS,
        }
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        hidden_ND = output.hidden_BTD.flatten(0, 1)
        targets_N, weights_N = batch.targets_BT.flatten(), batch.mask_BT.flatten()
        given = (hidden_ND, output.head_VD, targets_N, weights_N)
        if not self.z_loss:
            return {"lm": linear_cross_entropy(*given, **output.head)}
        nats, squares = linear_cross_entropy_and_z(*given, self.z_loss, **output.head)
        return {"lm": nats, "z": squares}
