"""Claims follow the numbers: held, not held, undecided, not measured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import ORDER, items, results, score, share

from lmlab.report.claims import ITEMS, judge
from lmlab.report.tasks import items_of


def verdicts(kind: str, stage: dict[str, Any]) -> dict[str, bool | None]:
    return {claim["claim"]: claim["holds"] for claim in judge({"it": {"kind": kind, **stage}})}


def verdict(kind: str, stage: dict[str, Any], words: str) -> bool | None:
    (found,) = [holds for claim, holds in verdicts(kind, stage).items() if words in claim]
    return found


@given(st.floats(0.5, 3), st.floats(0, 0.5), st.floats(0.5, 3), st.floats(0, 0.5))
def test_a_model_beats_xz_only_if_its_whole_interval_lies_below(a: float, da: float, b: float, db: float) -> None:
    stage = {"bits_per_byte": {"after": score(a, da, 50), "xz": score(b, db, 50)}}
    expected = True if a + da < b - db else False if a - da > b + db else None
    assert verdict("pretrain", stage, "xz -9e alone") is expected


def test_pretraining_says_plainly_that_it_lost() -> None:
    bits = {
        "before": score(3.3, 0.1, 9),
        "after": score(1.6, 0.02, 9),
        "xz": score(1.5, 0.02, 9),
        "ngram": score(1.6, 0.1, 9),
    }
    found = judge({"pretrain": {"kind": "pretrain", "bits_per_byte": bits}})
    assert [claim["holds"] for claim in found] == [True, False, None]
    assert "undecided" in found[2]["evidence"]
    assert "1.600 [1.580 to 1.620] (n = 9)" in found[1]["evidence"]


def test_a_paired_change_decides_where_two_intervals_cannot() -> None:
    stage = {"rule_score": {"before": score(0.5, 0.1, 64), "after": score(0.55, 0.1, 64)}}
    assert verdict("ppo", stage, "rule score, which") is None
    stage["rule_score"]["change"] = score(0.05, 0.02, 64)
    assert verdict("ppo", stage, "rule score, which") is True
    stage["rule_score"]["change"] = score(-0.05, 0.02, 64)
    assert verdict("ppo", stage, "rule score, which") is False
    lower = {"bits_per_byte": {"before": score(2, 0.5, 9), "after": score(1.8, 0.5, 9), "change": score(-0.2, 0.1, 9)}}
    assert verdict("pretrain", lower, "Training lowers") is True


def test_a_rival_is_judged_document_by_document_where_that_was_measured() -> None:
    wide = {"bits_per_byte": {"after": score(1.5, 0.3, 9), "xz": score(1.8, 0.3, 9)}}
    assert verdict("pretrain", wide, "xz -9e alone") is None
    for excess, holds in ((-0.3, True), (0.3, False), (0.0, None)):
        wide["bits_per_byte"]["excess"] = {"xz": score(excess, 0.1, 9)}
        assert verdict("pretrain", wide, "xz -9e alone") is holds


def test_sft_is_judged_on_seen_unseen_and_each_family() -> None:
    up, down, same = (
        {"before": share(a, 200), "after": share(b, 200)} for a, b in ((0.1, 0.9), (0.9, 0.1), (0.5, 0.5))
    )
    match: dict[str, Any] = {"seen": up, "unseen": down, "families": {"a": up, "b": up}}
    assert list(verdicts("sft", {"exact_match": match}).values()) == [True, False, True]
    assert verdict("sft", {"exact_match": {**match, "families": {"a": up, "b": same}}}, "Every family") is None
    assert verdict("sft", {"exact_match": {**match, "families": {"a": up, "b": down}}}, "Every family") is False


@pytest.mark.parametrize(
    ("accuracy", "coin", "six"), [(0.9, True, True), (0.58, True, None), (0.5, None, False), (0.2, False, False)]
)
def test_a_reward_model_is_held_against_a_coin_and_more(accuracy: float, coin: bool | None, six: bool | None) -> None:
    found = verdicts("reward", {"pair_accuracy": share(accuracy, 1000)})
    assert list(found.values()) == [coin, six]
    shorter = verdicts("reward", {"pair_accuracy": share(accuracy, 1000), "baselines": {"shorter": share(0.7, 1000)}})
    assert list(shorter.values())[-1] is (accuracy > 0.7)


def test_ppo_that_hacks_its_reward_is_called_out() -> None:
    stage = results()["ppo"]
    hacked = copy.deepcopy(stage)
    hacked["rule_score"]["change"] = score(-0.2, 0.05, 256)
    assert verdict("ppo", stage, "merely exploited") is True
    assert verdict("ppo", hacked, "merely exploited") is False
    flat = copy.deepcopy(stage)
    flat["reward"]["change"] = score(0.0, 0.05, 256)
    assert verdict("ppo", flat, "merely exploited") is None


def test_kl_that_was_once_no_number_is_not_finite() -> None:
    stage = results()["ppo"]
    assert verdict("ppo", stage, "stays finite") is True
    assert verdict("ppo", {**stage, "curves": {"kl": {"step": [], "value": [], "not_finite": 2}}}, "finite") is False
    assert verdict("ppo", {"kl": {"after": {"value": None, "low": None, "high": None, "n": 9}}}, "finite") is False
    assert verdict("ppo", {}, "finite") is None


def test_entropy_that_collapsed_fails() -> None:
    entropy = {"before": score(1.0, 0.05, 99), "after": score(0.2, 0.05, 99)}
    assert verdict("ppo", {"entropy": entropy}, "entropy") is False


def test_evaluation_says_whether_ways_of_asking_help() -> None:
    stage = results()["evaluate"]
    alone = judge({"evaluate": {"kind": "evaluate", **stage}})
    sharper = judge({"evaluate": {"kind": "evaluate", **stage, ITEMS: items_of(items(0))}})
    assert [c["claim"] for c in alone] == [c["claim"] for c in sharper]
    texts = " / ".join(c["claim"] for c in alone)
    for words in (
        "sft answers more than pretrain",
        "ppo: writing the steps",
        "a vote of 8 samples",
        "4 demonstrations",
    ):
        assert words in texts
    steps = next(c for c in sharper if "writing the steps" in c["claim"])
    assert steps["holds"] is True and steps["evidence"].endswith("; it helps")
    # Pairing decides more, and nothing that was decided without it is turned round.
    assert sum(c["holds"] is None for c in sharper) <= sum(c["holds"] is None for c in alone)
    assert all(a["holds"] in (None, b["holds"]) for a, b in zip(alone, sharper))


def test_steps_that_hurt_are_said_to_hurt() -> None:
    tasks = {
        "exact_match/a/shots=0/steps/greedy": share(0.1, 200),
        "exact_match/a/shots=0/direct/greedy": share(0.9, 200),
    }
    found = [c for c in judge({"e": {"kind": "evaluate", "stages": {"sft": tasks}}}) if "steps" in c["claim"]]
    assert [c["holds"] for c in found] == [False]
    assert found[0]["evidence"].endswith("it hurts")


def test_a_model_that_forgot_its_language_is_found() -> None:
    def run(after: float) -> bool | None:
        stages = {"pretrain": {"bits_per_byte": score(1.1, 0.01, 99)}, "sft": {"bits_per_byte": score(after, 0.01, 99)}}
        return verdict("evaluate", {"stages": stages}, "keeps the language")

    assert (run(1.12), run(1.21), run(1.5)) == (True, None, False)


@pytest.mark.parametrize("kind", ORDER)
def test_a_stage_without_numbers_holds_nothing(kind: str) -> None:
    found = judge({"it": {"kind": kind}})
    assert found
    assert {claim["holds"] for claim in found} == {None}


def test_an_unknown_kind_claims_nothing() -> None:
    assert judge({"it": {"kind": "distil"}}) == []


def test_fine_tuning_for_a_task_is_held_against_the_commonest_label_example_by_example() -> None:
    stage = {"accuracy": {"majority": score(0.5, 0.1, 64), "after": score(0.6, 0.1, 64)}}
    for gain, holds in ((0.1, True), (0.0, None), (-0.1, False)):
        stage["accuracy_over_majority"] = score(gain, 0.05, 64)
        assert verdicts("finetune", stage) == {"It is right more often than always saying the commonest label": holds}
