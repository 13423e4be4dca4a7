"""Batches of labelled examples and the two terms of their loss: the task's, and the language model's beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmlab.model.classifier import ClassifierOutput, answers
from lmlab.objective.batch import Batch
from lmlab.objective.cross_entropy import linear_cross_entropy

TASK, LANGUAGE = "task", "lm"

_MULTIPLE = 8
"""Rows are padded to a multiple of this."""


@dataclass
class Encoded:
    """An example as ids, a row a sequence, and the place of its label: a row of the head, or of multiple choice an answer."""

    rows: list[list[int]]
    label: int

    @property
    def width(self) -> int:
        """Positions of its longest row, padded."""
        return -(-max(map(len, self.rows)) // _MULTIPLE) * _MULTIPLE


@dataclass
class TaskBatch(Batch):
    """Rows of examples. `last` (R,): place of each row's extract token; `example` and `place` (R,): whose row it is, and which
    of its; `labels` (E,); `choices`: of multiple choice the most answers of an example, else None."""

    last_R: Tensor = None  # type: ignore[assignment]
    example_R: Tensor = None  # type: ignore[assignment]
    place_R: Tensor = None  # type: ignore[assignment]
    labels_E: Tensor = None  # type: ignore[assignment]
    choices: int | None = None


def batch_of(examples: Sequence[Encoded], pad_id: int, choice: bool) -> TaskBatch:
    """Every sequence of some examples as rows. Each token but a row's first is a target of the language model; labels and
    lengths say what is real, never an id."""
    rows = [(ids, e, n) for e, each in enumerate(examples) for n, ids in enumerate(each.rows)]
    shape = (len(rows), max(each.width for each in examples))
    tokens, targets = (np.full(shape, pad_id, dtype=np.int64) for _ in range(2))
    mask = np.zeros(shape, dtype=bool)
    for row, (ids, _, _) in enumerate(rows):
        tokens[row, : len(ids)], targets[row, : len(ids) - 1], mask[row, : len(ids) - 1] = ids, ids[1:], True
    return TaskBatch(
        *map(torch.from_numpy, (tokens, targets, mask)),
        last_R=torch.tensor([len(ids) - 1 for ids, _, _ in rows]),
        example_R=torch.tensor([e for _, e, _ in rows]),
        place_R=torch.tensor([n for _, _, n in rows]),
        labels_E=torch.tensor([each.label for each in examples]),
        choices=max(len(each.rows) for each in examples) if choice else None,
    )


class TaskObjective:
    """L_task + weight x L_lm (Radford et al. 2018, eq. 5, weight 0.5): the cross-entropy of the label, a mean over the step's
    examples, and that of the sequences' own tokens, a mean over the step's tokens. With weight 0 the second is not computed.
    """

    def __init__(self, language_weight: float = 0.5) -> None:
        self.weights = {TASK: 1.0} | ({LANGUAGE: language_weight} if language_weight else {})

    def count(self, batch: TaskBatch) -> dict[str, int]:
        counts = {TASK: len(batch.labels_E), LANGUAGE: int(batch.mask_BT.sum())}
        return {term: counts[term] for term in self.weights}

    def inputs(self, batch: TaskBatch) -> dict[str, Any]:
        return {"tokens_BT": batch.tokens_BT, "last_B": batch.last_R}

    def loss_and_report(
        self, output: ClassifierOutput, batch: TaskBatch
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """The terms' sums; and `accuracy`."""
        examples = len(batch.labels_E)
        logits_EK = answers(output.scores_RC, batch.example_R, batch.place_R, examples, batch.choices)
        terms = {TASK: F.cross_entropy(logits_EK, batch.labels_E, reduction="sum")}
        if LANGUAGE in self.weights:
            language = output.language
            hidden_ND, targets_N = language.hidden_BTD[batch.mask_BT], batch.targets_BT[batch.mask_BT]
            weights_N = torch.ones(len(targets_N), device=targets_N.device)
            terms[LANGUAGE] = linear_cross_entropy(hidden_ND, language.head_VD, targets_N, weights_N, **language.head)
        right = (logits_EK.detach().argmax(1) == batch.labels_E).sum()
        return terms, {"accuracy": (right, torch.tensor(examples))}

    def loss(self, output: ClassifierOutput, batch: TaskBatch) -> dict[str, Tensor]:
        return self.loss_and_report(output, batch)[0]


class TaskBatches:
    """The source: `batch` examples a step, in an order drawn anew each epoch, a pure function of (seed, step); rows of like
    length share a micro-batch of at most `micro_tokens` positions (an example that is longer is one by itself)."""

    def __init__(
        self, examples: Sequence[Encoded], *, batch: int, micro_tokens: int, pad_id: int, choice: bool, seed: int
    ) -> None:
        self.examples, self.batch, self.micro_tokens = examples, batch, micro_tokens
        self.pad_id, self.choice, self.seed = pad_id, choice, seed

    def steps(self, epochs: float) -> int:
        """Optimizer steps that visit every example `epochs` times."""
        return max(1, int(-(-len(self.examples) * epochs // self.batch)))

    def __call__(self, step: int) -> list[TaskBatch]:
        numbers = range(step * self.batch, (step + 1) * self.batch)
        n = len(self.examples)
        chosen = [self.examples[self._order(number // n)[number % n]] for number in numbers]
        parts: list[list[Encoded]] = []
        for each in sorted(chosen, key=lambda each: each.width, reverse=True):
            held = sum(len(other.rows) for other in parts[-1]) if parts else 0
            if not parts or (held + len(each.rows)) * parts[-1][0].width > self.micro_tokens:
                parts.append([])
            parts[-1].append(each)
        return [batch_of(part, self.pad_id, self.choice) for part in parts]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.examples))
