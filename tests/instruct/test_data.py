"""Batches are pure functions of the step; the loss lies on answers and their ends alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.instruct.data import ANSWERS, TEXT, InstructionBatches, InstructionObjective, InstructionRows, TextRows
from lmlab.instruct.families import SEEN, draw, make
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

MADE = make(SEEN)
DOCUMENTS = ["def f(a):\n    return a\n", "", "one two three four five six seven eight nine ten"]


def rows(renderer, **settings) -> InstructionRows:
    return InstructionRows(renderer, MADE, seed=settings.pop("seed", 5), **settings)


def batches(renderer, **settings) -> InstructionBatches:
    text = TextRows(renderer.tokenizer, DOCUMENTS, seed=5, length=8)
    return InstructionBatches(rows(renderer, demonstration_share=0.5), text=text, text_rows=3, **settings)


def plain(made) -> list:
    return [(b.term, b.tokens_BT.tolist(), b.targets_BT.tolist(), b.mask_BT.tolist()) for b in made]


@settings(deadline=None, max_examples=20)
@given(steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_a_step_is_the_same_whatever_was_asked_before(renderer, steps) -> None:
    used = batches(renderer, rows=6, micro_tokens=128)
    for step in steps:
        assert plain(used(step)) == plain(batches(renderer, rows=6, micro_tokens=128)(step))


def test_steps_and_seeds_differ(renderer) -> None:
    source = batches(renderer, rows=6, micro_tokens=128)
    assert plain(source(0)) != plain(source(1))
    assert rows(renderer, seed=1).row(0) != rows(renderer, seed=2).row(0)


@settings(deadline=None)
@given(number=st.integers(0, 10**9), share=st.sampled_from([0.0, 1.0]))
def test_answers_and_their_ends_are_what_is_learnt(renderer, number, share) -> None:
    tokenizer = renderer.tokenizer
    ids, mask = rows(renderer, demonstration_share=share).row(number)
    assert len(ids) == len(mask) <= 256
    turns = tokenizer.decode(ids, skip_special=False).split("<|assistant|>\n")[1:]
    answers = [turn.split("<|end|>")[0] + "<|end|>" for turn in turns]
    assert tokenizer.decode([i for i, m in zip(ids, mask) if m], skip_special=False) == "".join(answers)
    assert sum(m for i, m in zip(ids, mask) if i == tokenizer.end_of_turn_id) == len(answers)
    assert not any(m for i, m in zip(ids, mask) if i == tokenizer.token_id("<|user|>"))


def test_targets_are_the_next_tokens_and_padding_is_never_one(renderer) -> None:
    source = batches(renderer, rows=6, micro_tokens=9999)
    answers, text = source(3)
    wanted = {
        ANSWERS: [source.instructions.row(i) for i in range(18, 24)],
        TEXT: [source.text.row(i) for i in range(9, 12)],
    }
    for batch in (answers, text):
        assert batch.tokens_BT.shape[1] % 8 == 0
        for row, (ids, mask) in enumerate(sorted(wanted[batch.term], key=lambda each: -len(each[0]))):
            n = len(ids) - 1
            assert batch.tokens_BT[row, :n].tolist() == ids[:-1]
            assert batch.targets_BT[row, :n].tolist() == ids[1:]
            assert batch.mask_BT[row, :n].tolist() == mask[1:]
            assert not batch.mask_BT[row, n:].any()
            assert batch.mask_BT[row].any()


@settings(deadline=None, max_examples=20)
@given(positions=st.integers(1, 2000), step=st.integers(0, 1000))
def test_rows_of_like_length_stand_together(renderer, positions, step) -> None:
    made = [batch for batch in batches(renderer, rows=10, micro_tokens=positions)(step) if batch.term == ANSWERS]
    shapes = [batch.tokens_BT.shape for batch in made]
    assert sum(shape[0] for shape in shapes) == 10
    assert all(shape.numel() <= positions or shape[0] == 1 for shape in shapes)
    widths = [shape[1] for shape in shapes]
    assert widths == sorted(widths, reverse=True)
    assert all(width % 8 == 0 for width in widths)
    whole = next(b for b in batches(renderer, rows=10, micro_tokens=10**6)(step) if b.term == ANSWERS)
    learnt = [target for batch in made for target in batch.targets_BT[batch.mask_BT].tolist()]
    assert learnt == whole.targets_BT[whole.mask_BT].tolist()


def test_a_limited_number_of_examples_comes_again(renderer) -> None:
    few = rows(renderer, examples=3)
    assert [few.row(i) for i in range(3)] == [few.row(i) for i in range(3, 6)]
    assert few.row(0) != few.row(1)


def test_families_are_mixed_by_weight(renderer) -> None:
    weighted = rows(renderer, weights={name: 0.0 for name in SEEN if name not in ("copy", "count")} | {"copy": 3.0})
    texts = [renderer.tokenizer.decode(weighted.row(i)[0]) for i in range(200)]
    counting = sum("ount" in text.split(":")[0] or "umber of" in text or "many" in text for text in texts)
    assert 30 <= counting <= 70


def test_long_rows_lose_demonstrations_before_items(renderer) -> None:
    whole = [rows(renderer, demonstration_share=1.0, max_length=1000).row(i) for i in range(60)]
    short = [rows(renderer, demonstration_share=1.0, max_length=90).row(i) for i in range(60)]
    assert max(len(ids) for ids, _ in whole) > 90 >= max(len(ids) for ids, _ in short)
    for (ids, _), (cut, _) in zip(whole, short, strict=True):
        assert cut == ids or len(cut) <= 90 < len(ids)
    with pytest.raises(Refused, match=r"sft\.max_length 5: no item of family"):
        rows(renderer, max_length=5).row(0)


@settings(deadline=None)
@given(number=st.integers(0, 10**9))
def test_text_rows_are_windows_of_documents(renderer, number) -> None:
    tokenizer = renderer.tokenizer
    ids, mask = TextRows(tokenizer, DOCUMENTS, seed=1, length=8).row(number)
    assert 2 <= len(ids) == len(mask) <= 8
    assert mask == [False] + [True] * (len(ids) - 1)
    start = ids[0] == tokenizer.eos_id
    text = tokenizer.decode(ids)
    assert any(document.startswith(text) if start else text in document for document in DOCUMENTS)


def test_no_text_is_refused(renderer) -> None:
    with pytest.raises(Refused, match="has no training document"):
        TextRows(renderer.tokenizer, [""], seed=0, length=8)


def test_each_term_is_counted_and_summed_by_itself(renderer) -> None:
    torch.manual_seed(0)
    network = Transformer(
        ModelConfig(layers=1, d_model=16, heads=2, vocab_size=renderer.tokenizer.vocab_size, context_length=256)
    )
    objective = InstructionObjective(text_weight=0.5)
    assert objective.weights == {ANSWERS: 1.0, TEXT: 0.5}
    for batch in batches(renderer, rows=6, micro_tokens=9999)(0):
        output = network(**objective.inputs(batch))
        logprobs = output.logits().log_softmax(-1).gather(2, batch.targets_BT[..., None])[..., 0]
        assert objective.count(batch) == {batch.term: int(batch.mask_BT.sum())}
        loss = objective.loss(output, batch)
        assert list(loss) == [batch.term]
        assert torch.allclose(loss[batch.term], -(logprobs * batch.mask_BT).sum(), rtol=1e-4)


def test_no_training_row_asks_what_a_test_item_asks(renderer) -> None:
    tested = {draw(family, "test", 0, i).prompt for family in MADE.values() for i in range(100)}
    source = rows(renderer, demonstration_share=0.5)
    for i in range(200):
        text = renderer.tokenizer.decode(source.row(i)[0], skip_special=False)
        asked = [turn.split("<|end|>")[0] for turn in text.split("<|user|>\n")[1:]]
        assert not tested & {part for turn in asked for part in (turn, *turn.split("\n\n"))}
