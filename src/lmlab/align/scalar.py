"""A Transformer with a scalar head: a reward model (read at the last token) or a value function (read at every one)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.errors import Refused
from lmlab.model.store import SavedTokenizer, load_with_extra, save_model
from lmlab.model.transformer import Transformer
from lmlab.run import write_json


class ScalarModel(nn.Module):
    """Tokens (B, T) -> one number a position (B, T), float32: (score . hidden - mean) / std.

    `mean` and `std` are the reward model's normalisation, kept apart from the weights: files hold the weights of the
    raw score, and the two numbers beside them. The backbone runs without dropout, in training too.
    """

    def __init__(self, backbone: Transformer, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(backbone.config.hidden_width, 1, bias=False)
        self.mean, self.std = mean, std
        if backbone.head is not None:
            backbone.head.requires_grad_(False)  # a language model's output head, unused here

    def initialise(self, seed: int) -> ScalarModel:
        """The head from N(0, 1/(d + 1)) (1909.08593, its code)."""
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.score.weight, std=(self.score.in_features + 1) ** -0.5, generator=generator)
        return self

    def train(self, mode: bool = True) -> ScalarModel:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, tokens_BT: Tensor) -> Tensor:
        raw_BT = self.score(self.backbone(tokens_BT).hidden_BTD)[..., 0].float()
        return (raw_BT - self.mean) / self.std


def pad(rows: Sequence[Sequence[int]], pad_id: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Rows of ids, right-padded: tokens (B, T) and the index of each row's last real token (B,), from its length."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    tokens_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return tokens_BT, torch.tensor([len(row) - 1 for row in rows])


def at_last(values_BT: Tensor, last_B: Tensor) -> Tensor:
    """The value at each row's last real token (B,)."""
    return values_BT.gather(1, last_B[:, None])[:, 0]


@torch.no_grad()
def score_rows(model: ScalarModel, rows: Sequence[Sequence[int]], pad_id: int, batch: int = 64) -> Tensor:
    """Scores (R,) of whole sequences, in their order. Rows of like length are computed together."""
    scores_R = torch.empty(len(rows))
    context = model.backbone.config.context_length
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(rows), batch):
        part = order[start : start + batch]
        tokens_BT, last_B = pad([rows[i] for i in part], pad_id)
        scores_R[part] = at_last(model(tokens_BT[:, :context]), last_B)
    return scores_R


def save_reward(folder: Path, model: ScalarModel, tokenizer: SavedTokenizer, facts: dict[str, Any]) -> None:
    """Write a reward model's directory: opens as a sequence classifier of one label, which gives the raw score.

    `reward_mean`, `reward_std` and `facts` stand in config.json and lmlab.json; they are not folded into the weights.
    """
    extra = {"score.weight": model.score.weight.detach().float().contiguous()}
    save_model(folder, model.backbone, tokenizer, extra)
    for name in ("config.json", "lmlab.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        write_json(folder / name, {**content, "reward_mean": model.mean, "reward_std": model.std, **facts})


def load_reward(folder: Path) -> ScalarModel:
    """The reward model of a directory, with its normalisation. Raises Refused where it is none."""
    backbone, extra = load_with_extra(folder)
    weight = extra.pop("score.weight", None)
    if weight is None or extra or tuple(weight.shape) != (1, backbone.config.hidden_width):
        found = "no score.weight" if weight is None else f"score.weight {tuple(weight.shape)}, also {sorted(extra)[:3]}"
        raise Refused(
            f"{folder}: is no reward model: expected score.weight (1, {backbone.config.hidden_width}), found {found}"
        )
    path = folder / "config.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        mean, std = float(facts.get("reward_mean", 0.0)), float(facts.get("reward_std", 1.0))
    except (OSError, ValueError, TypeError) as error:
        raise Refused(f"{path}: cannot be read: {error}") from None
    if not std > 0:
        raise Refused(f"{path}: reward_std is {std}; expected a number above 0")
    model = ScalarModel(backbone, mean, std)
    model.score.weight.data.copy_(weight.float())
    return model.eval()
