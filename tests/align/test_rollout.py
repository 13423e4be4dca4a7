"""Rollouts: what is sampled is what is trained, and each number stands at the right token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from align_stages import FAMILIES, PPO, small
from torch import Tensor

from lmlab.align import losses
from lmlab.align.actor_critic import ActorCritic, PPOObjective
from lmlab.align.episodes import Episode, sample
from lmlab.align.ppo import PPOConfig
from lmlab.align.prompts import Prompts, derived
from lmlab.align.rollout import Rollouts, measure, rows_of
from lmlab.align.scalar import ScalarModel
from lmlab.errors import Failed
from lmlab.generate.engine import Engine
from lmlab.instruct.families import make
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.step import accumulate, make_forward

CONFIG = PPOConfig.model_validate(PPO)
Maker = Callable[..., Rollouts]


@pytest.fixture
def prompts(renderer: Renderer) -> Prompts:
    return Prompts(renderer, make(FAMILIES), "train", 0, 70)


@pytest.fixture
def rollouts(tokenizer: Tokenizer, prompts: Prompts) -> Maker:
    """Over a random policy whose reference is another one, so that the KL is not 0."""

    def made(score: Callable[[Sequence[Episode]], Tensor] | None = None, **changes: Any) -> Rollouts:
        network = ActorCritic(small(tokenizer), ScalarModel(small(tokenizer, 1)).initialise(2))
        settings = replace(CONFIG.rollout(0), **changes)
        given = score or (lambda episodes: torch.linspace(-1, 1, len(episodes)))
        engine = Engine(network.policy, tokenizer)
        reference = small(tokenizer, 3).requires_grad_(False)
        return Rollouts(network, reference, engine, tokenizer, prompts, settings, given, lambda _: 0.5)

    return made


def test_prompts_are_pure_functions_of_seed_and_number(renderer: Renderer, prompts: Prompts) -> None:
    again = Prompts(renderer, make(FAMILIES), "train", 0, 70)
    assert prompts.take(6, 4) == [again[number] for number in (6, 7, 8, 9)]
    assert [each.item.family for each in prompts.take(0, 4)] == ["copy", "pick", "copy", "pick"]
    other = Prompts(renderer, make(FAMILIES), "train", 1, 70)
    assert prompts.take(0, 8) != other.take(0, 8)
    test = Prompts(renderer, make(FAMILIES), "test", 0, 70).distinct(20)
    assert len({each.item.id for each in test}) == 20 and {each.item.split for each in test} == {"test"}
    with pytest.raises(Failed, match="no prompt of at most 3 tokens"):
        Prompts(renderer, make(FAMILIES), "train", 0, 3)[0]
    assert derived(1, "a") != derived(1, "b") and 0 <= derived(1, "a") < 2**62


def test_the_mask_covers_the_response_and_its_end(tokenizer: Tokenizer, prompts: Prompts) -> None:
    prompt = prompts[0]
    short = Episode(prompt, (9, 10, tokenizer.end_of_turn_id), (-1.0, -1.0, -1.0), "", True)
    long = Episode(prompts[1], tuple(range(9, 17)), (-1.0,) * 8, "", False)
    tokens, targets, mask = rows_of([short, long], tokenizer.pad_id)
    assert targets[0][mask[0]].tolist() == [9, 10, tokenizer.end_of_turn_id]
    assert targets[1][mask[1]].tolist() == list(range(9, 17))
    first = int(mask[0].nonzero()[0])
    assert tokens[0, : first + 1].tolist() == list(prompt.ids), "the first action is chosen after the whole prompt"
    assert not (mask & (tokens == tokenizer.pad_id)).any()
    assert short.judged(tokenizer) == [*prompt.ids, 9, 10, tokenizer.end_of_turn_id]
    assert long.judged(tokenizer)[-2:] == [16, tokenizer.end_of_turn_id]


def test_sampled_and_trained_log_probabilities_agree(tokenizer: Tokenizer, prompts: Prompts) -> None:
    """At another temperature too; and in whatever order and company an episode is measured."""
    policy, other = small(tokenizer), small(tokenizer, 3)
    for temperature in (1.0, 0.7):
        episodes = sample(Engine(policy, tokenizer), tokenizer, prompts.take(0, 9), range(9), 12, temperature)
        measured = measure(policy, other, episodes, tokenizer.pad_id, temperature=temperature)
        sampled = torch.tensor([x for episode in episodes for x in episode.logprobs])
        assert (measured.logprobs_BT[measured.mask_BT] - sampled).abs().max() < 1e-5
        backwards = measure(policy, other, episodes[::-1], tokenizer.pad_id, temperature=temperature)
        for name in ("logprobs_BT", "reference_BT", "entropy_BT", "divergence_BT"):
            ours, theirs = getattr(measured, name), getattr(backwards, name).flip(0)
            assert (ours - theirs).abs().max() < 1e-5, name
        alone = measure(other, policy, episodes[4:5], tokenizer.pad_id, temperature=temperature)
        assert (alone.logprobs_BT - measured.reference_BT[4:5, : alone.mask_BT.shape[1]]).abs().max() < 1e-5


def test_the_divergence_is_what_k1_estimates(tokenizer: Tokenizer, prompts: Prompts) -> None:
    """Over many samples of one prompt the mean of k1 tends to the mean divergence."""
    policy, other = (small(tokenizer, seed, d_model=16) for seed in (0, 3))
    for model in (policy, other):
        model.embedding.weight.data.mul_(12)  # apart enough to be measured
    episodes = sample(Engine(policy, tokenizer), tokenizer, [prompts[0]] * 400, range(400), 4)
    measured = measure(policy, other, episodes, tokenizer.pad_id, temperature=1.0)
    k1, exact = measured.episode_kl(), measured.divergence_BT.sum(1)
    spread = float((k1 - exact).std()) / 20
    assert float(exact.mean()) > 5 * spread and abs(float((k1 - exact).mean())) < 4 * spread
    assert (measured.divergence_BT >= -1e-6).all()


def test_the_first_ratio_is_one(rollouts: Maker) -> None:
    """Through the very forward pass that trains, for every minibatch of the first epoch before any update."""
    source = rollouts()
    objective = PPOObjective(0.2, 0.2, 0.1, tolerance=1e-5)
    forward = make_forward(source.network.train(), objective, False)
    for update in range(2):
        numbers = accumulate(forward, objective, source(update), "float32")
        assert numbers["ratio"] == pytest.approx(1, abs=1e-5)
        assert numbers["clip_fraction"] == 0 and numbers["approximate_kl"] < 1e-9


def test_a_first_ratio_other_than_one_stops_the_run(rollouts: Maker) -> None:
    source = rollouts()
    objective = PPOObjective(0.2, 0.2, 0.1, tolerance=1e-5)
    batches = source(0)
    source.network.policy.embedding.weight.data.mul_(1.01)
    forward = make_forward(source.network, objective, False)
    with pytest.raises(Failed, match="first probability ratio after a rollout is off"):
        accumulate(forward, objective, batches, "float32")
    stale = rollouts()
    stale.network.policy.embedding.weight.data.mul_(1.5)
    stale.engine.refresh = lambda: None  # type: ignore[method-assign]
    with pytest.raises(Failed, match="sampling and training do not compute the same policy"):
        stale(0)


def test_the_reward_stands_at_the_last_response_token(rollouts: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}
    true = losses.generalised_advantages

    def spy(rewards: Tensor, values: Tensor, mask: Tensor, *rest: float) -> tuple[Tensor, Tensor]:
        seen.update(rewards=rewards, mask=mask)
        return true(rewards, values, mask, *rest)

    monkeypatch.setattr(losses, "generalised_advantages", spy)
    source = rollouts(kl_coefficient=0.0, missing_end_penalty=3.0)
    batch, row = source.collect(0)
    ended = [tokenizer_end(source, batch.targets_BT[i][batch.mask_BT[i]]) for i in range(8)]
    for i, score in enumerate(torch.linspace(-1, 1, 8).tolist()):
        placed = seen["rewards"][i].nonzero()[:, 0].tolist()
        assert placed == [int(batch.mask_BT[i].nonzero().max())]
        assert float(seen["rewards"][i].sum()) == pytest.approx(score - (0 if ended[i] else 3.0))
    assert row["reward"] == pytest.approx(0, abs=1e-6), "the written reward is the model's, without the penalty"
    assert row["end_rate"] == sum(ended) / 8


def tokenizer_end(source: Rollouts, response: Tensor) -> bool:
    return int(response[-1]) == source.tokenizer.end_of_turn_id


def test_minibatches_share_out_the_rollout(rollouts: Maker) -> None:
    source = rollouts(minibatches=3, micro_episodes=2)
    first = [source(update) for update in range(6)]
    rollout, _ = rollouts(minibatches=3, micro_episodes=2).collect(0)
    for epoch in (0, 3):
        parts = [batch for update in range(epoch, epoch + 3) for batch in first[update]]
        assert max(len(batch.tokens_BT) for batch in parts) == 2
        assert sum(int(batch.mask_BT.sum()) for batch in parts) == int(rollout.mask_BT.sum())
        total = sum(float((batch.returns_BT * batch.mask_BT).sum()) for batch in parts)
        assert total == pytest.approx(float((rollout.returns_BT * rollout.mask_BT).sum()), rel=1e-5)
    assert [batch.first for update in first for batch in update].count(True) == len(first[0])
    assert [source.boundary(step) for step in range(7)] == [True] + [False] * 5 + [True]


def test_advantages_are_whitened_over_the_whole_rollout(rollouts: Maker) -> None:
    batch, row = rollouts().collect(0)
    tokens = batch.advantages_BT[batch.mask_BT]
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-5)
    assert float(tokens.std(unbiased=False)) == pytest.approx(1, abs=1e-3)
    assert row["kl"] > 0 and row["sampling_gap"] < 1e-5


def test_the_coefficient_adapts_and_is_kept(rollouts: Maker) -> None:
    source = rollouts(kl_target=1e-6, kl_horizon=80.0)
    source.collect(0)
    assert source.state() == {"beta": pytest.approx(0.05 * (1 + 0.2 * 8 / 80))}
    source.restore({"beta": 0.3})
    assert source.collect(1)[1]["kl_coefficient"] == 0.3
    fixed = rollouts()
    fixed.collect(0)
    assert fixed.beta == 0.05


def test_a_step_without_its_rollout_is_refused(rollouts: Maker) -> None:
    with pytest.raises(Failed, match="belongs to an iteration whose rollout was not made"):
        rollouts()(3)


def test_dropout_is_off_in_training(tokenizer: Tokenizer) -> None:
    policy, backbone = (small(tokenizer, dropout=0.5) for _ in range(2))
    network = ActorCritic(policy, ScalarModel(backbone).initialise(0)).train()
    tokens = torch.arange(10)[None] + 6
    mask = torch.ones(1, 10, dtype=torch.bool)
    one, two = (network(tokens, tokens, mask) for _ in range(2))
    assert torch.equal(one.logprobs_N, two.logprobs_N) and torch.equal(one.values_N, two.values_N)


def test_the_value_loss_is_scaled_where_the_values_are_far_off(rollouts: Maker) -> None:
    near = rollouts()
    far = rollouts(lam=1.0, score=lambda episodes: torch.full((len(episodes),), 50.0))
    for each in (near, far):
        each.network.value.score.weight.data.zero_()
    assert near.collect(0)[0].value_scale == 1.0
    assert far.collect(0)[0].value_scale == pytest.approx(1 / 50, rel=0.1)
