"""Several prompts at once in every search: what each gives alone, and in fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Failed
from lmlab.generate.engine import Beam, Contrastive, Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

V = 11
KINDS: list[dict[str, Any]] = [
    {},
    {"position": "alibi", "attention": ("local(3)", "full")},
    {"architecture": "encoder-decoder", "position": "relative-bias"},
    {"architecture": "prefix-decoder"},
]


def lively(seed: int, **more: Any) -> Transformer:
    shape = {"layers": 2, "d_model": 16, "heads": 2, "vocab_size": V, "context_length": 40}
    model = Transformer(ModelConfig.model_validate({**shape, **more})).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


MODELS = [(lively(0, **kind), lively(1, **kind)) for kind in KINDS]
several = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=30), min_size=1, max_size=5)


@settings(max_examples=6, deadline=None)
@given(
    models=st.sampled_from(MODELS),
    prompts=several,
    rows=st.sampled_from([4, 9, 64]),
    penalty=st.sampled_from([0.0, 1.0]),
)
def test_beams(models, prompts, rows: int, penalty: float) -> None:
    beam = Beam(4, 9, penalty, n_best=3, stop_ids=(2, 3))
    engine = Engine(models[0], max_batch=rows, decoder_start_id=0)
    assert engine.beam_search(prompts, beam) == [engine.beam_search([prompt], beam)[0] for prompt in prompts]


@settings(max_examples=6, deadline=None)
@given(
    models=st.sampled_from(MODELS), prompts=several, rows=st.sampled_from([4, 9, 64]), alpha=st.sampled_from([0.0, 0.6])
)
def test_contrastive(models, prompts, rows: int, alpha: float) -> None:
    way = Contrastive(3, alpha, 9, stop_ids=(2, 3))
    engine = Engine(models[0], max_batch=rows, decoder_start_id=0)
    assert engine.contrastive_search(prompts, way) == [
        engine.contrastive_search([prompt], way)[0] for prompt in prompts
    ]


@settings(max_examples=6, deadline=None)
@given(
    models=st.sampled_from(MODELS),
    prompts=several,
    rows=st.sampled_from([1, 3, 64]),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_speculative(models, prompts, rows: int, temperature: float) -> None:
    target, draft = (Engine(model, max_batch=rows, decoder_start_id=0) for model in models)
    ways = [Sampling(9 + seed, temperature, seed=seed, stop_ids=(2,)) for seed in range(len(prompts))]
    together, tally = target.speculate(prompts, draft, ways, tokens=3)
    alone = [target.speculate([prompt], draft, way, tokens=3) for prompt, way in zip(prompts, ways)]
    assert [each.ids for each in together] == [found[0].ids for found, _ in alone]
    assert [each.logprobs for each in together] == [pytest.approx(found[0].logprobs, abs=1e-5) for found, _ in alone]
    for name in ("drafted", "accepted", "passes"):
        assert getattr(tally, name) == sum(getattr(each, name) for _, each in alone)


@pytest.mark.parametrize("search", ["beam_search", "contrastive_search", "generate"])
def test_prompts_share_passes(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(MODELS[0][0], max_batch=64)
    decoder, rows = engine._decoder("float32"), []
    step = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda tokens, *rest: (rows.append(len(tokens)), step(tokens, *rest))[1])
    settings_of = {
        "beam_search": Beam(4, 6),
        "contrastive_search": Contrastive(4, max_new_tokens=6),
        "generate": Sampling(6),
    }
    getattr(engine, search)([[1], [4, 5], [6]], settings_of[search])
    assert max(rows) == (3 if search == "generate" else 12) and len(rows) <= 6


@pytest.mark.parametrize("search", ["beam_search", "contrastive_search", "speculate"])
def test_logits_that_are_no_numbers_name_their_prompt(search: str) -> None:
    model = lively(5)
    with torch.no_grad():
        model.embedding.weight[7] = float("nan")
    engine = Engine(model)
    more = (Engine(lively(1)),) if search == "speculate" else ()
    with pytest.raises(Failed, match="prompt [01]: the logits of new token 0 are not numbers"):
        getattr(engine, search)([[1, 2], [7]], *more)
