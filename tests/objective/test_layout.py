"""Packed examples of any architecture score as each does alone, and as the engine scores it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.generate.engine import Engine
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.example import Example
from lmlab.objective.language_model import LanguageModel
from lmlab.objective.layout import Layout
from lmlab.train.heldout import score_examples
from lmlab.train.step import accumulate, make_forward

ARCHITECTURES = ("causal-decoder", "prefix-decoder", "encoder-decoder")
VOCABULARY, CONTEXT, START = 40, 24, 1


def layout_of(architecture) -> Layout:
    return Layout(architecture, CONTEXT, CONTEXT if architecture == "encoder-decoder" else 0, START, 0)


def model_of(architecture: str, **parts) -> Transformer:
    shape = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": VOCABULARY, "context_length": CONTEXT}
    model = Transformer(ModelConfig.model_validate(shape | parts | {"architecture": architecture})).initialise(0).eval()
    with torch.no_grad():
        model.embedding.weight *= 30
    return model


MODELS = {architecture: model_of(architecture) for architecture in ARCHITECTURES}
ids = lambda least: st.lists(st.integers(2, VOCABULARY - 1), min_size=least, max_size=10).map(np.array)  # noqa: E731
examples = st.lists(st.builds(Example, ids(1), ids(1)), min_size=1, max_size=7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=25, deadline=None)
@given(drawn=examples)
def test_packed_examples_score_as_the_engine_scores_pairs(architecture: str, drawn: list[Example]) -> None:
    model = MODELS[architecture]
    engine = Engine(model, start_id=0, decoder_start_id=START)
    found = score_examples(model, drawn, layout_of(architecture))
    wanted = engine.score([(e.source.tolist(), e.target.tolist()) for e in drawn])
    assert found == pytest.approx([-each.logprob for each in wanted], abs=2e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(drawn=examples, given_=st.integers(0, 9))
def test_the_loss_is_that_of_the_target_after_what_is_given(
    architecture: str, drawn: list[Example], given_: int
) -> None:
    drawn = [Example(e.source, e.target, min(given_, len(e.target) - 1)) for e in drawn]
    model, objective = MODELS[architecture], LanguageModel()
    batch, _ = layout_of(architecture).batch(drawn, multiple=2)
    assert len(batch.tokens_BT) % 2 == 0
    learnt = sum(len(e.target) - e.given for e in drawn)
    assert objective.count(batch) == {"lm": learnt}
    found = accumulate(make_forward(model, objective, False), objective, [batch], "float32")
    model.zero_grad()
    engine = Engine(model, start_id=0, decoder_start_id=START)
    pairs = [(e.source.tolist(), e.target.tolist()) for e in drawn]
    shown = [(e.source.tolist(), e.target[: e.given].tolist()) for e in drawn]
    nats = sum(b.logprob - a.logprob for a, b in zip(engine.score(pairs), engine.score(shown)))
    assert found["loss"] == pytest.approx(nats / learnt, abs=1e-3)


def test_without_a_source_a_prefix_decoder_is_causal() -> None:
    target = np.arange(2, 14)
    example = Example(target[:0], target, given=4)
    found = [score_examples(MODELS[a], [example], layout_of(a))[0] for a in ARCHITECTURES[:2]]
    assert found[0] == pytest.approx(found[1], abs=1e-5) and math.isfinite(found[0])


def test_an_example_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        layout_of("causal-decoder").batch([Example(np.arange(20), np.arange(6))])
