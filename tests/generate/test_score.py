"""Scores are the model's log-probabilities whatever the company; a shared context is computed once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.generate import score
from lmlab.generate.engine import Engine
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

VOCABULARY, CONTEXT = 60, 32


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        layers=2, d_model=32, heads=4, kv_heads=2, vocab_size=VOCABULARY, context_length=CONTEXT, qk_norm=True
    )
    made = Transformer(config).initialise(0).eval()
    with torch.no_grad():
        made.embedding.weight *= 30
    return made


@pytest.fixture(scope="module")
def engine(model: Transformer) -> Engine:
    return Engine(model, start_id=0)


def plain(model: Transformer, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One pair by one pass of the model over all of it."""
    ids = [*context, *continuation]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids[:CONTEXT]])).logits()[0].log_softmax(-1)
    total, greedy = 0.0, True
    for place in range(len(context), len(ids)):
        total += float(logprobs[place - 1, ids[place]])
        greedy = greedy and int(logprobs[place - 1].argmax()) == ids[place]
    return total, greedy


ids_of = lambda low, high: st.lists(st.integers(0, VOCABULARY - 1), min_size=low, max_size=high)  # noqa: E731
contexts = st.lists(ids_of(1, 20), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(shared=contexts, picks=st.lists(st.tuples(st.integers(0, 2), ids_of(0, 12)), min_size=1, max_size=10))
def test_scores_are_the_model_s_whatever_the_company(
    model: Transformer, engine: Engine, shared: list[list[int]], picks: list[tuple[int, list[int]]]
) -> None:
    pairs = [(shared[which % len(shared)], continuation) for which, continuation in picks]
    for (context, continuation), found in zip(pairs, engine.score(pairs)):
        logprob, greedy = plain(model, context, continuation)
        assert found.logprob == pytest.approx(logprob, abs=1e-4)
        assert found.greedy == greedy
        assert found.tokens == len(continuation)
        assert engine.score([(context, continuation)])[0].logprob == pytest.approx(found.logprob, abs=1e-5)


def test_greedy_is_what_generation_says(engine: Engine) -> None:
    from lmlab.generate.engine import Sampling

    said = engine.generate([[5, 6]], Sampling(8, stop_ids=()))[0]
    found = engine.score([([5, 6], said.ids), ([5, 6], [*said.ids[:-1], (said.ids[-1] + 1) % VOCABULARY])])
    assert [each.greedy for each in found] == [True, False]
    assert found[0].logprob == pytest.approx(sum(said.logprobs), abs=1e-4)


def test_a_shared_context_is_computed_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = engine._decoder("float32")
    computed: list[int] = []
    real = decoder.prefill

    def counted(tokens, **more):
        computed.extend(len(each) for each in tokens)
        return real(tokens, **more)

    monkeypatch.setattr(decoder, "prefill", counted)
    context = list(range(20))
    engine.score([(context, [1, 2, 3]), (context, [4, 5, 6, 7]), (context, [8])])
    assert sum(computed) == 20 + 2 + 3 + 0
    computed.clear()
    engine.score([(context, [option]) for option in range(4)])
    assert sum(computed) == 20


def test_many_continuations_are_cut_into_several_sequences(
    model: Transformer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "CONTINUATION_TOKENS", 10)
    monkeypatch.setattr(score, "PASS_TOKENS", 40)
    monkeypatch.setattr(score, "LOGIT_BYTES", 1)
    pairs = [([3, 4], [i, i + 1, i + 2, i + 3]) for i in range(12)]
    for (context, continuation), found in zip(pairs, engine.score(pairs)):
        assert found.logprob == pytest.approx(plain(model, context, continuation)[0], abs=1e-4)


def test_an_empty_context_is_the_start_of_a_document(model: Transformer, engine: Engine) -> None:
    assert engine.score([([], [4, 5])])[0] == engine.score([([0], [4, 5])])[0]
    with pytest.raises(Refused, match="context is empty"):
        Engine(model).score([([], [4])])


def test_what_does_not_fit_is_refused_with_the_numbers(engine: Engine) -> None:
    engine.score([([1] * 30, [2] * 3)])
    with pytest.raises(Refused, match="pair 0: 30 tokens of context and 4 of continuation .* context of 32"):
        engine.score([([1] * 30, [2] * 4)])
    with pytest.raises(Refused, match="pair 0: token id 60"):
        engine.score([([1], [60])])


@settings(max_examples=40, deadline=None)
@given(documents=st.lists(ids_of(0, 70), max_size=4), window=st.integers(1, CONTEXT), data=st.data())
def test_each_token_of_a_document_is_predicted_once_with_enough_before_it(
    model: Transformer, engine: Engine, documents: list[list[int]], window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    found = engine.score_documents(documents, window, stride)
    for ids, nats in zip(documents, found):
        whole = [0, *ids]
        wanted, done = 0.0, 0
        while done < len(ids):
            end = min(len(ids), window if done == 0 else done + stride)
            begin = max(0, end - window)
            assert done == 0 or done + 1 - begin > window - stride
            with torch.inference_mode():
                logprobs = model(torch.tensor([whole[begin:end]])).logits()[0].log_softmax(-1)
            wanted -= sum(float(logprobs[at - 1 - begin, whole[at]]) for at in range(done + 1, end + 1))
            done = end
        assert nats == pytest.approx(wanted, abs=1e-3, rel=1e-5)


def test_documents_in_bfloat16_are_near(engine: Engine) -> None:
    documents = [list(range(50)), [7, 8, 9] * 20]
    exact, rough = engine.score_documents(documents), engine.score_documents(documents, precision="bfloat16")
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact


def test_impossible_windows_are_refused(engine: Engine, model: Transformer) -> None:
    with pytest.raises(Refused, match="window 33, stride 8: expected"):
        engine.score_documents([[1]], 33, 8)
    with pytest.raises(Refused, match="window 8, stride 9: expected"):
        engine.score_documents([[1]], 8, 9)
    with pytest.raises(Refused, match="end-of-document"):
        Engine(model).score_documents([[1]])
