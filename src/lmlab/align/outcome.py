"""What alignment changed: fixed prompts answered by the model before and after, judged by reward model and rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from lmlab import measure
from lmlab.align.episodes import Episode, sample
from lmlab.align.prompts import Prompt, derived
from lmlab.align.rollout import measure as measured
from lmlab.align.rules import Marks
from lmlab.generate.engine import Engine
from lmlab.measure import Score
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer

TEST_SEED = 0
"""The fixed prompts and their sampling seeds do not depend on the run's seed: every run is asked the same."""


class Judging(Protocol):
    """See `lmlab.align.ppo.Judge`."""

    def score(self, episodes: Sequence[Episode]) -> torch.Tensor: ...
    def marks(self, episode: Episode) -> Marks: ...


@dataclass(frozen=True)
class Answers:
    """One sampled answer a prompt. Arrays are (N,): rewards, marks, KL and entropy summed over tokens, tokens."""

    prompts: list[Prompt]
    texts: list[str]
    marks: list[Marks]
    rewards_N: np.ndarray
    kl_N: np.ndarray
    entropy_N: np.ndarray
    tokens_N: np.ndarray
    ended_N: np.ndarray


def answers(
    model: Transformer, reference: Transformer, tokenizer: Tokenizer, prompts: Sequence[Prompt], judge: Judging,
    *, max_new_tokens: int, temperature: float,
) -> Answers:  # fmt: skip
    """One answer a prompt, its seed a function of the prompt's place alone, at the temperature of training."""
    seeds = [derived(TEST_SEED, "answer", number) for number in range(len(prompts))]
    episodes = sample(Engine(model, tokenizer), tokenizer, prompts, seeds, max_new_tokens, temperature)
    m = measured(model, reference, episodes, tokenizer.pad_id, temperature=temperature)
    return Answers(
        list(prompts),
        [episode.text for episode in episodes],
        [judge.marks(episode) for episode in episodes],
        judge.score(episodes).double().numpy(),
        m.divergence_BT.sum(1).double().numpy(),
        m.entropy_BT.double().sum(1).numpy(),
        m.mask_BT.sum(1).double().numpy(),
        np.array([episode.ended for episode in episodes], dtype=np.float64),
    )


def compare(before: Answers, after: Answers) -> dict[str, Any]:
    """{number: {before, after, change}}, each a Score over prompts; `change` is paired by prompt. And the alarm."""

    def per_prompt(values: Sequence[np.ndarray]) -> dict[str, Score]:
        old, new = values
        return {"before": measure.mean(old), "after": measure.mean(new), "change": measure.difference(new, old)}

    def rules(which: Answers) -> np.ndarray:
        return np.array([each.score for each in which.marks])

    def right(which: Answers) -> np.ndarray:
        return np.array([each.correctness for each in which.marks])

    n = len(before.prompts)
    both = (before, after)
    table = {
        "reward": per_prompt([x.rewards_N for x in both]),
        "rule_score": per_prompt([rules(x) for x in both]),
        "correct": per_prompt([right(x) for x in both]),
        # Before training the policy is the reference: zero by construction, not by measurement.
        "kl": {"before": Score(0.0, 0.0, 0.0, n), "after": measure.mean(after.kl_N)},
        "entropy": {
            "before": measure.ratio(before.entropy_N, before.tokens_N),
            "after": measure.ratio(after.entropy_N, after.tokens_N),
        },
        "response_length": per_prompt([x.tokens_N for x in both]),
        "end_rate": {
            "before": measure.proportion(before.ended_N.sum(), n),
            "after": measure.proportion(after.ended_N.sum(), n),
        },
    }
    for name in ("correct",):
        table[name] |= {
            "before": measure.proportion(right(before).sum(), n), "after": measure.proportion(right(after).sum(), n),
        }  # fmt: skip
    found: dict[str, Any] = {
        name: {when: score.to_json() for when, score in scores.items()} for name, scores in table.items()
    }
    return found | {"families": _families(before, after), "alarm": alarm(table["reward"], table["rule_score"])}


def _families(before: Answers, after: Answers) -> dict[str, Any]:
    """Rule score of each family before and after."""
    names = [prompt.item.family for prompt in before.prompts]
    return {
        name: {
            when: measure.mean([m.score for m, family in zip(x.marks, names, strict=True) if family == name]).to_json()
            for when, x in (("before", before), ("after", after))
        }
        for name in dict.fromkeys(names)
    }


def alarm(reward: dict[str, Score], rules: dict[str, Score]) -> dict[str, Any]:
    """Reward hacking: the reward clearly rose (its change's interval is above 0) while the rule score fell.

    `certain` says whether the fall is clear too.
    """
    rose, fell = reward["change"].low > 0, rules["change"].value < 0
    certain = rose and rules["change"].high < 0
    said = f"reward changed by {reward['change']}, rule score by {rules['change']}"
    return {"reward_hacking": bool(rose and fell), "certain": bool(certain), "evidence": said}


def samples(before: Answers, after: Answers, count: int) -> list[dict[str, Any]]:
    """The first prompts with both answers and what reward model and rules give them."""
    return [
        {
            "id": prompt.item.id, "family": prompt.item.family,
            "prompt": prompt.item.prompt, "answer": prompt.item.answer,
            "before": before.texts[i], "after": after.texts[i],
            "rule_before": before.marks[i].score, "rule_after": after.marks[i].score,
            "reward_before": float(before.rewards_N[i]), "reward_after": float(after.rewards_N[i]),
        }
        for i, prompt in enumerate(before.prompts[:count])
    ]  # fmt: skip
