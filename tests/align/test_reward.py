"""The reward stage: batches, the objective, what is saved, and that an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from align_stages import FAMILIES, REWARD, KilledError, killed_at, same, small

from lmlab.align import agreement, feedback, reward
from lmlab.align.feedback import Answer, Ranked
from lmlab.align.losses import pairwise_loss
from lmlab.align.rules import Marks
from lmlab.align.scalar import ScalarModel, load_reward, score_rows
from lmlab.errors import Failed, Refused
from lmlab.text.tokenizer import Tokenizer


def ranked(number: int, *ranks: int) -> Ranked:
    """A made-up prompt whose answers differ in correctness where their ranks do."""
    answers = [
        Answer("x" * (rank + 1), ids, True, Marks(1 / rank, 1, 1, 1 / rank), rank)
        for rank, ids in zip(ranks, ([7 + number, 8, 5], [7 + number, 8, 10, 5], [7 + number, 9, 5]))
    ]
    return Ranked(f"copy-{number}", "copy", "test", "p", "a", answers)


ROWS = [ranked(0, 1, 2, 3), ranked(1, 2, 1, 1), ranked(2, 1, 1, 2)]


def test_the_objective_is_the_pairwise_loss(tokenizer: Tokenizer) -> None:
    """One padded batch through the trainer's interface gives what the plain formula gives row by row."""
    model = ScalarModel(small(tokenizer)).initialise(1).eval()
    source = reward.RankedBatches(ROWS, batch_prompts=3, pad_id=1, longest=96, seed=0)
    (batch,) = source(0)
    objective = reward.PairwiseObjective()
    output = model(**objective.inputs(batch))
    found = objective.loss(output, batch)["pairwise"] / objective.count(batch)["pairwise"]
    alone = torch.stack([torch.stack([model(torch.tensor([a.ids]))[0, -1] for a in row.answers]) for row in ROWS])
    wanted = pairwise_loss(alone, [[a.rank for a in row.answers] for row in ROWS])
    assert float(found) == pytest.approx(float(wanted), abs=1e-6)
    top, bottom = objective.report(output, batch)["accuracy"]
    flat = [m for row, s in zip(ROWS, alone.tolist()) for b, w in row.pairs for m in [(s[b] > s[w]) / len(row.pairs)]]
    assert float(top / bottom) == pytest.approx(sum(flat) / 3)


def test_an_epoch_visits_every_prompt_once_in_an_order_of_its_own() -> None:
    rows = [ranked(number, 1, 2) for number in range(10)]
    source = reward.RankedBatches(rows, batch_prompts=5, pad_id=1, longest=96, seed=3)

    def epoch(number: int) -> list[int]:
        return [int(t) - 7 for step in (2 * number, 2 * number + 1) for t in source(step)[0].tokens_RT[::2, 0]]

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(10))
    assert epoch(0) != epoch(1) and epoch(0) == epoch(0)
    assert source.steps(3) == 6


def test_agreement_numbers() -> None:
    scores = [[3.0, 2.0, 1.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0]]
    found = agreement.summary(ROWS, scores)
    # 3 of 3; 1 of 2 (the second of the two best is scored below); two ties, a half each.
    assert found["pair_accuracy"]["value"] == pytest.approx((3 + 1 + 1) / 7)
    assert found["pair_accuracy"]["n"] == 3, "prompts are the independent units"
    assert found["pair_accuracy_by_kind"]["correctness"]["value"] == found["pair_accuracy"]["value"]
    assert found["agreement"]["best_is_best"]["value"] == 1.0
    assert found["calibration"]["pairs"] == 7
    assert found["baselines"]["shorter"]["value"] == 1.0
    assert agreement.accuracy(ROWS, [[0.0] * 3] * 3).value == 0.5


def test_kendall_tau_b_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.integers(0, 4, 6), generator.integers(0, 4, 6)
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert agreement.tau_b(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert agreement.tau_b([1, 1], [1, 2]) == 0.0


def test_stage_leaves_what_the_report_reads(reward_folder: Path) -> None:
    results = json.loads((reward_folder / "results.json").read_text())
    assert set(results["pair_accuracy"]) == {"value", "low", "high", "n"}
    counts = results["counts"]
    for split, wanted in (("train", 12), ("test", 4)):
        assert counts[split]["prompts"] >= wanted and sum(counts[split]["kinds"].values()) == counts[split]["pairs"]
    rows = feedback.read(reward_folder / "samples.jsonl")
    keys = {split: {row.id for row in rows if row.split == split} for split in ("train", "test")}
    assert not keys["train"] & keys["test"], "whole prompts are held out"
    assert len(keys["train"]) + len(keys["test"]) == len(rows)
    assert {row.family for row in rows} == set(FAMILIES)


def test_every_row_ends_with_one_end_of_turn(reward_folder: Path, tokenizer: Tokenizer) -> None:
    for row in feedback.read(reward_folder / "samples.jsonl"):
        for answer in row.answers:
            assert answer.ids[-1] == tokenizer.end_of_turn_id != answer.ids[-2]


def test_scores_are_normalised_over_the_policys_own_samples(reward_folder: Path, tokenizer: Tokenizer) -> None:
    model = load_reward(reward_folder / "model")
    rows = [row for row in feedback.read(reward_folder / "samples.jsonl") if row.split == "test"]
    scores = score_rows(model, [answer.ids for row in rows for answer in row.answers], tokenizer.pad_id)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3) and float(scores.std()) == pytest.approx(1, abs=1e-3)
    for name in ("config.json", "lmlab.json"):
        facts = json.loads((reward_folder / "model" / name).read_text())
        assert (facts["reward_mean"], facts["reward_std"]) == (model.mean, model.std)


def test_opens_in_transformers_with_the_same_scores(reward_folder: Path, tokenizer: Tokenizer) -> None:
    """Row by row and batched with right padding; the files hold the raw score, its normalisation stands beside."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(reward_folder / "model", num_labels=1)
    ours = load_reward(reward_folder / "model")
    rows = [a.ids for row in feedback.read(reward_folder / "samples.jsonl")[:6] for a in row.answers]
    raw = score_rows(ours, rows, tokenizer.pad_id) * ours.std + ours.mean
    width = max(map(len, rows)) + 3
    padded = torch.tensor([row + [tokenizer.pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        alone = torch.cat([theirs.eval()(torch.tensor([row])).logits[:, 0] for row in rows])
        together = theirs(padded, attention_mask=mask).logits[:, 0]
    assert (alone - raw).abs().max() < 1e-4
    assert (together - raw).abs().max() < 1e-4
    assert theirs.config.num_labels == 1 and float(raw.std()) > 1e-3


def test_a_language_model_is_no_reward_model(model_folder: Path) -> None:
    with pytest.raises(Refused, match=r"is no reward model.*no score\.weight"):
        load_reward(model_folder)


def test_too_few_pairs_are_said(stage: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    """Answers of one token from a random model hardly ever differ where only correctness counts."""
    rules = {"correctness": 1.0, "forbidden": 0, "length": 0}
    settings = {**REWARD, "prompts": 8, "max_new_tokens": 1, "attempts": 1, "rules": rules}
    with pytest.raises(Failed, match=r"prompts have answers that the rules tell apart.*raise temperature"):
        stage("reward", tmp_path, {"model": model_folder}, **settings)


def test_no_room_for_a_prompt_is_refused(stage: Callable[..., Any], model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"reward\.max_new_tokens: 96 leaves no room"):
        stage("reward", tmp_path, {"model": model_folder}, **{**REWARD, "max_new_tokens": 96})


def test_a_killed_run_ends_as_an_uninterrupted_one(
    stage: Callable[..., Any], model_folder: Path, reward_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reward, "fit", killed_at(1, reward.fit))
        with pytest.raises(KilledError):
            stage("reward", tmp_path, {"model": model_folder}, **REWARD)
    stage("reward", tmp_path, {"model": model_folder}, **REWARD)
    same(reward_folder, tmp_path)
    assert (reward_folder / "samples.jsonl").read_bytes() == (tmp_path / "samples.jsonl").read_bytes()
