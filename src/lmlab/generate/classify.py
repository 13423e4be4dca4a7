"""Classification by a fine-tuned model: what `lmlab.load` gives for a classifier's directory, and what measures one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from lmlab.errors import Refused
from lmlab.model.classifier import Classifier, answers, load_classifier
from lmlab.model.transformer import Output
from lmlab.text.task_inputs import Task, TaskInputs, example
from lmlab.text.tokenizer import Tokenizer

PASS_TOKENS = 1 << 13
"""Positions of rows in one forward pass (guessed)."""


class ClassifierModel:
    """A loaded classifier. Texts in, a label and the probabilities of all labels out."""

    def __init__(
        self, network: Classifier, tokenizer: Tokenizer, task: Task, labels: Sequence[str], folder: Path | None = None
    ) -> None:
        self.network, self.tokenizer, self.task, self.labels = network.eval(), tokenizer, task, list(labels)
        self._name = "this model" if folder is None else str(folder)

    @classmethod
    def open(cls, folder: Path, device: str = "cpu") -> ClassifierModel:
        """The classifier of a directory. Raises Refused where it is none."""
        network, task, labels = load_classifier(folder)
        return cls(network.to(device), Tokenizer.load(folder), cast(Task, task), labels, folder)

    def classify(self, examples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        """{label, probabilities} of an example, an object with the fields of the task; a list gives a list.

        `probabilities` is {label: p}; of multiple choice `label` is the answer's place and `probabilities` has one an answer.
        Raises Refused naming the example and the field that is not as expected.
        """
        single = isinstance(examples, Mapping)
        records = [examples] if single else list(examples)
        inputs, encoded = TaskInputs(self.tokenizer, self.network.backbone.config.context_length), []
        for place, record in enumerate(records):
            try:
                encoded.append(inputs.encode(example(self.task, record, labelled=False)))
            except ValueError as error:
                raise Refused(f"{self._name}: example {place}: {error}") from None
        found = [self._answer(logits_K) for logits_K, _ in read(self.network, self.tokenizer, encoded, self.choice)]
        return found[0] if single else found

    @property
    def choice(self) -> bool:
        """Whether it chooses among answers."""
        return self.task == "multiple-choice"

    def _answer(self, logits_K: Tensor) -> dict[str, Any]:
        shares, best = logits_K.softmax(0).tolist(), int(logits_K.argmax())
        if self.choice:
            return {"label": best, "probabilities": shares}
        return {"label": self.labels[best], "probabilities": dict(zip(self.labels, shares, strict=True))}

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise Refused(f"{self._name}: is a classifier ({self.task}): it neither writes nor scores text; call classify")

    generate = score = logits = chat = chat_stream = _refuse


@torch.inference_mode()
def read(
    network: Classifier, tokenizer: Tokenizer, encoded: Sequence[Sequence[list[int]]], choice: bool
) -> list[tuple[Tensor, float]]:
    """(logits (K,), -log P in nats of its sequences' texts, task tokens left out) of each example, in their order."""
    order = sorted(range(len(encoded)), key=lambda i: max(map(len, encoded[i])))
    found: list[tuple[Tensor, float]] = [(torch.empty(0), math.nan)] * len(encoded)
    device, special = network.score.weight.device, TaskInputs(tokenizer, 0).special
    while order:
        group = _group(order, encoded)
        rows = [(ids, place, i) for place, i in enumerate(group) for ids in encoded[i]]
        tokens_RT = torch.full((len(rows), max(len(ids) for ids, _, _ in rows)), tokenizer.pad_id)
        for row, (ids, _, _) in enumerate(rows):
            tokens_RT[row, : len(ids)] = torch.tensor(ids)
        last_R = torch.tensor([len(ids) - 1 for ids, _, _ in rows], device=device)
        output = network(tokens_RT.to(device), last_R)
        example_R = torch.tensor([place for _, place, _ in rows], device=device)
        place_R = torch.tensor([n for i in group for n in range(len(encoded[i]))], device=device)
        choices = max(len(encoded[i]) for i in group) if choice else None
        logits_EK = answers(output.scores_RC, example_R, place_R, len(group), choices).cpu()
        nats_R = [_nats(output.language, row, ids, special) for row, (ids, _, _) in enumerate(rows)]
        for place, i in enumerate(group):
            nats = sum(n for n, (_, owner, _) in zip(nats_R, rows, strict=True) if owner == place)
            kept_K = logits_EK[place, : len(encoded[i])] if choice else logits_EK[place]
            found[i] = (kept_K, nats)
    return found


def _group(order: list[int], encoded: Sequence[Sequence[list[int]]]) -> list[int]:
    """Take the examples of one pass from the front of `order`."""
    group: list[int] = []
    rows = 0
    while order:
        width = max(map(len, encoded[order[0]])) + 8
        if group and (rows + len(encoded[order[0]])) * width > PASS_TOKENS:
            break
        rows += len(encoded[order[0]])
        group.append(order.pop(0))
    return group


def _nats(language: Output, row: int, ids: list[int], special: Sequence[int]) -> float:
    """-log P of a row's tokens that are text."""
    places = [place for place, token in enumerate(ids[1:]) if token not in special]
    logits = language.logits(language.hidden_BTD[row, places])
    target = torch.tensor([ids[place + 1] for place in places], dtype=torch.long, device=logits.device)
    return float((logits.logsumexp(-1) - logits.gather(1, target[:, None])[:, 0]).sum())
