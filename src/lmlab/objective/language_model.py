"""The language-model objective: sum of -log P(x_i | x_<i) over the positions that carry loss (survey, eq. 4).

All pretraining objectives end here: they differ in what a batch holds and where it carries loss (tasks.py, layout.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lmlab.model.transformer import Output
from lmlab.objective.batch import Batch
from lmlab.objective.cross_entropy import ByRow, cross_entropy_by_row, linear_cross_entropy

Report = dict[str, tuple[Tensor, Tensor]]
"""What is logged beside the loss: (sum, count) by name."""


class LanguageModel:
    """Next-token prediction, in nats. One term, `lm`."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weights = {"lm": weight}

    def count(self, batch: Batch) -> dict[str, int]:
        return {"lm": int(batch.mask_BT.sum())}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        given = {
            "tokens_BT": batch.tokens_BT,
            "segments_BT": batch.segments_BT,
            "positions_BT": batch.positions_BT,
            "padding_BT": batch.padding_BT,
            "prefix_B": batch.prefix_BT,
            "block_positions_BT": batch.block_positions_BT,
            "encoder_tokens_BS": batch.encoder_tokens_BS,
            "encoder_segments_BS": batch.encoder_segments_BS,
            "encoder_positions_BS": batch.encoder_positions_BS,
            "encoder_padding_BS": batch.encoder_padding_BS,
        }
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        return {"lm": linear_cross_entropy(*_rows(output, batch), **output.head)}


class RegularisedLanguageModel(LanguageModel):
    """With `z_loss` times log^2 Z in the term, Z the softmax's normaliser (PaLM, 2204.02311, section 5: 1e-4), which keeps
    log Z near 0. Both parts are reported, as `nats` and `z`."""

    def __init__(self, z_loss: float) -> None:
        super().__init__()
        self.z_loss = z_loss

    def loss_and_report(self, output: Output, batch: Batch) -> tuple[dict[str, Tensor], Report]:
        found = cross_entropy_by_row(*_rows(output, batch), z_weight=self.z_loss, **output.head)
        return {"lm": found.total}, self._report(found, batch)

    def _report(self, found: ByRow, batch: Batch) -> Report:
        n = batch.mask_BT.sum()
        return {"nats": (found.nats_N.sum(), n), "z": (found.squares_N.sum(), n)} if self.z_loss else {}


class MixedLanguageModel(RegularisedLanguageModel):
    """The same for a mixture of objectives: one loss, the mean over all tokens that carry one, as T5 and UL2 mix tasks. The
    loss of each part over its own tokens is reported as `lm/NAME`."""

    def __init__(self, names: Sequence[str], z_loss: float = 0.0) -> None:
        super().__init__(z_loss)
        self.names = names

    def _report(self, found: ByRow, batch: Batch) -> Report:
        assert batch.parts_BT is not None
        parts_N, mask_N = batch.parts_BT.flatten(), batch.mask_BT.flatten()
        report = super()._report(found, batch)
        for part, name in enumerate(self.names):
            mine_N = mask_N & (parts_N == part)
            own = ((found.nats_N * mine_N).sum(), mine_N.sum())
            before = report.get(f"lm/{name}")  # of parts that bear one name all together
            report[f"lm/{name}"] = own if before is None else (before[0] + own[0], before[1] + own[1])
        return report


def _rows(output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets and weights of all positions in a row, (N, ...)."""
    hidden_ND = output.hidden_BTD.flatten(0, 1)
    return hidden_ND, output.head_VD, batch.targets_BT.flatten(), batch.mask_BT.flatten()
