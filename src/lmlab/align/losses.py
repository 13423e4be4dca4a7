"""The mathematics of reward models and PPO as small pure functions; nothing here knows a network or a file.

Shape letters: B episodes, T positions, N prompts, S samples of a prompt, P pairs, R rows of any kind, V vocabulary.
A mask is True at the positions of response tokens. Log-probabilities and KL are in nats. What carries a gradient is
returned unreduced (one value a token) or as a sum, because the trainer divides once over the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within +-20 before they are exponentiated, so that one odd token cannot make an infinity."""


@dataclass(frozen=True)
class Pairs:
    """Which of two rows is preferred, for many pairs: `winners_P`, `losers_P` index rows; `shares_P` is 1 / (pairs of
    the same prompt), so that a sum over pairs is a sum over prompts of the mean of each; `prompts` have a pair at all.
    """

    winners_P: Tensor
    losers_P: Tensor
    shares_P: Tensor
    prompts: int


def untied_pairs(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) of every two samples whose ranks differ; the smaller rank is the better one."""
    found = []
    for first, second in combinations(range(len(ranks)), 2):
        if ranks[first] != ranks[second]:
            found.append((first, second) if ranks[first] < ranks[second] else (second, first))
    return found


def all_pairs(ranks_NS: Sequence[Sequence[float]]) -> Pairs:
    """Every untied pair of each prompt; samples are numbered through, prompt after prompt."""
    winners: list[int] = []
    losers: list[int] = []
    shares: list[float] = []
    start = prompts = 0
    for ranks in ranks_NS:
        pairs = untied_pairs(ranks)
        winners += [start + winner for winner, _ in pairs]
        losers += [start + loser for _, loser in pairs]
        shares += [1 / max(len(pairs), 1)] * len(pairs)
        prompts += bool(pairs)
        start += len(ranks)
    return Pairs(torch.tensor(winners, dtype=torch.long), torch.tensor(losers, dtype=torch.long),
                 torch.tensor(shares, dtype=torch.float32), prompts)  # fmt: skip


def pairwise_sum(scores_R: Tensor, pairs: Pairs) -> Tensor:
    """Sum over prompts of the mean over its untied pairs of -log sigmoid(score of the better - score of the worse).

    InstructGPT (2203.02155), eq. 1, with 1/C(K,2) over the pairs that are no ties. All pairs of a prompt stand in one
    element of the batch: as rows of their own, each answer would be trained on K - 1 times an epoch, and overfit.
    """
    margins_P = scores_R.float()[pairs.winners_P] - scores_R.float()[pairs.losers_P]
    return (-F.logsigmoid(margins_P) * pairs.shares_P).sum()


def pairwise_loss(scores_NS: Tensor, ranks_NS: Sequence[Sequence[float]]) -> Tensor:
    """`pairwise_sum` over the prompts that have an untied pair; 0 where none has."""
    pairs = all_pairs(ranks_NS)
    return pairwise_sum(scores_NS.flatten(), pairs) / max(pairs.prompts, 1)


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: Estimator = "k1") -> Tensor:
    """KL(policy || reference) estimated at sampled tokens (Schulman 2020, "Approximating KL divergence").

    k1 = d with d = logprob - reference, unbiased; k2 = d^2/2; k3 = exp(-d) - 1 + d, unbiased, never negative.
    """
    difference = (logprobs - reference).float()
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    return torch.expm1(-difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)) + difference


def token_rewards(kl_BT: Tensor, scores_B: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """r_t = -beta kl_t at each response token, and the episode's score added at its last one (2203.02155, eq. 2).

    (B, T), 0 outside the mask. Every row needs a response token.
    """
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, positions_T, -1).amax(dim=1)
    rewards_BT = -beta * kl_BT * mask_BT
    return rewards_BT.scatter_add(1, last_B[:, None], scores_B[:, None].to(rewards_BT.dtype))


def generalised_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages A and returns A + V, each (B, T) and 0 outside the mask (Schulman et al. 2016, 1506.02438, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t, the value after the last response token being 0; A_t = sum (gamma lam)^l
    delta_{t+l}. The response tokens of a row stand next to each other.
    """
    values_BT = values_BT * mask_BT
    advantages_BT = torch.zeros_like(values_BT)
    following_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = torch.zeros_like(following_B)
    for t in range(values_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        following_B = (delta_B + gamma * lam * following_B) * mask_BT[:, t]
        advantages_BT[:, t] = following_B
        next_value_B = values_BT[:, t]
    return advantages_BT, advantages_BT + values_BT


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, unbiased: bool = False) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the masked entries, 0 elsewhere; without `shift_mean` the mean is added
    back. `unbiased` divides the squares by n - 1.
    """
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / (count - 1 if unbiased else count)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """log(policy / policy that sampled), clamped to +-20."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """max(-A r, -A clip(r, 1 - clip, 1 + clip)) with r the probability ratio, one value a token (1707.06347, eq. 7)."""
    ratio = log_ratio(logprobs, old_logprobs).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """0.5 max((V - R)^2, (V held within +-clip of its old value - R)^2), one value a token (1909.08593, its code)."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())


def clip_fraction(logprobs: Tensor, old_logprobs: Tensor, clip: float = 0.2) -> Tensor:
    """Share of tokens whose ratio left [1 - clip, 1 + clip]."""
    ratio = log_ratio(logprobs, old_logprobs).exp()
    return ((ratio - 1).abs() > clip).float().mean()


def entropy(logits_RV: Tensor) -> Tensor:
    """Entropy in nats of the distribution of each row (R,)."""
    logprobs_RV = logits_RV.float().log_softmax(-1)
    return -(logprobs_RV.exp() * logprobs_RV).sum(-1)


def divergence(logits_RV: Tensor, reference_RV: Tensor) -> Tensor:
    """KL(policy || reference) in nats between the distributions of each row (R,), summed over the vocabulary.

    Over the tokens of sampled episodes its mean is that of k1, without the noise of which token was drawn.
    """
    logprobs_RV, other_RV = logits_RV.float().log_softmax(-1), reference_RV.float().log_softmax(-1)
    return (logprobs_RV.exp() * (logprobs_RV - other_RV)).sum(-1)


def explained_variance(predicted: Tensor, actual: Tensor) -> float:
    """1 - variance(actual - predicted) / variance(actual) of two vectors; 1 is a perfect value function, 0 one that is
    no better than a constant. 0 where `actual` does not vary.
    """
    variance = float(actual.var(unbiased=False))
    return 0.0 if variance <= 0 else 1 - float((actual - predicted).var(unbiased=False)) / variance


def adapted_coefficient(beta: float, kl: float, *, target: float, horizon: float, episodes: int) -> float:
    """The KL coefficient after a batch of `episodes` whose KL (sum over tokens, mean over episodes) was `kl`.

    beta (1 + clip(kl / target - 1, -0.2, 0.2) episodes / horizon) (1909.08593, section 2.2, in its code's form).
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)
