"""The compiled step: the same answers, and nothing is compiled again from token to token."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lmlab.errors import Refused
from lmlab.generate import decoders
from lmlab.generate.compiled import CompiledDecoder
from lmlab.generate.engine import Beam, Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

VOCABULARY, CONTEXT = 37, 100
CONFIGS: list[dict] = [
    {},
    {"kv_heads": 1, "attention": ("full", "local(5)"), "qk_norm": True, "norm_placement": "sandwich"},
    {"position": "alibi", "norm": "layernorm", "norm_placement": "parallel", "bias": True, "attention": ("strided(4)", "local(3)")},
    {"position": "transformer-xl", "architecture": "prefix-decoder", "norm_placement": "post"},
    {"position": "relative-bias", "embedding_dim": 10, "embedding_scale": 3.0, "norm_placement": "reordered"},
    {"position": "learned", "position_offset": 2, "attention_softcap": 2.0, "embedding_norm": True, "norm_placement": "deepnorm"},
]  # fmt: skip


def model_of(**more) -> Transformer:
    shape = {"layers": 2, "d_model": 16, "heads": 2, "d_ff": 24, "vocab_size": VOCABULARY, "context_length": CONTEXT}
    model = Transformer(ModelConfig.model_validate({**shape, **more})).initialise(1).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


PROMPTS = [[1, 2, 3], [4] * 12, [5, 6], [7]]
SAMPLINGS = [Sampling(20), Sampling(6), Sampling(15, temperature=1.0, seed=4), Sampling(9)]


def answers(engine: Engine, prompts: Sequence[list[int]] = PROMPTS) -> list:
    return engine.generate(prompts, SAMPLINGS[: len(prompts)])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Traced as for any compiler, and run as traced: it needs none."""
    counter = CompileCounter()
    monkeypatch.setattr(decoders, "CompiledDecoder", lambda model, bits: CompiledDecoder(model, bits, backend=counter))
    torch._dynamo.reset()
    return counter


@pytest.mark.parametrize("more", CONFIGS)
def test_the_same_answers_with_requests_that_join_and_leave(more: dict, counted: CompileCounter) -> None:
    model = model_of(**more)
    for found, expected in zip(answers(Engine(model, max_batch=2, compile=True)), answers(Engine(model, max_batch=2))):
        assert found.ids == expected.ids
        torch.testing.assert_close(torch.tensor(found.logprobs), torch.tensor(expected.logprobs), atol=1e-4, rtol=1e-4)
    assert counted.frame_count == 1


def test_nothing_is_compiled_again_while_decoding(counted: CompileCounter) -> None:
    engine = Engine(model_of(), max_batch=4, compile=True)
    counts = []
    stream = engine.stream([1, 2, 3], Sampling(50))
    for _ in range(50):
        next(stream)
        counts.append(counted.frame_count)
    stream.close()
    assert counts[1:] == [1] * 49
    answers(engine)  # four rows: one more shape, once
    assert counted.frame_count == 2
    answers(engine)
    engine.generate([[1] * 70], Sampling(25))  # past 64 slots
    assert counted.frame_count == 3
    engine.model.initialise(9)
    engine.refresh()
    assert answers(engine)[0].ids == answers(Engine(engine.model, max_batch=4))[0].ids
    assert counted.frame_count == 3


def test_searches_are_computed_without(counted: CompileCounter) -> None:
    model = model_of()
    found, expected = (Engine(model, compile=each).beam_search([[1, 2]], Beam(3, 8))[0][0] for each in (True, False))
    assert found.completion.ids == expected.completion.ids and counted.frame_count == 0


@pytest.mark.parametrize(
    ("more", "precision", "said"),
    [
        ({"architecture": "encoder-decoder"}, "float32", "sources differ in length"),
        ({"moe": {"experts": 2}}, "float32", "experts"),
        ({}, "int8", "int8, whose kernels are compiled already"),
    ],
)
def test_what_has_no_fixed_shape_is_refused(more: dict, precision, said: str) -> None:
    with pytest.raises(Refused, match=said):
        Engine(model_of(**more), compile=True, precision=precision)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Refused, match=r"needs a C\+\+ compiler"):
        Engine(model_of(), compile=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
@pytest.mark.parametrize(("more", "precision"), [(CONFIGS[1], "float32"), (CONFIGS[0], "bfloat16")])
def test_compiled_for_this_processor(more: dict, precision) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = model_of(**more)
    engine = Engine(model, max_batch=4, precision=precision, compile=True)
    found = answers(engine)
    made = counters["stats"]["unique_graphs"]
    assert made == 1
    again = answers(engine)
    assert counters["stats"]["unique_graphs"] == made and [a.ids for a in again] == [a.ids for a in found]
    expected = answers(Engine(model, max_batch=4, precision=precision))
    if precision == "float32":
        assert [each.ids for each in found] == [each.ids for each in expected]
    # bfloat16 rounds in another order here: the first token's log-probability is compared, of equal prompts.
    for a, b in zip(found, expected):
        assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.05)
