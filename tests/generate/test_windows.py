"""Local layers keep their window alone: the same answers, to the last bit, as with every position kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.generate import batching, search
from lmlab.generate.attend import CHUNK
from lmlab.generate.cache import Cache
from lmlab.generate.engine import Beam, Contrastive, Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.count import memory
from lmlab.model.transformer import Transformer

CPU, VOCABULARY, CONTEXT = torch.device("cpu"), 37, 220
PATTERNS = [
    "local(1)",
    "local(3)",
    "local(70)",
    ("full", "local(5)"),
    ("local(4)", "local(9)", "full"),
    ("strided(4)", "local(6)"),
]


def config_of(attention, layers: int = 2, **more) -> ModelConfig:
    shape = {
        "layers": layers,
        "d_model": 16,
        "heads": 2,
        "d_ff": 24,
        "vocab_size": VOCABULARY,
        "context_length": CONTEXT,
    }
    return ModelConfig.model_validate({**shape, "attention": attention, **more})


def shaken(config: ModelConfig, seed: int) -> Transformer:
    model = Transformer(config).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@contextlib.contextmanager
def every_position_kept() -> Iterator[None]:
    def whole(config: ModelConfig, rows: int, size: int, device: torch.device, *_: object) -> Cache:
        return Cache(config, rows, size, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "Cache", whole)
        patch.setattr(search, "Cache", whole)
        yield


@st.composite
def several(draw: st.DrawFn) -> list[tuple[list[int], Sampling]]:
    """Requests of which some share a beginning or all of their prompt, with answers of different lengths."""
    token = st.integers(0, VOCABULARY - 1)
    start = draw(st.lists(token, min_size=60, max_size=140))
    found = []
    for seed in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["alike", "own", "same"]))
        own = draw(st.lists(token, min_size=1, max_size=12))
        prompt = own if kind == "own" else start + (own if kind == "alike" else [1])
        drawn = draw(st.booleans())
        found.append((prompt, Sampling(draw(st.integers(1, 14)), temperature=1.0 if drawn else 0.0, seed=seed)))
    return found


@settings(max_examples=10, deadline=None)
@given(
    attention=st.sampled_from(PATTERNS),
    position=st.sampled_from(["rope", "alibi", "learned", "transformer-xl"]),
    architecture=st.sampled_from(["causal-decoder", "prefix-decoder"]),
    requests=several(),
    shared=st.booleans(),
)
def test_requests_that_join_leave_and_share_answer_alike(attention, position, architecture, requests, shared) -> None:
    model = shaken(config_of(attention, position=position, architecture=architecture), 1)
    prompts, samplings = [prompt for prompt, _ in requests], [sampling for _, sampling in requests]

    def answers() -> tuple[list, int, int]:
        engine = Engine(model, max_batch=2, prefix_cache_bytes=1 << 20 if shared else 0)
        found = engine.generate(prompts, samplings)
        again = engine.generate(prompts[::-1], samplings[::-1])[::-1]
        assert [each.ids for each in again] == [each.ids for each in found]
        return [(each.ids, each.logprobs) for each in found], engine.cache_bytes, engine.prefilled_tokens

    windowed, small, computed = answers()
    with every_position_kept():
        whole, large, as_much = answers()
    assert windowed == whole and computed == as_much and small <= large


@settings(max_examples=6, deadline=None)
@given(
    attention=st.sampled_from(PATTERNS),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=90),
    tokens=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_what_was_speculated_can_be_taken_back(attention, prompt, tokens, temperature) -> None:
    target, draft = shaken(config_of(attention), 1), shaken(config_of(attention, layers=1), 2)
    sampling = Sampling(12, temperature=temperature, seed=3)

    def answer() -> tuple[list[int], int]:
        found, tally = Engine(target).speculate([prompt], Engine(draft), sampling, tokens=tokens)
        return found[0].ids, tally.accepted

    windowed = answer()
    with every_position_kept():
        assert answer() == windowed
    if temperature == 0:
        assert windowed[0] == Engine(target).generate([prompt], sampling)[0].ids


@pytest.mark.parametrize("attention", PATTERNS)
def test_beams_and_contrastive_search(attention) -> None:
    engine = Engine(shaken(config_of(attention), 4))
    prompt = list(range(30))

    def answers() -> list:
        beams = engine.beam_search([prompt], Beam(4, 20, n_best=4))[0]
        other = engine.contrastive_search([prompt], Contrastive(max_new_tokens=20))[0]
        return [[each.completion.ids for each in beams], [each.score for each in beams], other.ids]

    windowed = answers()
    with every_position_kept():
        assert answers() == windowed


@pytest.mark.parametrize("attention", ["full", *PATTERNS])
@pytest.mark.parametrize("length", [2, 8, 100])
def test_the_bytes_that_model_show_prints_are_the_cache_s(attention, length: int) -> None:
    config = config_of(attention, kv_heads=1)
    cache = Cache(config, 5, length, CPU, 0)
    assert cache.bytes == memory(config, 5, length)["kv_cache"]
    local = [config.pattern(layer).numbers[0] for layer in range(2) if config.pattern(layer).kind == "local"]
    assert cache.is_windowed == any(window < length for window in local)


def test_a_window_s_memory_does_not_grow_with_the_answer() -> None:
    engine = Engine(shaken(config_of("local(8)"), 1), max_batch=1)
    sizes = []
    for length in (10, 100, 200):
        engine.generate([[1, 2, 3]], Sampling(length))
        sizes.append(engine.cache_bytes)
    assert sizes[0] == sizes[1] == sizes[2] == 2 * 2 * 2 * 8 * 8 * 4


def test_beginnings_are_shared_all_the_same() -> None:
    engine = Engine(shaken(config_of(("local(8)", "full")), 1), max_batch=4)
    start = list(np.arange(2 * CHUNK) % VOCABULARY)
    engine.generate([[*start, 1], [*start, 2]], Sampling(4))
    assert engine.prefilled_tokens == 2 * CHUNK + 2


def test_without_compiled_loops_a_window_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator computes with."""
    model = shaken(config_of(("local(5)", "full", "local(2)")), 1)
    prompt = list(range(20))
    expected = Engine(model).generate([prompt], Sampling(30))[0]

    def bare(*args, **more) -> Cache:
        made = Cache(*args, **more)
        made.arrays = []
        return made

    monkeypatch.setattr(batching, "Cache", bare)
    found = Engine(model).generate([prompt], Sampling(30))[0]
    assert found.ids == expected.ids
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
