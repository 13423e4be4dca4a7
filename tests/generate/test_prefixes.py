"""What prompts begin with in common is computed once, and changes nothing to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmlab.generate.attend import CHUNK
from lmlab.generate.cache import Cache
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.prefixes import Prefixes
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

CPU = torch.device("cpu")


def lively(**more) -> Transformer:
    config = ModelConfig(layers=2, d_model=32, heads=4, kv_heads=2, vocab_size=80, context_length=400, **more)
    model = Transformer(config).initialise(0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module", params=["rope", "alibi"])
def model(request: pytest.FixtureRequest) -> Transformer:
    """One for each decoder."""
    return lively(position=request.param)


def test_questions_after_one_block_of_demonstrations_prefill_it_once(model: Transformer) -> None:
    block = [(7 * i) % 50 for i in range(3 * CHUNK + 10)]
    prompts = [[*block, question, 1, 2] for question in range(9)]
    engine = Engine(model, max_batch=4)
    answers = engine.generate(prompts, Sampling(4))
    whole, rest = len(prompts[0]), len(prompts[0]) - 3 * CHUNK
    assert engine.prefilled_tokens == whole + 8 * rest
    engine.generate([[*block, 40]], Sampling(4))
    assert engine.prefilled_tokens == whole + 8 * rest + 11
    assert answers == Engine(model, max_batch=4, prefix_cache_bytes=0).generate(prompts, Sampling(4))


beginnings = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4).map(
    lambda blocks: [token for block in blocks for token in [block, *range(10, 9 + CHUNK)]]
)
prompts_of = st.lists(st.tuples(beginnings, st.lists(st.integers(0, 49), max_size=70)), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(parts=prompts_of, max_batch=st.integers(1, 4), blocks=st.integers(0, 5))
def test_sharing_changes_nothing_whatever_there_is_room_for(
    model: Transformer, parts: list[tuple[list[int], list[int]]], max_batch: int, blocks: int
) -> None:
    size = Cache(model.config, 1, CHUNK, CPU).bytes
    engine = Engine(model, max_batch=max_batch, prefix_cache_bytes=blocks * size)
    prompts = [[*before, *after] for before, after in parts]
    found = engine.generate(prompts, Sampling(3))
    alone = Engine(model, max_batch=1, prefix_cache_bytes=0)
    assert found == [alone.generate([prompt], Sampling(3))[0] for prompt in prompts]
    assert engine._scheduler.shared.bytes <= blocks * size


def test_the_budget_is_kept_and_the_beginning_of_a_prompt_goes_last(model: Transformer) -> None:
    cache = Cache(model.config, 1, 6 * CHUNK, CPU)
    kept = Prefixes(cache.row_bytes(3 * CHUNK))
    kept.keep(range(5 * CHUNK), cache, 0)
    assert kept.bytes == kept.budget
    assert len(kept.find(range(5 * CHUNK))) == 3
    kept.keep([1] * CHUNK, cache, 0)  # another prompt: one block has to go, the last of the first prompt
    assert len(kept.find(range(5 * CHUNK))) == 2
    assert len(kept.find([1] * CHUNK)) == 0  # a token must be left to compute
    assert len(kept.find([1] * (CHUNK + 1))) == 1


def test_new_weights_forget_what_was_kept(model: Transformer) -> None:
    engine = Engine(model)
    engine.generate([[5] * 200], Sampling(1))
    assert engine._scheduler.shared.bytes
    engine.refresh()
    assert engine._scheduler.shared.bytes == 0
    engine.generate([[5] * 200], Sampling(1))
    engine.free()
    assert engine._scheduler.shared.bytes == 0


def test_a_prefix_that_is_read_in_both_directions_is_not_shared() -> None:
    model = lively(architecture="prefix-decoder")
    engine = Engine(model)
    prompts = [[5] * 100 + [i] for i in range(3)]
    engine.generate(prompts, Sampling(1))
    assert engine.prefilled_tokens == 303


@settings(max_examples=25, deadline=None)
@given(parts=prompts_of, ends=st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=4), min_size=1, max_size=3))
def test_scores_behind_shared_demonstrations_are_what_each_is_alone(
    model: Transformer, parts: list[tuple[list[int], list[int]]], ends: list[list[int]]
) -> None:
    pairs = [([*before, *after], end) for before, after in parts for end in ends]
    engine = Engine(model)
    for pair, found in zip(pairs, engine.score(pairs)):
        assert found.logprob == pytest.approx(engine.score([pair])[0].logprob, abs=1e-5)


def test_scoring_questions_computes_their_demonstrations_once(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model)
    decoder = engine._decoder("float32")
    computed: list[int] = []
    real = decoder.prefill

    def counted(tokens, **more):
        computed.extend(len(each) for each in tokens)
        return real(tokens, **more)

    monkeypatch.setattr(decoder, "prefill", counted)
    block = [(7 * i) % 50 for i in range(2 * CHUNK)]
    engine.score([([*block, question, 3], [answer, 9]) for question in range(6) for answer in range(4)])
    assert sum(computed) == 2 * CHUNK + 6 * (2 + 4)
