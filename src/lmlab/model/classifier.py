"""A Transformer with a linear head that reads one position of a sequence: fine-tuning for a task (Radford et al. 2018).

    P(y | x_1 ... x_m) = softmax(h_m W_y)        (their eq. 3; h_m the last layer's state of the last token, no bias)

Where an example is several sequences, their scores are put together by `answers`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.errors import Refused
from lmlab.model.store import SavedTokenizer, load_with_extra, save_model
from lmlab.model.transformer import Output, Transformer

KIND = "classifier"


@dataclass
class ClassifierOutput:
    """Scores (R, C) of the sequences of a batch, and what the language model made of them."""

    scores_RC: Tensor
    language: Output

    @property
    def penalty(self) -> Tensor | None:
        return self.language.penalty

    @property
    def auxiliary(self) -> dict[str, Tensor]:
        return self.language.auxiliary


class Classifier(nn.Module):
    """Tokens (R, T), each row's last real token (R,) -> `classes` scores a row. `dropout`: before the head, in training."""

    def __init__(self, backbone: Transformer, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(backbone.config.hidden_width, classes, bias=False)

    def initialise(self, seed: int) -> Classifier:
        """The head from N(0, 0.02^2), as all weights of GPT-1."""
        nn.init.normal_(self.score.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        return self

    def forward(self, tokens_BT: Tensor, last_B: Tensor) -> ClassifierOutput:
        places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        # Nothing before a row's end sees its padding; experts alone must be told of it.
        padding_BT = places_T > last_B[:, None] if self.backbone.config.moe is not None else None
        output = self.backbone(tokens_BT, padding_BT=padding_BT)
        state_BD = output.hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        return ClassifierOutput(self.score(self.dropout(state_BD)).float(), output)


def answers(scores_RC: Tensor, example_R: Tensor, place_R: Tensor, examples: int, choices: int | None) -> Tensor:
    """Logits (E, K) of examples whose sequences are rows: `example_R` says whose, `place_R` which of its.

    Without `choices` the scores of an example's sequences are added, which is the head of their added states, since the head
    has no bias (similarity: both orders). With `choices`, the largest number of answers of an example, each sequence is an
    answer with one score, and an answer that an example lacks has -inf (multiple choice).
    """
    if choices is None:
        zeros = scores_RC.new_zeros(examples, scores_RC.shape[1])
        return zeros.index_add(0, example_R, scores_RC)
    logits_EK = scores_RC.new_full((examples, choices), -torch.inf)
    return logits_EK.index_put((example_R, place_R), scores_RC[:, 0])


def save_classifier(
    folder: Path, model: Classifier, tokenizer: SavedTokenizer, task: str, labels: Sequence[str]
) -> None:
    """Write a classifier's directory: the ecosystem's sequence classifier where the family has one, with its labels; of
    several sequences an example its logits are those of `answers`. lmlab.json says the task."""
    extra = {"score.weight": model.score.weight.detach().float().contiguous()}
    facts = {"kind": KIND, "task": task, "labels": list(labels)}
    save_model(folder, model.backbone, tokenizer, extra, facts)


def facts_of(folder: Path) -> dict[str, Any] | None:
    """What a directory's lmlab.json says, where it is a classifier's; else None."""
    try:
        found = json.loads((folder / "lmlab.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("kind") == KIND else None


def load_classifier(folder: Path) -> tuple[Classifier, str, list[str]]:
    """(classifier, its task, its labels) of a directory, in evaluation mode. Raises Refused where it is none."""
    facts = facts_of(folder)
    if facts is None or not isinstance(facts.get("labels"), list) or not isinstance(facts.get("task"), str):
        raise Refused(f"{folder}: is no classifier: expected lmlab.json of kind {KIND} with a task and labels")
    backbone, extra = load_with_extra(folder)
    weight, shape = extra.pop("score.weight", None), (len(facts["labels"]), backbone.config.hidden_width)
    if weight is None or extra or tuple(weight.shape) != shape:
        found = "no score.weight" if weight is None else f"score.weight {tuple(weight.shape)}, also {sorted(extra)[:3]}"
        raise Refused(f"{folder}: expected score.weight {shape}, found {found}")
    model = Classifier(backbone, shape[0])
    model.score.weight.data.copy_(weight.float())
    return model.eval(), facts["task"], [str(label) for label in facts["labels"]]
