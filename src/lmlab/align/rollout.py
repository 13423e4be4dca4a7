"""PPO's rollouts: episodes sampled by the one engine, measured by policy, reference, value and reward model, and given
to the one trainer as its source of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.align import losses
from lmlab.align.actor_critic import ActorCritic, PPOBatch, check_ratio
from lmlab.align.episodes import Episode, sample
from lmlab.align.prompts import Prompts, derived
from lmlab.errors import Failed
from lmlab.generate.engine import Engine
from lmlab.model.transformer import Transformer
from lmlab.progress import Metrics
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.step import autocast

ROWS = 32
"""Episodes in one forward pass without gradient."""


@dataclass(frozen=True)
class RolloutSettings:
    """What a rollout and its updates are made of; see `PPOConfig` for each."""

    episodes: int
    epochs: int
    minibatches: int
    micro_episodes: int
    max_new_tokens: int
    temperature: float
    gamma: float
    lam: float
    kl_coefficient: float
    kl_target: float | None
    kl_horizon: float
    missing_end_penalty: float
    precision: str
    tolerance: float
    seed: int

    @property
    def updates(self) -> int:
        """Optimizer steps an iteration."""
        return self.epochs * self.minibatches


@dataclass
class Measured:
    """What the networks say of episodes, each (B, T), 0 outside the mask; position t belongs to its target token.

    `divergence_BT` is KL(policy || reference) at each response token over the whole vocabulary, in nats.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    mask_BT: Tensor
    logprobs_BT: Tensor
    reference_BT: Tensor
    entropy_BT: Tensor
    divergence_BT: Tensor
    values_BT: Tensor

    def token_kl(self, kind: losses.Estimator = "k1") -> Tensor:
        """The KL to the reference estimated at each response token (B, T), in nats; 0 outside the mask."""
        return losses.kl_estimate(self.logprobs_BT, self.reference_BT, kind)

    def episode_kl(self, kind: losses.Estimator = "k1") -> Tensor:
        """Its sum over each episode's tokens (B,)."""
        return self.token_kl(kind).sum(1)


def rows_of(episodes: Sequence[Episode], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, targets, mask (B, T) of next-token prediction; the mask is True where the target is of the response."""
    length = max(len(episode.prompt.ids) + len(episode.response) for episode in episodes) - 1
    tokens_BT = torch.full((len(episodes), length), pad_id, dtype=torch.long)
    targets_BT = torch.full_like(tokens_BT, pad_id)
    mask_BT = torch.zeros(tokens_BT.shape, dtype=torch.bool)
    for row, episode in enumerate(episodes):
        ids = torch.tensor([*episode.prompt.ids, *episode.response])
        n, start = len(ids) - 1, len(episode.prompt.ids) - 1
        tokens_BT[row, :n], targets_BT[row, :n], mask_BT[row, start:n] = ids[:-1], ids[1:], True
    return tokens_BT, targets_BT, mask_BT


@torch.no_grad()
def measure(
    policy: Transformer, reference: Transformer, episodes: Sequence[Episode], pad_id: int, *,
    temperature: float, network: ActorCritic | None = None, precision: str = "float32",
) -> Measured:  # fmt: skip
    """Log-probabilities by policy and reference, entropy, divergence and, given a network, the values of episodes.

    The policy's log-probabilities are those of the training forward pass, not of the sampler. Episodes of like length
    are computed together.
    """
    tokens_BT, targets_BT, mask_BT = rows_of(episodes, pad_id)
    found = Measured(tokens_BT, targets_BT, mask_BT, *(torch.zeros(tokens_BT.shape) for _ in range(5)))
    lengths = [len(episode.prompt.ids) + len(episode.response) - 1 for episode in episodes]
    order = sorted(range(len(episodes)), key=lambda i: lengths[i])
    for start in range(0, len(order), ROWS):
        index = torch.tensor(order[start : start + ROWS])
        length = lengths[int(index[-1])]
        tokens, targets, mask = (x[index, :length] for x in (tokens_BT, targets_BT, mask_BT))
        wanted = targets[mask]
        with autocast(precision):
            logits_NV = _logits(policy, tokens, mask, temperature)
            other_NV = logits_NV if reference is policy else _logits(reference, tokens, mask, temperature)
            values_N = torch.zeros(len(wanted)) if network is None else network.value(tokens)[mask]
        places = torch.zeros_like(mask_BT)
        places[index, :length] = mask
        # A mask picks its entries row after row in the order of the rows, and `index` is not in that order.
        back = torch.argsort(torch.repeat_interleave(index, mask.sum(1)), stable=True)
        for into, values in (
            (found.logprobs_BT, _chosen(logits_NV, wanted)), (found.reference_BT, _chosen(other_NV, wanted)),
            (found.entropy_BT, losses.entropy(logits_NV)), (found.values_BT, values_N),
            (found.divergence_BT, losses.divergence(logits_NV, other_NV)),
        ):  # fmt: skip
            into[places] = values.float()[back]
    return found


def _logits(model: Transformer, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
    output = model(tokens)
    return output.logits(output.hidden_BTD[mask]) / temperature


def _chosen(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """As `token_logprobs`, from logits that are there already."""
    return logits_NV.gather(1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


class Rollouts:
    """The trainer's source for PPO. At the first step of an iteration it samples episodes from the live policy and
    measures them; all updates of the iteration learn from these.

    Prompts, sampling seeds and the order of minibatches are pure functions of (seed, iteration), and checkpoints are
    taken only between iterations, so a resumed run repeats an uninterrupted one bit for bit.
    """

    def __init__(
        self,
        network: ActorCritic,
        reference: Transformer,
        engine: Engine,
        tokenizer: Tokenizer,
        prompts: Prompts,
        settings: RolloutSettings,
        score: Callable[[Sequence[Episode]], Tensor],
        rule_score: Callable[[Episode], float],
        metrics: Metrics | None = None,
    ) -> None:
        """`score` gives the episodes' rewards (B,), which are trained on; `rule_score` is only written down."""
        self.network, self.reference, self.engine, self.prompts = network, reference, engine, prompts
        self.settings, self.score, self.rule_score, self.metrics = settings, score, rule_score, metrics
        self.beta = settings.kl_coefficient
        self.tokenizer = tokenizer
        self._iteration = -1
        self._batch: PPOBatch | None = None

    def boundary(self, step: int) -> bool:
        """A checkpoint may be taken before the first update of an iteration only."""
        return step % self.settings.updates == 0

    def state(self) -> dict[str, float]:
        return {"beta": self.beta}

    def restore(self, state: dict[str, float]) -> None:
        self.beta = float(state["beta"])

    def __call__(self, step: int) -> list[PPOBatch]:
        iteration, update = divmod(step, self.settings.updates)
        if update == 0:
            self._batch, row = self.collect(iteration)
            self._iteration = iteration
            if self.metrics is not None:
                self.metrics.log(step, row)
        if self._batch is None or self._iteration != iteration:
            raise Failed(f"step {step} belongs to an iteration whose rollout was not made; expected its first step")
        return self.minibatch(self._batch, iteration, update)

    def minibatch(self, batch: PPOBatch, iteration: int, update: int) -> list[PPOBatch]:
        epoch, minibatch = divmod(update, self.settings.minibatches)
        key = [derived(self.settings.seed, "minibatches", iteration), epoch]
        order = np.random.Generator(np.random.Philox(key=key)).permutation(self.settings.episodes)
        chosen = torch.from_numpy(np.array_split(order, self.settings.minibatches)[minibatch])
        length_B = batch.mask_BT.shape[1] - batch.mask_BT[chosen].flip(1).int().argmax(1)
        chosen = chosen[torch.argsort(length_B, stable=True)]
        return [batch.rows(part, first=update == 0) for part in chosen.split(self.settings.micro_episodes)]

    def collect(self, iteration: int) -> tuple[PPOBatch, dict[str, Any]]:
        """The episodes of an iteration as one batch, and the iteration's numbers."""
        s, network = self.settings, self.network
        self.engine.refresh()
        prompts = self.prompts.take(iteration * s.episodes, s.episodes)
        seeds = [derived(s.seed, "rollout", iteration, number) for number in range(s.episodes)]
        episodes = sample(self.engine, self.tokenizer, prompts, seeds, s.max_new_tokens, s.temperature)
        m = measure(network.policy, self.reference, episodes, self.tokenizer.pad_id,
                    temperature=s.temperature, network=network, precision=s.precision)  # fmt: skip
        sampled_N = torch.tensor([logprob for episode in episodes for logprob in episode.logprobs])
        trained_N = m.logprobs_BT[m.mask_BT]
        check_ratio(trained_N, sampled_N, s.tolerance)

        scores_B = self.score(episodes).float()
        ended_B = torch.tensor([episode.ended for episode in episodes])
        credited_B = scores_B - s.missing_end_penalty * ~ended_B
        rewards_BT = losses.token_rewards(m.token_kl(), credited_B, m.mask_BT, self.beta)
        advantages_BT, returns_BT = losses.generalised_advantages(rewards_BT, m.values_BT, m.mask_BT, s.gamma, s.lam)
        row = {
            "iteration": iteration,
            "reward": float(scores_B.mean()),
            "rule_score": float(np.mean([self.rule_score(episode) for episode in episodes])),
            "kl": float(m.divergence_BT.sum(1).mean()),
            "kl_k1": float(m.episode_kl().mean()),
            "kl_coefficient": self.beta,
            "penalised_reward": float(rewards_BT.sum(1).mean()),
            "entropy": float(m.entropy_BT[m.mask_BT].mean()),
            "response_length": float(m.mask_BT.sum(1).float().mean()),
            "end_rate": float(ended_B.float().mean()),
            "explained_variance": losses.explained_variance(m.values_BT[m.mask_BT], returns_BT[m.mask_BT]),
            "sampling_gap": float((trained_N - sampled_N).abs().mean()),
        }
        if s.kl_target is not None:
            self.beta = losses.adapted_coefficient(
                self.beta, row["kl"], target=s.kl_target, horizon=s.kl_horizon, episodes=s.episodes
            )
        whitened_BT = losses.whiten(advantages_BT, m.mask_BT)
        error = float((returns_BT - m.values_BT)[m.mask_BT].square().mean().sqrt())
        batch = PPOBatch(
            m.tokens_BT, m.targets_BT, m.mask_BT, m.logprobs_BT, m.values_BT, whitened_BT, returns_BT,
            value_scale=1 / max(1.0, error),
        )  # fmt: skip
        return batch, row
