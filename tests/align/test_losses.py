"""Reward-model and PPO mathematics: numbers worked out by independent programs, and laws that hold for any input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.align import losses


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, wanted: tuple[float, ...], tolerance: float = 1e-6) -> None:
    assert found.flatten().tolist() == pytest.approx(wanted, abs=tolerance)


numbers = st.floats(-5, 5, allow_nan=False, width=32)
settings.register_profile("align", deadline=None, max_examples=50)
settings.load_profile("align")


def test_pairwise_loss_golden() -> None:
    scores = torch.tensor([[1.2, 0.3, -0.5, 0.1]])
    assert float(losses.pairwise_loss(scores, [[1, 2, 4, 3]])) == pytest.approx(0.367167, abs=1e-6)
    assert len(losses.untied_pairs([1, 1, 2, 3])) == 5
    assert float(losses.pairwise_loss(scores, [[1, 1, 2, 3]])) == pytest.approx(0.492370, abs=1e-6)


def test_pairwise_loss_is_a_mean_over_prompts_of_means_over_pairs() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]])
    one = losses.pairwise_loss(scores[:1], [[1, 2, 3]])
    two = losses.pairwise_loss(scores[1:], [[2, 1, 1]])
    tied = losses.pairwise_loss(torch.cat([scores, torch.zeros(1, 3)]), [[1, 2, 3], [2, 1, 1], [1, 1, 1]])
    assert float(tied) == pytest.approx(float(one + two) / 2, abs=1e-6)
    assert float(losses.pairwise_loss(torch.zeros(1, 3), [[1, 1, 1]])) == 0.0


@given(st.lists(numbers, min_size=2, max_size=6), numbers, st.data())
def test_pairwise_loss_laws(scores: list[float], shift: float, data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(1, 3), min_size=len(scores), max_size=len(scores)))
    row = torch.tensor([scores])
    loss = float(losses.pairwise_loss(row, [ranks]))
    assert loss >= 0
    assert float(losses.pairwise_loss(row + shift, [ranks])) == pytest.approx(loss, abs=1e-5)
    order = data.draw(st.permutations(range(len(scores))))
    moved = losses.pairwise_loss(row[:, list(order)], [[ranks[i] for i in order]])
    assert float(moved) == pytest.approx(loss, abs=1e-5)
    if len(set(ranks)) > 1:
        assert float(losses.pairwise_loss(torch.zeros_like(row), [ranks])) == pytest.approx(math.log(2), abs=1e-6)


def test_kl_golden() -> None:
    logprobs, reference = tensor(-1, -2, -3), tensor(-1.2, -1.7, -3.5)
    close(losses.kl_estimate(logprobs, reference, "k1"), (0.2, -0.3, 0.5))
    close(losses.kl_estimate(logprobs, reference, "k2"), (0.02, 0.045, 0.125))
    close(losses.kl_estimate(logprobs, reference, "k3"), (0.018731, 0.049859, 0.106531))


@given(st.lists(numbers, min_size=2, max_size=8), st.data())
def test_kl_estimators_agree_with_the_exact_divergence(logits: list[float], data: st.DataObject) -> None:
    """Weighted by the policy's probabilities, k1 and k3 are the divergence; k3 and k2 are never negative."""
    others = data.draw(st.lists(numbers, min_size=len(logits), max_size=len(logits)))
    policy, reference = (tensor(*x).log_softmax(-1) for x in (logits, others))
    exact = float((policy.exp() * (policy - reference)).sum())
    for kind in ("k1", "k3"):
        assert float((policy.exp() * losses.kl_estimate(policy, reference, kind)).sum()) == pytest.approx(
            exact, abs=1e-4
        )
    assert (losses.kl_estimate(policy, reference, "k3") >= -1e-6).all()
    assert (losses.kl_estimate(policy, reference, "k2") >= 0).all()


def test_reward_and_advantages_golden() -> None:
    kl, values = tensor(0.1, -0.05, 0.02, 0.3)[None], tensor(0.5, 0.4, 0.3, 0.2)[None]
    mask = torch.ones(1, 4, dtype=torch.bool)
    rewards = losses.token_rewards(kl, tensor(1.0), mask, beta=0.05)
    close(rewards, (-0.005, 0.0025, -0.001, 0.985))
    advantages, returns = losses.generalised_advantages(rewards, values, mask)
    close(advantages, (0.384262, 0.515013, 0.644750, 0.785))
    close(returns, (0.884262, 0.915013, 0.94475, 0.985))
    close(losses.whiten(advantages, mask), (-1.329344, -0.451477, 0.419588, 1.361234), 2e-6)
    close(losses.whiten(advantages, mask, unbiased=True), (-1.151246, -0.390991, 0.363374, 1.178863), 2e-6)


@given(
    st.integers(0, 4), st.integers(1, 6), st.integers(0, 3), st.floats(0.5, 1), st.floats(0, 1), st.integers(0, 10**6)
)
def test_padding_changes_no_advantage(
    before: int, length: int, after: int, gamma: float, lam: float, seed: int
) -> None:
    """A row's own response decides: whatever stands in prompt and padding, and however long they are."""
    generator = torch.Generator().manual_seed(seed)
    kl, values = torch.randn(2, 1, length, generator=generator, dtype=torch.float64)
    score = tensor(0.7)
    alone = torch.ones(1, length, dtype=torch.bool)
    wanted = losses.generalised_advantages(losses.token_rewards(kl, score, alone, 0.1), values, alone, gamma, lam)
    mask = torch.tensor([[False] * before + [True] * length + [False] * after])
    padded = torch.randn(2, 1, before + length + after, generator=generator, dtype=torch.float64)
    padded[0][mask], padded[1][mask] = kl[0], values[0]
    rewards = losses.token_rewards(padded[0], score, mask, 0.1)
    found = losses.generalised_advantages(rewards, padded[1], mask, gamma, lam)
    for ours, theirs in zip(found, wanted):
        close(ours[mask], tuple(theirs[0].tolist()), 1e-9)
        assert (ours[~mask] == 0).all()
    assert (rewards[~mask] == 0).all()


@given(st.integers(1, 8), st.integers(0, 10**6))
def test_returns_are_rewards_to_go_when_lambda_and_gamma_are_one(length: int, seed: int) -> None:
    rewards, values = torch.randn(2, 1, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.ones(1, length, dtype=torch.bool)
    _, returns = losses.generalised_advantages(rewards, values, mask, 1.0, 1.0)
    close(returns, tuple(rewards.flip(1).cumsum(1).flip(1)[0].tolist()), 1e-9)
    advantages, _ = losses.generalised_advantages(rewards, values, mask, 0.9, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros(1, 1, dtype=torch.float64)], 1)
    close(advantages, tuple((rewards + 0.9 * following - values)[0].tolist()), 1e-9)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=30).filter(lambda x: np.std(x) > 1e-2))
def test_whiten_laws(given_values: list[float]) -> None:
    values = tensor(*given_values, 1e6)
    mask = torch.tensor([True] * len(given_values) + [False])
    white = losses.whiten(values, mask)
    assert float(white.sum()) == pytest.approx(0, abs=1e-6)
    assert float(white[mask].std(unbiased=False)) == pytest.approx(1, abs=1e-3)
    assert white[-1] == 0
    unshifted = losses.whiten(values, mask, shift_mean=False)
    assert float(unshifted[mask].mean()) == pytest.approx(float(np.mean(given_values)), abs=1e-6)


@given(numbers, numbers, numbers, st.floats(0.05, 0.5))
def test_policy_loss_laws(logprob: float, old: float, advantage: float, clip: float) -> None:
    """Never below the unclipped loss; its gradient vanishes exactly where the clip helps no one."""
    new = tensor(logprob).requires_grad_()
    loss = losses.clipped_policy_loss(new, tensor(old), tensor(advantage), clip)
    ratio = math.exp(logprob - old)
    assert float(loss.detach()) >= -advantage * ratio - 1e-9
    loss.sum().backward()
    assert new.grad is not None
    beyond = (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)
    if beyond:
        assert float(new.grad) == 0
    elif abs(ratio - 1) < clip - 1e-6:
        assert float(new.grad) == pytest.approx(-advantage * ratio, abs=1e-6)


def test_policy_loss_at_ratio_one_is_minus_the_advantage() -> None:
    logprobs = tensor(-1, -2, -3)
    close(losses.clipped_policy_loss(logprobs, logprobs, tensor(1, -2, 0.5)), (-1, 2, -0.5))
    assert float(losses.clip_fraction(logprobs, logprobs)) == 0
    assert float(losses.clip_fraction(logprobs + tensor(0, 0.3, -0.3), logprobs)) == pytest.approx(2 / 3)
    assert math.isfinite(float(losses.clipped_policy_loss(tensor(0.0), tensor(-1e4), tensor(-1.0))))


def test_value_loss() -> None:
    """Old value 0, return 1: within the clip the plain square, beyond it the larger of the two squares."""
    returns, old = tensor(1, 1, 1), tensor(0, 0, 0)
    close(losses.clipped_value_loss(tensor(0.1, 0.9, -0.5), old, returns), (0.405, 0.32, 1.125))


def test_entropy_and_explained_variance() -> None:
    close(losses.entropy(torch.zeros(1, 8)), (math.log(8),))
    assert float(losses.entropy(torch.tensor([[50.0, 0, 0]]))) == pytest.approx(0, abs=1e-6)
    actual = tensor(1, 2, 3, 4)
    assert losses.explained_variance(actual, actual) == 1
    assert losses.explained_variance(torch.full_like(actual, 7), actual) == 0
    assert losses.explained_variance(-actual, actual) == pytest.approx(-3)
    assert losses.explained_variance(actual, torch.ones_like(actual)) == 0


def test_adaptive_coefficient_golden() -> None:
    for kl, wanted in ((3, 0.149808), (6, 0.15), (12, 0.150192), (100, 0.150192)):
        found = losses.adapted_coefficient(0.15, kl, target=6, horizon=10_000, episodes=64)
        assert found == pytest.approx(wanted, abs=1e-6)
