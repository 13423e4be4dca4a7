"""The runner: what a unit's key holds, resuming, unparsed apart from wrong, windows of text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from lmlab.errors import Refused
from lmlab.evaluate.runner import Limits, Unit, prompts, run_unit, unit_key, weights_fingerprint
from lmlab.evaluate.strategy import Cot, Shots, Strategy, Vote
from lmlab.evaluate.tasks import family_tasks, held_out_text
from lmlab.instruct import families as kinds
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

TASKS = family_tasks(kinds.make(["copy", "arithmetic"]), [], 0)
LIMITS = Limits()


def unit_of(subject, name="arithmetic", strategy=None, count=6):
    return Unit(subject, TASKS[name], strategy or Strategy(), tuple(TASKS[name].data.test(count)))


def test_unparsed_is_not_wrong_and_truncated_is_told(make_subject, tmp_path):
    outputs = iter(["I do not know, sir", "-1", "", "9" * 50, *["-1"] * 2])
    rows = run_unit(unit_of(make_subject(answer=lambda ids, sampling: next(outputs))), LIMITS, tmp_path)
    assert [row["parsed"] for row in rows[:3]] == [None, "-1", None]
    assert [row["finish_reason"] for row in rows[:4]] == ["stop", "stop", "stop", "length"]
    assert [row["score"] for row in rows] == [0.0] * 6


def test_right_answers_score(make_subject, tmp_path):
    subject = make_subject()
    unit = unit_of(subject, strategy=Strategy(Shots(1), Cot()))
    right = {tuple(prompt.ids): prompt.item.asked(True).target for prompt in prompts(unit, LIMITS)}
    subject.engine.answer = lambda ids, sampling: right[tuple(ids)]
    rows = run_unit(unit, LIMITS, tmp_path)
    assert [row["score"] for row in rows] == [1.0] * 6
    assert {row["task"] for row in rows} == {"exact_match/arithmetic/shots=1/steps/greedy"}
    assert all(row["output"].startswith("Steps:") and row["parsed"] == row["answer"] for row in rows)


def test_the_vote_takes_the_answer_of_most_samples(make_subject, tmp_path):
    said = ["5", "none of them, no", "4", "4", "5", "4", "", "6"]
    seen: dict[tuple, int] = {}

    def answer(ids, sampling):
        assert sampling.temperature == 0.5
        place = seen.get(tuple(ids), 0)
        seen[tuple(ids)] = place + 1
        return said[place]

    subject = make_subject(answer=answer)
    rows = run_unit(unit_of(subject, strategy=Strategy(vote=Vote(8, 0.5))), LIMITS, tmp_path)
    assert subject.engine.calls == [48]
    assert all(row["parsed"] == "4" and [s["output"] for s in row["samples"]] == said for row in rows)
    assert all(len({sample["seed"] for sample in row["samples"]}) == 8 for row in rows)
    assert all(row["seed"] == row["samples"][2]["seed"] for row in rows)


def test_a_finished_unit_is_read_and_gives_the_same_rows(make_subject, tmp_path):
    first, second = make_subject(), make_subject()
    rows = run_unit(unit_of(first), LIMITS, tmp_path)
    assert run_unit(unit_of(second), LIMITS, tmp_path) == rows
    assert (first.engine.calls, second.engine.calls) == ([6], [])
    # A damaged part is asked again, and is then what it was.
    (part,) = tmp_path.iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    assert run_unit(unit_of(second), LIMITS, tmp_path) == rows
    assert second.engine.calls == [6]
    assert part.read_bytes() == whole


def test_another_model_never_gets_these_rows(make_subject, tmp_path):
    run_unit(unit_of(make_subject()), LIMITS, tmp_path)
    other = make_subject(fingerprint="other weights")
    run_unit(unit_of(other), LIMITS, tmp_path)
    assert other.engine.calls == [6]


def test_one_changed_weight_changes_the_fingerprint():
    config = ModelConfig(layers=1, d_model=8, heads=2, vocab_size=16, context_length=8)
    model = Transformer(config).initialise(0)
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(Transformer(config).initialise(0))
    with torch.no_grad():
        model.blocks[0].attention.q.weight[3, 4] += 1e-7
    assert weights_fingerprint(model) != before


def test_the_key_holds_what_the_rows_depend_on(make_subject):
    def key(unit, limits=LIMITS):
        return unit_key(unit, limits, prompts(unit, limits))

    unit = unit_of(make_subject())
    bigger = make_subject()
    bigger.engine.max_batch = 8
    coarser = make_subject()
    coarser.engine.precision = "bfloat16"
    version = replace(unit.task, version=2)
    others = [
        unit_of(make_subject(), strategy=Strategy(Shots(1))),
        unit_of(make_subject(), strategy=Strategy(vote=Vote(2))),
        unit_of(make_subject(), strategy=Strategy(vote=Vote(2, 0.9))),
        unit_of(make_subject(), count=5),
        unit_of(make_subject(), "copy"),
        unit_of(bigger),
        unit_of(coarser),
        replace(unit, task=version),
    ]
    keys = [key(unit), *map(key, others), key(unit, Limits(seed=1)), key(unit, Limits(max_new_tokens=9))]
    assert len(set(keys)) == len(keys)
    assert key(unit_of(make_subject(name="ppo"))) == key(unit)  # the same model under another name


def test_demonstrations_give_way_to_the_context_and_the_row_says_so(make_subject, tmp_path):
    strategy = Strategy(Shots(4))
    roomy = prompts(unit_of(make_subject(), strategy=strategy), LIMITS)
    tight = make_subject(context=max(len(prompt.ids) for prompt in roomy) + LIMITS.max_new_tokens - 1)
    rows = run_unit(unit_of(tight, strategy=strategy), LIMITS, tmp_path)
    assert min(row["shots"] for row in rows) == 3
    assert all(row["prompt_tokens"] + LIMITS.max_new_tokens <= tight.context for row in rows)
    with pytest.raises(Refused, match="longer than the context of 30"):
        prompts(unit_of(make_subject(context=30)), LIMITS)


def test_bits_per_byte_counts_every_token_and_byte(make_subject, tokenizer, tmp_path):
    subject = make_subject(context=16)
    text = held_out_text([{"id": "a", "text": "copy the words " * 9}, {"id": "b", "text": "12 + 7"}], 1000, 1000)
    rows = run_unit(Unit(subject, text, None, text.passages), LIMITS, tmp_path)
    assert [row["tokens"] for row in rows] == [len(tokenizer.encode(passage.text)) for passage in text.passages]
    assert all(row["bits"] == pytest.approx(row["tokens"] / 0.6931471805599453) for row in rows)
    assert all(row["score"] == row["bits"] / row["bytes"] for row in rows)
    assert json.dumps(rows)
