"""Speculative decoding changes nothing: greedy ids are the same, and samples are distributed as the large model's."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.speculative import acceptance, distribution, draw, residual, verify
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

V = 6


def lively(seed: int, layers: int = 1, **more) -> Transformer:
    shape = {"layers": layers, "d_model": 16, "heads": 2, "vocab_size": V, "context_length": 40}
    model = Transformer(ModelConfig(**{**shape, **more})).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


distributions = st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0]) | st.floats(0, 1), min_size=V, max_size=V).map(
    lambda weights: np.array(weights) / sum(weights) if sum(weights) > 0 else np.full(V, 1 / V)
)


@given(p=distributions, q=distributions)
def test_the_rule_gives_the_large_model_s_distribution_exactly(p: np.ndarray, q: np.ndarray) -> None:
    """P(token) = q(token) accept(token) + P(some rejection) residual(token)."""
    accepted = q * acceptance(p, q)
    emitted = accepted + (1 - accepted.sum()) * residual(p, q)
    assert emitted == pytest.approx(p, abs=1e-12)


@given(p=distributions, q=distributions, r=distributions, seed=st.integers(0, 9999))
def test_verification_takes_the_first_rejection(p: np.ndarray, q: np.ndarray, r: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    proposed = [draw(q, random.random()), draw(q, random.random())]
    uniforms = random.random(4)
    count, after = verify(proposed, [q, q], [p, r, p], uniforms)
    kept = [u < acceptance(each, q)[token] for u, each, token in zip(uniforms, (p, r), proposed)]
    assert count == ([*kept, False].index(False))
    wanted = p if count == 2 else residual((p, r)[count], q)
    assert after == draw(wanted, uniforms[-1]) and wanted[after] > 0


@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=20), min_size=1, max_size=3),
    tokens=st.integers(1, 6),
    position=st.sampled_from(["rope", "alibi"]),
    penalty=st.sampled_from([1.0, 1.4]),
)
def test_greedy_answers_are_the_same(prompts: list[list[int]], tokens: int, position: str, penalty: float) -> None:
    large, small = Engine(lively(0, 2, position=position)), Engine(lively(1, position=position))
    sampling = Sampling(16, stop_ids=(2,), repetition_penalty=penalty)
    wanted = large.generate(prompts, sampling)
    found, tally = large.speculate(prompts, small, sampling, tokens=tokens)
    assert [each.ids for each in found] == [each.ids for each in wanted]
    for a, b in zip(found, wanted):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert a.finish_reason == b.finish_reason
    assert 0 <= tally.accepted <= tally.drafted


@pytest.mark.parametrize("architecture", ["prefix-decoder", "encoder-decoder"])
def test_greedy_answers_are_the_same_in_other_architectures(architecture: str) -> None:
    models = [lively(0, 2, architecture=architecture), lively(1, architecture=architecture)]
    large, small = (Engine(model, decoder_start_id=0) for model in models)
    wanted = large.generate([[1, 2, 5], [4]], Sampling(12))
    assert [a.ids for a in large.speculate([[1, 2, 5], [4]], small, Sampling(12))[0]] == [a.ids for a in wanted]


def test_a_model_that_drafts_for_itself_has_all_accepted() -> None:
    engine = Engine(lively(0, 2))
    for sampling in (Sampling(21), Sampling(21, temperature=1.0)):
        answers, tally = engine.speculate([[1, 2]], engine, sampling, tokens=4)
        assert len(answers[0].ids) == 21
        assert (tally.drafted, tally.acceptance, tally.passes) == (16, 1.0, 1 + 4)


@pytest.mark.parametrize("limits", [{}, {"top_k": 4, "top_p": 0.8}])
def test_samples_are_distributed_as_the_large_model_s(limits: dict) -> None:
    """Chi-square of the pairs (second, third token) over seeds against the exact probabilities."""
    large, small = Engine(lively(0, 2)), Engine(lively(3))
    n, settings_of = 700, [Sampling(3, 0.8, seed=seed, stop_ids=(), **limits) for seed in range(700)]
    answers, tally = large.speculate([[1, 4]] * n, small, settings_of, tokens=2)
    assert 0.05 < tally.acceptance < 0.95  # both ways are taken

    def law(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return distribution(large.model(torch.tensor([[1, 4, *ids]])).logits()[0, -1], settings_of[0])

    wanted = np.zeros((V, V))
    first = law([])
    for a in range(V):
        if first[a]:
            second = law([a])
            for b in range(V):
                wanted[b] += first[a] * second[b] * law([a, b]) if second[b] else 0
    seen = collections.Counter((answer.ids[1], answer.ids[2]) for answer in answers)
    possible = [(b, c) for b in range(V) for c in range(V) if wanted[b, c] * n >= 5]
    rest = n - sum(seen[pair] for pair in possible)
    rare = 1 - sum(wanted[pair] for pair in possible)
    square = sum((seen[pair] - n * wanted[pair]) ** 2 / (n * wanted[pair]) for pair in possible)
    square += (rest - n * rare) ** 2 / (n * rare) if rare * n >= 5 else 0
    degrees = len(possible)
    # Five standard deviations of chi-square: fails by chance in about one of a million, and the seeds are fixed.
    assert square < degrees + 5 * np.sqrt(2 * degrees)


def test_models_that_do_not_belong_together_are_refused() -> None:
    engine = Engine(lively(0))
    with pytest.raises(Refused, match="vocabularies of 6 and 9 tokens"):
        engine.speculate([[1]], Engine(lively(0, vocab_size=9)))
    with pytest.raises(Refused, match="tokens is 0"):
        engine.speculate([[1]], engine, tokens=0)
    with pytest.raises(Refused, match="draft model: prompt 0: has 30 tokens"):
        engine.speculate([[1] * 30], Engine(lively(0, context_length=20)))
