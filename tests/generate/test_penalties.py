"""Penalties, min-p, the likeliest tokens beside the chosen one, and prompts that are too long."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmlab.errors import Refused
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.sampling import kept_tokens, penalise
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

PENALTIES = [{"repetition_penalty": 1.5}, {"frequency_penalty": 2.0}, {"presence_penalty": 3.0}]


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(layers=1, d_model=32, heads=4, vocab_size=60, context_length=40)
    made = Transformer(config).initialise(0).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return made


@given(
    logits=st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6),
    prompt=st.lists(st.integers(0, 5), max_size=5),
    answer=st.lists(st.integers(0, 5), max_size=9),
    repetition=st.floats(0.5, 3),
    frequency=st.floats(-1, 1),
    presence=st.floats(-1, 1),
)
def test_penalties_are_their_formulas(
    logits: list[float], prompt: list[int], answer: list[int], repetition: float, frequency: float, presence: float
) -> None:
    sampling = Sampling(repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence)
    found = penalise(torch.tensor(logits), sampling, prompt, answer)
    for token, logit in enumerate(logits):
        wanted = logit
        if token in (*prompt, *answer):
            wanted = logit / repetition if logit > 0 else logit * repetition
        wanted -= answer.count(token) * frequency + (token in answer) * presence
        assert float(found[token]) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_penalised_answer_is_the_loop_of_the_definition(model: Transformer, penalty: dict[str, float]) -> None:
    sampling = Sampling(20, **penalty)  # type: ignore[arg-type]
    prompt, ids = [3, 4, 3], []
    for _ in range(20):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]])).logits()[0, -1]
        ids.append(int(penalise(logits, sampling, prompt, ids).argmax()))
    engine = Engine(model)
    assert engine.generate([prompt], sampling)[0].ids == ids
    assert engine.generate([prompt], Sampling(20))[0].ids != ids
    # The log-probability is the model's own, which the penalty does not change.
    found = engine.generate([prompt, [9]], [sampling, Sampling(5)])
    assert sum(found[0].logprobs) == pytest.approx(engine.score([(prompt, ids)])[0].logprob, abs=1e-4)
    assert found[1] == engine.generate([[9]], Sampling(5))[0]


@given(seed=st.integers(0, 999), size=st.integers(1, 900), spread=st.sampled_from([0.1, 2.0]), min_p=st.floats(0, 1))
def test_min_p_keeps_those_likely_enough_beside_the_likeliest(
    seed: int, size: int, spread: float, min_p: float
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    probabilities = logits.softmax(-1).numpy()
    ids, masses = kept_tokens(probabilities, Sampling(temperature=1.0, min_p=min_p))
    wanted = {i for i, p in enumerate(probabilities) if float(p) >= min_p * float(probabilities.max())}
    assert set(ids.tolist()) == wanted
    assert masses.tolist() == sorted(masses.tolist(), reverse=True)


def test_the_likeliest_tokens_are_told_with_their_log_probabilities(model: Transformer) -> None:
    engine = Engine(model)
    answer = engine.generate([[3, 4]], Sampling(6, temperature=0.7, seed=3, top_logprobs=4))[0]
    assert answer.top_logprobs is not None and len(answer.top_logprobs) == len(answer.ids)
    for place, top in enumerate(answer.top_logprobs):
        with torch.inference_mode():
            logits = model(torch.tensor([[3, 4, *answer.ids[:place]]])).logits()[0, -1]
        logprobs = (logits / 0.7).log_softmax(-1)
        assert [i for i, _ in top] == logprobs.topk(4).indices.tolist()
        assert [value for _, value in top] == pytest.approx(logprobs.topk(4).values.tolist(), abs=1e-4)
        assert answer.logprobs[place] == pytest.approx(float(logprobs[answer.ids[place]]), abs=1e-4)
    assert engine.generate([[3, 4]], Sampling(2))[0].top_logprobs is None


def test_a_long_prompt_is_cut_only_as_asked(model: Transformer) -> None:
    engine = Engine(model)
    prompt = [i % 60 for i in range(70)]
    with pytest.raises(Refused, match="prompt 0: has 70 tokens, and the model's context is 40"):
        engine.generate([prompt], Sampling(6))
    left = engine.generate([prompt], Sampling(6, truncate="left"))[0]
    assert left == engine.generate([prompt[-34:]], Sampling(6))[0]
    right = engine.generate([prompt], Sampling(6, truncate="right"))[0]
    assert right == engine.generate([prompt[:34]], Sampling(6))[0]
    fits = engine.generate([prompt[:38]], Sampling(6, truncate="left"))[0]
    assert fits == engine.generate([prompt[:38]], Sampling(6))[0]
    assert engine.generate([prompt], Sampling(90, truncate="left"))[0].ids[:1] != []


def test_impossible_settings_are_refused() -> None:
    for wrong, message in [
        ({"min_p": 1.5}, "min_p is 1.5; expected 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; expected above 0"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
        ({"truncate": "middle"}, "truncate is middle; expected left, right or None"),
    ]:
        with pytest.raises(Refused, match=message):
            Sampling(**wrong)  # type: ignore[arg-type]
