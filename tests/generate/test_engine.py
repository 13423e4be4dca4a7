"""What a request gives depends on the request alone; what is shared is computed once; what is wrong is said."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmlab.errors import Failed, Refused
from lmlab.generate.engine import Engine, Sampling
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer, train

TEXTS = ["def add(first, second):\n    return first + second\n", "naïve café 日本語 🙂\n"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, 320)


def lively(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose random logits are far apart: the usual start makes all tokens nearly as likely."""
    model = Transformer(config).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(layers=2, d_model=48, heads=4, kv_heads=2, vocab_size=tokenizer.vocab_size, context_length=64)
    return lively(config)


def reference(model: Transformer, prompt: list[int], steps: int, stop: set[int]) -> tuple[list[int], list[float]]:
    """Greedy decoding with nothing kept from one token to the next."""
    ids, logprobs = list(prompt), []
    with torch.inference_mode():
        for _ in range(steps):
            logits = model(torch.tensor([ids])).logits()[0, -1]
            ids.append(int(logits.argmax()))
            logprobs.append(float(logits.log_softmax(-1)[ids[-1]]))
            if ids[-1] in stop:
                break
    return ids[len(prompt) :], logprobs


PROMPTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17], [7, 8, 9], [20] * 30, [31, 32]]


def test_greedy_is_what_the_model_says_without_a_cache(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, max_batch=3)
    answers = engine.generate(PROMPTS, Sampling(max_new_tokens=20))
    for prompt, answer in zip(PROMPTS, answers):
        ids, logprobs = reference(model, prompt, 20, set(engine.stop_ids))
        assert answer.ids == ids
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert answer.finish_reason == ("stop" if ids[-1] in engine.stop_ids else "length")


requests = st.tuples(
    st.lists(st.integers(6, 300), min_size=1, max_size=30),
    st.builds(
        Sampling,
        max_new_tokens=st.integers(1, 16),
        temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
        top_k=st.sampled_from([0, 1, 5, 290]),
        top_p=st.sampled_from([1.0, 0.9, 0.3]),
        seed=st.integers(0, 2**70),
    ),
)


@settings(max_examples=30, deadline=None)
@given(batch=st.lists(requests, min_size=1, max_size=7), max_batch=st.integers(1, 5))
def test_a_request_gives_the_same_whoever_shares_its_batch(
    model: Transformer, tokenizer: Tokenizer, batch: list[tuple[list[int], Sampling]], max_batch: int
) -> None:
    """To the last bit: the log-probabilities are equal, not only near. `max_batch` leaves rows over, who join late."""
    alone = Engine(model, tokenizer, max_batch=1)
    together = Engine(model, tokenizer, max_batch=max_batch)
    answers = together.generate([prompt for prompt, _ in batch], [each for _, each in batch])
    for (prompt, sampling), answer in zip(batch, answers):
        assert answer == alone.generate([prompt], sampling)[0]


def test_streams_that_share_the_batch_give_what_generate_gives(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, max_batch=2)
    settings_of = [Sampling(12, temperature=1.0, seed=seed) for seed in range(4)]
    wanted = engine.generate(PROMPTS[:4], settings_of)
    streams = [engine.stream(prompt, each) for prompt, each in zip(PROMPTS, settings_of)]
    got: list[list] = [[] for _ in streams]
    open_streams = dict(enumerate(streams))
    while open_streams:
        for index, stream in list(open_streams.items()):
            piece = next(stream, None)
            if piece is None:
                del open_streams[index]
            else:
                got[index].append(piece)
    for pieces, answer in zip(got, wanted):
        assert [piece.token_id for piece in pieces] == answer.ids
        assert [piece.logprob for piece in pieces] == answer.logprobs
        assert "".join(piece.text for piece in pieces) == answer.text


def test_a_closed_stream_leaves_the_batch(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    stream = engine.stream([7, 8], Sampling(30, temperature=1.0))
    next(stream)
    with pytest.raises(Refused, match="under way"):
        engine.free()
    stream.close()  # type: ignore[attr-defined]
    assert engine._scheduler.active == []
    engine.free()
    assert engine.cache_bytes == 0


def test_samples_of_one_prompt_share_its_prefill(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, max_batch=4)
    prompt = list(range(10, 40))
    settings_of = [Sampling(5, temperature=1.0, seed=seed, stop_ids=()) for seed in range(11)]
    answers = engine.generate([prompt] * 11, settings_of)
    assert engine.prefilled_tokens == len(prompt)
    assert len({tuple(answer.ids) for answer in answers}) > 5
    assert engine._scheduler._prefixes == {}


def test_the_cache_is_as_large_as_needed_and_is_used_again(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, max_batch=8)
    engine.generate(PROMPTS[:2], Sampling(4, stop_ids=()))
    kv_heads, head_dim, _ = model.config.dims
    assert engine.cache_bytes == model.config.layers * 2 * 2 * kv_heads * 7 * head_dim * 4
    cache = engine._scheduler.cache
    engine.generate(PROMPTS[:1], Sampling(2))
    assert engine._scheduler.cache is cache


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(1, 12), data=st.data())
def test_the_answer_ends_before_a_stop_string_wherever_tokens_are_cut(
    model: Transformer, tokenizer: Tokenizer, seed: int, length: int, data: st.DataObject
) -> None:
    engine = Engine(model, tokenizer)
    full = engine.generate([[9]], Sampling(24, temperature=2.0, seed=seed))[0].text
    start = data.draw(st.integers(0, max(0, len(full) - 1)))
    stop = full[start : start + length]
    if not stop or "\ufffd" in stop:
        return
    sampling = Sampling(24, temperature=2.0, seed=seed, stop=(stop, "never said"))
    answer = engine.generate([[9]], sampling)[0]
    assert answer.text == full[: full.find(stop)]
    assert answer.finish_reason == "stop"
    assert "".join(piece.text for piece in engine.stream([9], sampling)) == answer.text


def test_new_weights_count_after_refresh(tokenizer: Tokenizer) -> None:
    config = ModelConfig(layers=1, d_model=32, heads=2, vocab_size=tokenizer.vocab_size, context_length=32)
    model, other = lively(config, 1), lively(config, 2)
    engine = Engine(model, tokenizer)
    before = engine.generate([[9, 10]], Sampling(8))
    model.load_state_dict(other.state_dict())
    engine.refresh()
    after = engine.generate([[9, 10]], Sampling(8))
    assert after != before
    assert after == Engine(other, tokenizer).generate([[9, 10]], Sampling(8))


def test_logits_that_are_no_numbers_fail_their_request_only(tokenizer: Tokenizer) -> None:
    config = ModelConfig(layers=1, d_model=32, heads=2, vocab_size=tokenizer.vocab_size, context_length=32)
    model = lively(config)
    with torch.no_grad():
        model.embedding.weight[50] = math.nan  # whoever reads token 50, or can choose it, is lost
    untied = Transformer(config.model_copy(update={"tie_embeddings": False})).eval()
    # Drawn from a seed of its own: with a head of any other draw the good answer may happen to choose token 50.
    head = torch.randn(config.vocab_size, 32, generator=torch.Generator().manual_seed(0))
    untied.load_state_dict({**model.state_dict(), "head.weight": head})
    engine = Engine(untied, tokenizer, max_batch=2)
    good = engine.stream([7, 8], Sampling(6, stop_ids=(), temperature=1.0))
    first = [next(good)]
    bad = engine.stream([50, 8], Sampling(6))
    with pytest.raises(Failed, match="not numbers"):
        next(bad)
    with pytest.raises(Failed, match="prompt 1: .*not numbers"):
        engine.generate([[7], [7, 50]])
    rest = [*first, *good]
    assert [p.token_id for p in rest] == engine.generate([[7, 8]], Sampling(6, stop_ids=(), temperature=1.0))[0].ids
    with pytest.raises(Failed, match="pair 1"):
        engine.score([([7], [8]), ([50], [8])])
    with pytest.raises(Failed, match="document 1"):
        engine.score_documents([[7, 8], [50, 8]])


def test_bad_requests_are_refused_with_the_numbers(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    with pytest.raises(Refused, match=r"prompt 1: has 64 tokens, and the model's context is 64"):
        engine.generate([[7], [7] * 64])
    with pytest.raises(Refused, match="prompt 0: is empty"):
        engine.generate([[]])
    with pytest.raises(Refused, match=f"token id {model.config.vocab_size} .*expected 0 to"):
        engine.generate([[model.config.vocab_size]])
    with pytest.raises(Refused, match="2 prompts and 1 settings"):
        engine.generate([[7], [8]], [Sampling()])
    with pytest.raises(Refused, match="stop strings need a tokenizer"):
        Engine(model).generate([[7]], Sampling(stop=("x",)))
    with pytest.raises(Refused, match="max_batch is 0"):
        Engine(model, max_batch=0)
    small = ModelConfig(layers=1, d_model=8, heads=1, vocab_size=10, context_length=8)
    with pytest.raises(Refused, match="do not belong together"):
        Engine(Transformer(small), tokenizer)


def test_an_answer_ends_where_the_context_does(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    answer = engine.generate([[7] * 60], Sampling(50, stop_ids=()))[0]
    assert (len(answer.ids), answer.finish_reason) == (4, "length")
    nothing = engine.generate([[7] * 64], Sampling(0))[0]
    assert (nothing.ids, nothing.text, nothing.finish_reason) == ([], "", "length")


def test_without_a_tokenizer_ids_work(model: Transformer) -> None:
    answer = Engine(model, stop_ids=[5]).generate([[7, 8]], Sampling(6))[0]
    assert answer.ids == reference(model, [7, 8], 6, {5})[0]
    assert answer.text == ""


def test_bfloat16_is_near_and_says_the_same_where_it_is_sure(model: Transformer, tokenizer: Tokenizer) -> None:
    exact, rough = Engine(model, tokenizer), Engine(model, tokenizer, precision="bfloat16")
    pairs = [([7, 8, 9], [10, 11, 12]), ([13], [14])]
    for a, b in zip(exact.score(pairs), rough.score(pairs)):
        assert a.logprob == pytest.approx(b.logprob, rel=0.1, abs=0.5)
        assert a.logprob != b.logprob
    assert len(rough.generate([[7, 8]], Sampling(5, stop_ids=()))[0].ids) == 5
