"""Beam search and contrastive search are their definitions, written here without a cache."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.generate.engine import Beam, Contrastive, Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

V, END = 7, 3


def lively(seed: int = 0, **more) -> Transformer:
    shape = {"layers": 2, "d_model": 16, "heads": 2, "vocab_size": V, "context_length": 24}
    model = Transformer(ModelConfig(**{**shape, **more})).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module", params=["rope", "alibi"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return lively(position=request.param)


@functools.cache
def logprobs_of(model: Transformer, sequence: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        return model(torch.tensor([sequence])).logits()[0, -1].log_softmax(-1).tolist()


def logprobs_after(model: Transformer, prompt: list[int], ids: tuple[int, ...]) -> list[float]:
    return logprobs_of(model, (*prompt, *ids))


def score_of(model: Transformer, prompt: list[int], ids: tuple[int, ...], penalty: float) -> float:
    total = sum(logprobs_after(model, prompt, ids[:place])[token] for place, token in enumerate(ids))
    return total / len(ids) ** penalty


@settings(max_examples=8, deadline=None)
@given(prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=5), penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all(
    model: Transformer, prompt: list[int], penalty: float
) -> None:
    length = 3
    # 49 beams hold every beginning of two tokens, so that nothing is cut.
    others = [token for token in range(V) if token != END]
    every = [(*head, END) for n in range(length) for head in itertools.product(others, repeat=n)]
    every += list(itertools.product(others, repeat=length))
    ranked = sorted(((score_of(model, prompt, ids, penalty), ids) for ids in every), reverse=True)[:4]
    beam = Beam(beams=7**2, max_new_tokens=length, length_penalty=penalty, n_best=4, stop_ids=(END,))
    (found,) = Engine(model).beam_search([prompt], beam)
    assert [each.score for each in found] == pytest.approx([score for score, _ in ranked], abs=1e-4)
    for each in found:
        ids = tuple(each.completion.ids)
        assert each.score == pytest.approx(score_of(model, prompt, ids, penalty), abs=1e-4)
        assert each.completion.finish_reason == ("stop" if ids[-1] == END else "length")


def plain_beams(model: Transformer, prompt: list[int], beam: Beam) -> list[tuple[float, tuple[int, ...]]]:
    """The definition: the best `beams` unfinished go on, those among the best `beams` that end are set aside."""
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, beam.max_new_tokens + 1):
        grown = [
            (total + logprob, (*ids, token))
            for total, ids in alive
            for token, logprob in enumerate(logprobs_after(model, prompt, ids))
        ]
        grown.sort(reverse=True)
        ended += [(t / length**beam.length_penalty, ids) for t, ids in grown[: beam.beams] if ids[-1] == END]
        alive = [(t, ids) for t, ids in grown if ids[-1] != END][: beam.beams]
        if beam.early_stopping and len(ended) >= beam.beams:
            return sorted(ended, reverse=True)[: beam.n_best]
    ended += [(t / beam.max_new_tokens**beam.length_penalty, ids) for t, ids in alive]
    return sorted(ended, reverse=True)[: beam.n_best]


@settings(max_examples=20, deadline=None)
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=5),
    beams=st.integers(1, 4),
    penalty=st.sampled_from([-0.5, 0.0, 0.7, 1.0, 2.0]),
    early=st.booleans(),
)
@example(prompt=[2, 3, 3, 3], beams=2, penalty=-0.5, early=True)  # the last of `beams` ends with the last token allowed
def test_beams_are_the_definition_s(
    model: Transformer, prompt: list[int], beams: int, penalty: float, early: bool
) -> None:
    beam = Beam(beams, 8, penalty, n_best=beams, early_stopping=early, stop_ids=(END,))
    (found,) = Engine(model).beam_search([prompt], beam)
    wanted = plain_beams(model, prompt, beam)
    assert [each.score for each in found] == pytest.approx([score for score, _ in wanted], abs=1e-4)


@pytest.mark.parametrize("architecture", ["prefix-decoder", "encoder-decoder"])
def test_one_beam_is_greedy_whatever_the_architecture(architecture: str) -> None:
    engine = Engine(lively(architecture=architecture, vocab_size=30), decoder_start_id=0, stop_ids=[END])
    prompts = [[1, 2, 5], [4]]
    greedy = engine.generate(prompts, Sampling(9))
    found = engine.beam_search(prompts, Beam(beams=1, max_new_tokens=9))
    assert [each[0].completion.ids for each in found] == [answer.ids for answer in greedy]
    assert [a.ids for a in engine.contrastive_search(prompts, Contrastive(5, 0.0, 9))] == [a.ids for a in greedy]


@settings(max_examples=15, deadline=None)
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=5),
    top_k=st.integers(1, V),
    alpha=st.sampled_from([0.2, 0.6, 0.9, 1.0]),
)
def test_contrastive_search_is_the_definition(model: Transformer, prompt: list[int], top_k: int, alpha: float) -> None:
    answer = Engine(model).contrastive_search([prompt], Contrastive(top_k, alpha, 6, stop_ids=()))[0]
    assert len(answer.ids) == 6
    sequence = list(prompt)
    for token in answer.ids:
        logprobs = logprobs_after(model, sequence, ())
        scores = {}
        for candidate in sorted(range(V), key=lambda v: -logprobs[v])[:top_k]:
            with torch.inference_mode():
                hidden = model(torch.tensor([[*sequence, candidate]])).hidden_BTD[0]
            near = torch.cosine_similarity(hidden[-1:], hidden[:-1], dim=-1).max()
            scores[candidate] = (1 - alpha) * math.exp(logprobs[candidate]) - alpha * float(near)
        assert token in scores and scores[token] == pytest.approx(max(scores.values()), abs=1e-4)
        sequence.append(token)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(Refused, match="n_best is 5; expected 1 to the 2 beams"):
        Beam(2, n_best=5)
    with pytest.raises(Refused, match="0 beams"):
        Beam(0)
    with pytest.raises(Refused, match="alpha is 2"):
        Contrastive(alpha=2)
    with pytest.raises(Refused, match="top_k 0"):
        Contrastive(top_k=0)
