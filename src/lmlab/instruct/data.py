"""Training batches of instructions: rows that are pure functions of (seed, number), grouped by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.errors import Refused
from lmlab.instruct.families import Family, draw, generator
from lmlab.instruct.formatting import STYLES, conversation, demonstrations, shares
from lmlab.model.transformer import Output
from lmlab.objective.batch import Batch, pad_rows
from lmlab.objective.cross_entropy import linear_cross_entropy
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer

Row = tuple[list[int], list[bool]]
"""Ids, and for each whether it is to be learnt."""

ANSWERS, TEXT = "answers", "text"
"""The terms of the loss: answers to instructions; plain text, as in pretraining."""

_MULTIPLE = 8
"""Rows are padded to a multiple of this."""

_REDRAW = 1 << 40
"""An item that does not fit is replaced by the one this much further on; no run has so many."""


@dataclass
class TermBatch(Batch):
    """A batch whose loss counts under `term`."""

    term: str = ANSWERS


class InstructionObjective:
    """Cross-entropy in nats of the answers, and under its own weight of plain text (OPT-IML's regulariser, 2212.12017).

    Each term is a mean over its own tokens of the step, so the weight means the same whatever the share of text rows.
    """

    def __init__(self, text_weight: float = 0.0) -> None:
        self.weights = {ANSWERS: 1.0, TEXT: text_weight}

    def count(self, batch: TermBatch) -> dict[str, int]:
        return {batch.term: int(batch.mask_BT.sum())}

    def inputs(self, batch: TermBatch) -> dict[str, Any]:
        return {"tokens_BT": batch.tokens_BT}

    def loss(self, output: Output, batch: TermBatch) -> dict[str, Tensor]:
        """The head sees the trained positions only: of a conversation they are a small part."""
        hidden_ND, targets_N = output.hidden_BTD[batch.mask_BT], batch.targets_BT[batch.mask_BT]
        weights_N = torch.ones(len(targets_N), device=targets_N.device)
        return {batch.term: linear_cross_entropy(hidden_ND, output.head_VD, targets_N, weights_N, **output.head)}


class InstructionRows:
    """Rows of conversations: families mixed by weight, a share of them with demonstrations."""

    def __init__(
        self,
        renderer: Renderer,
        families: Mapping[str, Family],
        *,
        seed: int,
        weights: Mapping[str, float] | None = None,
        demonstration_share: float = 0.0,
        max_demonstrations: int = 4,
        examples: int = 0,
        max_length: int = 256,
    ) -> None:
        """`examples` > 0 repeats that many different rows; 0 never repeats. `max_length` bounds a row's tokens: a row
        that is longer loses demonstrations, then its item."""
        self.renderer, self.families, self.seed = renderer, list(families.values()), seed
        self.cumulative = np.cumsum(shares(weights or {}, list(families)))
        self.demonstration_share, self.max_demonstrations = demonstration_share, max_demonstrations
        self.examples, self.max_length = examples, max_length

    def row(self, number: int) -> Row:
        """Row `number`: a pure function of it. Raises Refused if nothing short enough is found."""
        index = number % self.examples if self.examples else number
        rng = generator("row", self.seed, index)
        place = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
        family = self.families[min(place, len(self.families) - 1)]
        count = 0
        if rng.random() < self.demonstration_share:
            count = int(rng.integers(1, self.max_demonstrations + 1))
        style = STYLES[int(rng.integers(len(STYLES)))]
        for attempt in range(100):
            item = draw(family, "train", self.seed, index + attempt * _REDRAW)
            shown = demonstrations(family, item, count, self.seed, index) if count else []
            while True:
                ids, mask = self.renderer.encode_trained(conversation(item, shown, style))
                if len(ids) <= self.max_length:
                    return ids, mask
                if not shown:
                    break
                shown = shown[1:]
        raise Refused(f"sft.max_length {self.max_length}: no item of family '{family.name}' fits; set it higher")


class TextRows:
    """Rows of plain text: windows of documents, each begun by the document-end token where it begins a document."""

    def __init__(self, tokenizer: Tokenizer, documents: Sequence[str], *, seed: int, length: int) -> None:
        """Raises Refused without any text."""
        self.tokenizer, self.seed, self.length = tokenizer, seed, length
        self.documents = [document for document in documents if document]
        if not self.documents:
            raise Refused("sft.text_share: asks for plain text, and the corpus has no training document")
        self.ends = np.cumsum([len(document) for document in self.documents])

    def row(self, number: int) -> Row:
        """Row `number`: up to `length` tokens from any character on, each as likely, cut at the document's end."""
        place = int(generator("text", self.seed, number).integers(self.ends[-1]))
        which = int(np.searchsorted(self.ends, place, side="right"))
        document = self.documents[which]
        at = place - int(self.ends[which] - len(document))
        ids = self._encode(document, at)
        if len(ids) < 2:  # a target needs a token before it
            ids = self._encode(document, 0)
        return ids, [False] + [True] * (len(ids) - 1)

    def _encode(self, document: str, at: int) -> list[int]:
        # A token of English or code is rarely longer than 16 characters; the ids are cut to length after encoding.
        ids = self.tokenizer.encode(document[at : at + 16 * self.length])
        return ([self.tokenizer.eos_id, *ids] if at == 0 else ids)[: self.length]


class InstructionBatches:
    """The source of fine-tuning: `rows` a step, longest first, in micro-batches of rows of like length, of at most
    `micro_tokens` positions each (a longer row is one by itself): a short row beside a long one costs padding. On a CPU
    this is as fast as packing, which needs a mask of segments."""

    ahead = True

    def __init__(
        self,
        instructions: InstructionRows,
        *,
        rows: int,
        micro_tokens: int,
        text: TextRows | None = None,
        text_rows: int = 0,
    ) -> None:
        self.instructions, self.rows, self.micro_tokens = instructions, rows, micro_tokens
        self.text, self.text_rows = text, text_rows

    def __call__(self, step: int) -> list[TermBatch]:
        """The micro-batches of an optimizer step, a pure function of the step."""
        batches = self._grouped([self.instructions.row(step * self.rows + i) for i in range(self.rows)], ANSWERS)
        if self.text is not None and self.text_rows:
            numbers = range(step * self.text_rows, (step + 1) * self.text_rows)
            batches += self._grouped([self.text.row(number) for number in numbers], TEXT)
        return batches

    def _grouped(self, rows: list[Row], term: str) -> list[TermBatch]:
        pad = self.instructions.renderer.tokenizer.pad_id
        ordered = sorted(rows, key=lambda row: len(row[0]), reverse=True)
        parts: list[list[Row]] = []
        for row in ordered:
            if not parts or (len(parts[-1]) + 1) * _width(parts[-1][0]) > self.micro_tokens:
                parts.append([])
            parts[-1].append(row)
        return [TermBatch(**vars(pad_rows(part, pad, _MULTIPLE)), term=term) for part in parts]


def _width(row: Row) -> int:
    """Positions of a row as `pad_rows` pads it."""
    return -(-(len(row[0]) - 1) // _MULTIPLE) * _MULTIPLE
