"""Experts with room for so many tokens of a sequence: the engine's scores are the module's forward, whoever shares a pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.generate.decoders import decoder_for
from lmlab.generate.engine import Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.settings import MoEConfig
from lmlab.model.transformer import Transformer

VOCABULARY, START = 23, 1


def switch(architecture: str, capacity: int | None, seed: int, **more: object) -> Transformer:
    moe = {"experts": 3, "top_k": 1, "normalise": "all", "sequence_capacity": capacity, **more}
    shape = {"layers": 2, "d_model": 16, "heads": 2, "vocab_size": VOCABULARY, "context_length": 160, "moe": moe}
    model = Transformer(ModelConfig.model_validate(shape | {"architecture": architecture})).initialise(seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4 if weight.dim() > 1 else 1
    return model


@torch.inference_mode()
def logprob(model: Transformer, context: list[int], piece: list[int]) -> float:
    config = model.config
    if config.has_encoder:
        tokens, more = [START, *piece[:-1]], {"encoder_tokens_BS": torch.tensor([context])}
    else:
        tokens = [*context, *piece[:-1]]
        more = {"prefix_B": torch.tensor([len(context)])} if config.architecture == "prefix-decoder" else {}
    logits = model(torch.tensor([tokens]), **more).logits()[0, -len(piece) :]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(piece)[:, None]).sum())


IDS = st.integers(2, VOCABULARY - 1)


@settings(max_examples=40, deadline=None)
@given(
    architecture=st.sampled_from(["causal-decoder", "prefix-decoder", "encoder-decoder"]),
    contexts=st.lists(st.lists(IDS, min_size=1, max_size=20), min_size=1, max_size=3),
    pieces=st.lists(st.lists(IDS, min_size=1, max_size=6), min_size=1, max_size=4),
    capacity=st.integers(1, 6),
    seed=st.integers(0, 20),
)
def test_scores_are_the_module_s(
    architecture: str, contexts: list[list[int]], pieces: list[list[int]], capacity: int, seed: int
) -> None:
    """Continuations of one context share a pass, and none takes a place that another would have had."""
    model = switch(architecture, capacity, seed)
    engine = Engine(model, start_id=0, decoder_start_id=START)
    pairs = [(context, piece) for context in contexts for piece in pieces]
    for (context, piece), found in zip(pairs, engine.score(pairs), strict=True):
        assert found.logprob == pytest.approx(logprob(model, context, piece), abs=1e-4 * len(piece))


def test_the_limit_is_felt_and_long_beginnings_are_counted() -> None:
    """70 tokens in common, more than a block that is else computed once."""
    ids = np.random.default_rng(0).integers(2, VOCABULARY, 70).tolist()
    pairs = [([*ids, 3, 4], [5, 6]), ([*ids, 7], [8])]
    tight, loose = (Engine(switch("causal-decoder", room, 0), start_id=0).score(pairs) for room in (4, None))
    wanted = [logprob(switch("causal-decoder", 4, 0), *pair) for pair in pairs]
    assert [each.logprob for each in tight] == pytest.approx(wanted, abs=1e-4)
    assert abs(tight[0].logprob - loose[0].logprob) > 1e-3


@pytest.mark.parametrize("architecture", ["causal-decoder", "encoder-decoder"])
def test_a_decoded_token_is_never_dropped(architecture: str) -> None:
    """The prompt is read with the limit; what follows it is alone in its step, as in decoding elsewhere. Alone or in
    company, and with a draft model, the text is the same."""
    model = switch(architecture, 2, 3)
    engine = Engine(model, start_id=0, decoder_start_id=START, stop_ids=[])
    prompts = [np.random.default_rng(seed).integers(2, VOCABULARY, 9 + 66 * (seed % 2)).tolist() for seed in range(4)]
    found = engine.generate(prompts, Sampling(8))
    alone = [
        Engine(model, decoder_start_id=START, stop_ids=[], max_batch=1).generate([p], Sampling(8))[0] for p in prompts
    ]
    assert [each.ids for each in found] == [each.ids for each in alone]
    assert [each.logprobs for each in found] == [each.logprobs for each in alone]
    draft = Engine(switch(architecture, None, 3), decoder_start_id=START)
    assert [each.ids for each in engine.speculate(prompts, draft, Sampling(8))[0]] == [each.ids for each in found]
    with torch.inference_mode():
        first = engine.generate(prompts, replace(Sampling(1), top_logprobs=1))
        for prompt, each in zip(prompts, first):
            assert each.logprobs[0] == pytest.approx(logprob(model, prompt, each.ids), abs=1e-4)


def test_second_choices_are_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match="depends on later tokens"):
        decoder_for(switch("causal-decoder", 4, 0, top_k=2))
    assert MoEConfig(experts=2, sequence_capacity=4).sequence_capacity == 4
