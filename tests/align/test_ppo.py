"""PPO: it learns, it resumes bit for bit, and it reports before and after."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align_stages import FAMILIES, PPO, KilledError, killed_at, same, small
from pydantic import ValidationError

from lmlab.align import outcome, ppo
from lmlab.align.actor_critic import ActorCritic, PPOObjective
from lmlab.align.episodes import Episode
from lmlab.align.ppo import PPOConfig
from lmlab.align.prompts import Prompts
from lmlab.align.rollout import Rollouts
from lmlab.align.scalar import ScalarModel, load_reward, save_reward
from lmlab.errors import Refused
from lmlab.generate.engine import Engine
from lmlab.instruct.families import make
from lmlab.measure import Score
from lmlab.progress import Metrics, read_jsonl
from lmlab.run import Context, write_json
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer, train
from lmlab.train.trainer import fit

Stage = Callable[..., dict[str, Any]]


def test_it_raises_a_known_reward(tokenizer: Tokenizer, renderer: Renderer, tmp_path: Path) -> None:
    """A bandit: the reward is whether an answer holds one of some tokens, here 60 of 600."""
    wanted = set(range(300, 360))

    def score(episodes: Sequence[Episode]) -> torch.Tensor:
        return torch.tensor([float(bool(wanted & set(episode.response))) for episode in episodes])

    config = PPOConfig.model_validate({
        **PPO, "iterations": 10, "episodes": 64, "epochs": 4, "minibatches": 1, "micro_episodes": 64,
        "max_new_tokens": 3, "missing_end_penalty": 0.0, "kl_coefficient": 0.01,
        "train": {"optimizer": {"learning_rate": 2e-2}},
    })  # fmt: skip
    policy, reference = (small(tokenizer, d_model=16) for _ in range(2))
    network = ActorCritic(policy, ScalarModel(small(tokenizer, 1, d_model=16)).initialise(2))
    settings = config.rollout(0)
    write_json(tmp_path / "state.json", {})
    context = Context("ppo", "ppo", config, {}, tmp_path, 0, Metrics(tmp_path))
    source = Rollouts(
        network, reference, Engine(policy, tokenizer), tokenizer, Prompts(renderer, make(FAMILIES), "train", 0, 70),
        settings, score, lambda _: 0.0, context.metrics,
    )  # fmt: skip
    training = config.train.model_copy(update={"steps": config.iterations * settings.updates})
    fit(network, PPOObjective(0.2, 0.2, 0.1, 1e-5), source, training, context)
    rewards = [row["reward"] for row in read_jsonl(tmp_path / "metrics.jsonl") if "reward" in row]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.25
    kl = [row["kl"] for row in read_jsonl(tmp_path / "metrics.jsonl") if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] > 0.2


@pytest.fixture(scope="module")
def finished(model_folder: Path, reward_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ppo stage."""
    out = tmp_path_factory.mktemp("ppo")
    write_json(out / "state.json", {"seconds": 0.0})
    config = PPOConfig.model_validate(PPO)
    inputs = {"model": model_folder, "reward": reward_folder}
    ppo.STAGE.run(Context("ppo", "ppo", config, inputs, out, 0, Metrics(out)))
    return out


def test_stage_leaves_what_the_report_reads(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    for name in ("reward", "rule_score", "kl", "entropy", "response_length", "end_rate", "correct"):
        for when in ("before", "after"):
            assert set(results[name][when]) == {"value", "low", "high", "n"}, name
    assert results["kl"]["before"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 6}
    assert results["kl"]["after"]["value"] > 0
    assert len(results["samples"]) == 2
    assert {"prompt", "before", "after", "rule_before", "rule_after"} <= set(results["samples"][0])
    assert results["alarm"]["reward_hacking"] in (True, False)
    rows = [row for row in read_jsonl(finished / "metrics.jsonl") if "iteration" in row]
    assert [(row["step"], row["iteration"]) for row in rows] == [(0, 0), (4, 1), (8, 2)]
    wanted = {"reward", "rule_score", "kl", "entropy", "response_length", "end_rate", "explained_variance"}
    assert wanted <= set(rows[0])
    updates = [row for row in read_jsonl(finished / "metrics.jsonl") if "loss" in row]
    assert len(updates) == 12 and {"clip_fraction", "value_loss", "ratio"} <= set(updates[0])
    assert all(abs(updates[step]["ratio"] - 1) < 1e-5 for step in (0, 4, 8))


def test_the_reference_and_the_inputs_are_left_alone(finished: Path, model_folder: Path, reward_folder: Path) -> None:
    from lmlab.model.store import load_model

    trained, start = load_model(finished / "model"), load_model(model_folder)
    assert not torch.equal(trained.embedding.weight, start.embedding.weight)
    value = ppo._network(start, load_reward(reward_folder / "model"), 1.0)
    assert all(p.requires_grad for p in value.parameters())
    assert torch.equal(value.value.score.weight, load_reward(reward_folder / "model").score.weight), "the head is kept"


@pytest.mark.parametrize("step", [0, 5, 11])
def test_a_killed_run_ends_as_an_uninterrupted_one(
    step: int, stage: Stage, finished: Path, model_folder: Path, reward_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """KilledError right after an update: in the first iteration, in the middle of the second, after the last."""
    inputs = {"model": model_folder, "reward": reward_folder}
    with monkeypatch.context() as patch:
        patch.setattr(ppo, "fit", killed_at(step, ppo.fit))
        with pytest.raises(KilledError):
            stage("ppo", tmp_path, inputs, **PPO)
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert all(int(name[5:]) % 4 == 0 for name in checkpoints), "only between iterations"
    stage("ppo", tmp_path, inputs, **PPO)
    same(finished, tmp_path)


def test_an_adaptive_coefficient_survives_a_kill(
    stage: Stage, model_folder: Path, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": model_folder, "reward": reward_folder}
    settings = {**PPO, "kl_target": 0.001, "kl_horizon": 20}
    stage("ppo", tmp_path / "whole", inputs, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(ppo, "fit", killed_at(9, ppo.fit))
        with pytest.raises(KilledError):
            stage("ppo", tmp_path / "cut", inputs, **settings)
    stage("ppo", tmp_path / "cut", inputs, **settings)
    same(tmp_path / "whole", tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "results.json").read_text())["training"]["kl_coefficient"] != 0.05


def test_minutes_size_the_run_once(stage: Stage, model_folder: Path, reward_folder: Path, tmp_path: Path) -> None:
    inputs = {"model": model_folder, "reward": reward_folder}
    write_json(tmp_path / "plan.json", {"iterations": 2})
    stage("ppo", tmp_path, inputs, **{**PPO, "minutes": 60.0})
    assert json.loads((tmp_path / "results.json").read_text())["training"]["iterations"] == 2, (
        "what was planned is kept"
    )
    stage("ppo", tmp_path / "timed", inputs, **{**PPO, "minutes": 0.001})
    plan = json.loads((tmp_path / "timed" / "plan.json").read_text())
    assert plan["iterations"] == 2 and plan["seconds_an_iteration"] > 0
    # Timing must leave no trace: the same two iterations, set instead of timed.
    stage("ppo", tmp_path / "set", inputs, **{**PPO, "iterations": 2})
    for name in ("results.json", "model/model.safetensors"):
        assert (tmp_path / "timed" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()


def test_a_reward_model_of_another_tokenizer_is_refused(
    stage: Stage, reward_folder: Path, model_folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = train(["other words make other pieces"] * 20, 280)
    model = ScalarModel(small(tokenizer)).initialise(0)
    save_reward(tmp_path / "reward", model, other, {})
    with pytest.raises(Refused, match="its tokenizer differs"):
        stage("ppo", tmp_path / "out", {"model": model_folder, "reward": tmp_path / "reward"}, **PPO)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="3 minibatches cannot be made of 2 episodes"):
        PPOConfig(minibatches=3, episodes=2)
    with pytest.raises(ValidationError, match="did you mean 'copy'"):
        PPOConfig(families=("copi",))
    partly = PPOConfig.model_validate({"train": {"optimizer": {"learning_rate": 1.0}}}).train.optimizer
    assert (partly.eps, partly.weight_decay) == (1e-5, 0.0), "one setting leaves the others as they are"


def test_the_alarm() -> None:
    def changed(value: float, spread: float) -> dict[str, Score]:
        return {"change": Score(value, value - spread, value + spread, 64)}

    def told(reward: dict[str, Score], rules: dict[str, Score]) -> tuple[bool, bool]:
        found = outcome.alarm(reward, rules)
        return found["reward_hacking"], found["certain"]

    assert told(changed(1, 0.1), changed(-0.2, 0.1)) == (True, True)
    assert told(changed(1, 0.1), changed(-0.05, 0.1)) == (True, False)
    assert told(changed(1, 0.1), changed(0.2, 0.1)) == (False, False)
    assert told(changed(0.05, 0.1), changed(-0.2, 0.1)) == (False, False), "no clear rise, nothing to exploit"
