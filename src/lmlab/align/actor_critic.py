"""PPO's network and objective: a policy and a value function in one module, updated as two terms of one loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.align import losses
from lmlab.align.scalar import ScalarModel
from lmlab.errors import Failed
from lmlab.model.transformer import Transformer
from lmlab.objective.cross_entropy import token_logprobs

POLICY, VALUE = "policy_loss", "value"
"""The terms of the loss."""


@dataclass
class Acted:
    """For the N response tokens of a batch, row after row: the policy's log-probability, the value before it (N,)."""

    logprobs_N: Tensor
    values_N: Tensor


class ActorCritic(nn.Module):
    """A policy and a value function of their own weights. Neither has dropout on: the ratio would not start at 1."""

    def __init__(self, policy: Transformer, value: ScalarModel, temperature: float = 1.0) -> None:
        super().__init__()
        self.policy, self.value, self.temperature = policy, value, temperature

    def train(self, mode: bool = True) -> ActorCritic:
        super().train(mode)
        self.policy.eval()
        return self

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor, mask_BT: Tensor) -> Acted:
        """`mask_BT` True at the positions whose target is a response token; a position's value is that of the text up
        to it, before its target is chosen."""
        output = self.policy(tokens_BT)
        hidden_ND, targets_N = output.hidden_BTD[mask_BT], targets_BT[mask_BT]
        return Acted(
            token_logprobs(hidden_ND, output.head_VD, targets_N, self.temperature, **output.head),
            self.value(tokens_BT)[mask_BT],
        )


@dataclass
class PPOBatch:
    """Some episodes of a rollout: all (B, T). `first` marks the first update after it, whose ratio must be 1.

    `value_scale` multiplies the value loss: 1, or 1 / (root mean square error of the values at the rollout) where that
    is more than 1. Advantages are whitened to size 1; a value function that is far off at first (a reward model means
    something at the last token only) would else fill the clipped gradient norm and leave the policy nothing of it.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    logprobs_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    value_scale: float = 1.0
    first: bool = False

    def rows(self, index: Tensor, first: bool) -> PPOBatch:
        """These rows, cut to the longest of them."""
        length = int(self.mask_BT[index].any(0).nonzero().max()) + 1
        named = ("tokens_BT", "targets_BT", "mask_BT", "logprobs_BT", "values_BT", "advantages_BT", "returns_BT")
        return PPOBatch(
            *(getattr(self, name)[index, :length] for name in named), value_scale=self.value_scale, first=first
        )


class PPOObjective:
    """Clipped policy loss and clipped value loss, each a mean over the response tokens of the optimizer step."""

    def __init__(self, clip: float, value_clip: float, value_weight: float, tolerance: float) -> None:
        """`tolerance`: how far from 1 the mean first ratio may be; more means that sampling and training disagree."""
        self.clip, self.value_clip, self.tolerance = clip, value_clip, tolerance
        self.weights = {POLICY: 1.0, VALUE: value_weight}

    def count(self, batch: PPOBatch) -> dict[str, int]:
        tokens = int(batch.mask_BT.sum())
        return {POLICY: tokens, VALUE: tokens}

    def inputs(self, batch: PPOBatch) -> dict[str, Any]:
        return {"tokens_BT": batch.tokens_BT, "targets_BT": batch.targets_BT, "mask_BT": batch.mask_BT}

    def loss(self, output: Acted, batch: PPOBatch) -> dict[str, Tensor]:
        """Raises Failed where the first ratio after a rollout is not 1, before anything is learnt from it."""
        mask = batch.mask_BT
        old_N = batch.logprobs_BT[mask]
        if batch.first:
            check_ratio(output.logprobs_N.detach(), old_N, self.tolerance)
        policy = losses.clipped_policy_loss(output.logprobs_N, old_N, batch.advantages_BT[mask], self.clip)
        old_values_N, returns_N = batch.values_BT[mask], batch.returns_BT[mask]
        value = losses.clipped_value_loss(output.values_N, old_values_N, returns_N, self.value_clip)
        return {POLICY: policy.sum(), VALUE: batch.value_scale * value.sum()}

    def report(self, output: Acted, batch: PPOBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts of: the value loss without its scale, ratio, share of clipped ratios and of clipped values,
        k2 estimate of the KL to the policy that sampled.
        """
        with torch.no_grad():
            old_N, old_values_N = batch.logprobs_BT[batch.mask_BT], batch.values_BT[batch.mask_BT]
            n = torch.tensor(float(len(old_N)))
            ratio_N = losses.log_ratio(output.logprobs_N, old_N).exp()
            moved_N = (output.values_N - old_values_N).abs() > self.value_clip
            returns_N = batch.returns_BT[batch.mask_BT]
            value_N = losses.clipped_value_loss(output.values_N, old_values_N, returns_N, self.value_clip)
            return {
                "value_loss": (value_N.sum(), n),
                "ratio": (ratio_N.sum(), n),
                "clip_fraction": (losses.clip_fraction(output.logprobs_N, old_N, self.clip) * n, n),
                "value_clip_fraction": (moved_N.float().sum(), n),
                "approximate_kl": (losses.kl_estimate(output.logprobs_N, old_N, "k2").sum(), n),
            }


def check_ratio(logprobs_N: Tensor, old_N: Tensor, tolerance: float) -> None:
    """Raise Failed unless mean |ratio - 1| is within the tolerance."""
    error = float((losses.log_ratio(logprobs_N, old_N).exp() - 1).abs().mean())
    if not error <= tolerance:
        raise Failed(
            f"the first probability ratio after a rollout is off by {error:.2g} on average, expected at most "
            f"{tolerance:.2g}: sampling and training do not compute the same policy"
        )
