"""Prompts in two compiled calls a layer: attention is torch's, and each row's numbers are its own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.generate.cache import Cache
from lmlab.generate.decoder import Decoder
from lmlab.generate.decoders import last_states
from lmlab.generate.module_decoder import ModuleDecoder
from lmlab.generate.prompt_attention import Span, attend_prompts, attention_kind, last_rows, spans_of
from lmlab.generate.simd import FLOAT32, KINDS, available
from lmlab.generate.weights import Precision
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

PRECISIONS = ["float32", "bfloat16", "int8", "int4"]
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    len(available()) < len(KINDS), reason="needs a processor with AVX-512, its BF16 and VNNI"
)


def bits(x: torch.Tensor, narrow: bool) -> np.ndarray:
    """Numbers as compiled functions take them."""
    return x.bfloat16().view(torch.int16).numpy() if narrow else x.numpy()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 130), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([1, 2, 7, 16, 48, 49, 64, 128]),
    held=st.sampled_from([0, 1, 5, 64]),
    narrow=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_is_torchs(
    lengths: list[int], kv_heads: int, group: int, head_dim: int, held: int, narrow: bool, seed: int
) -> None:
    """Ragged lengths, grouped queries, odd heads, tokens in the cache; rows cut anywhere."""
    draw, kind = torch.Generator().manual_seed(seed), attention_kind(narrow)
    pairs = kind != FLOAT32
    N, H, padded = sum(lengths), kv_heads * group, head_dim + (head_dim % 2 if pairs else 0)

    def numbers(*shape: int) -> torch.Tensor:
        found = torch.randn(shape, generator=draw)
        return found.bfloat16().float() if narrow else found

    q, new, old = (
        numbers(N, H, head_dim),
        numbers(N, 2, kv_heads, head_dim),
        numbers(len(lengths), 2, kv_heads, held + 3, head_dim),
    )
    pad = (0, padded - head_dim)
    queries = np.ascontiguousarray(bits(F.pad(q, pad), pairs)).reshape(N, -1).view(np.int32)
    # What stands in the cache behind `held` is of another request: it must not be read.
    old[:, :, :, held:] = float("nan")
    arrays = (bits(old, narrow), queries, np.ascontiguousarray(bits(F.pad(new, pad), pairs)))
    spans = spans_of(lengths, [held] * len(lengths), list(range(len(lengths))))
    scale, found = np.float32(head_dim**-0.5), np.empty((N, H * head_dim), np.float32)
    cut = N // 3
    for first, last in ((0, cut), (cut, N)):
        if first < last:
            attend_prompts(kind, np.array(spans), first, last, *arrays, scale, found[first:last])
    wanted = []
    for i, (n, span) in enumerate(zip(lengths, spans)):
        fresh = new[span.own : span.own + n].permute(1, 2, 0, 3)
        k, v = torch.cat((old[i, :, :, :held], fresh), 2).repeat_interleave(group, 1)
        seen = torch.ones(n, held + n, dtype=torch.bool).tril(held)
        mixed = F.scaled_dot_product_attention(q[span.own : span.own + n].transpose(0, 1), k, v, attn_mask=seen)
        wanted.append(mixed.transpose(0, 1).reshape(n, -1))
    # Weights are rounded to bfloat16, by 2^-9 of them each.
    near = (
        2**-8 * float(new.abs().max().maximum(old[:, :, :, :held].abs().amax() if held else new.max()))
        if narrow
        else 2e-6
    )
    torch.testing.assert_close(torch.from_numpy(found), torch.cat(wanted), atol=near, rtol=1e-5)
    alone = np.array(last_rows(spans))
    ends = np.empty((len(lengths), H * head_dim), np.float32)
    attend_prompts(kind, alone, 0, len(alone), *arrays, scale, ends)
    assert np.array_equal(ends, found[np.cumsum(lengths) - 1])


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_prompt_gives_the_same_bits_in_any_company(precision: Precision, batch: int) -> None:
    config = ModelConfig(layers=2, d_model=48, heads=4, kv_heads=2, vocab_size=50, context_length=160)
    decoder = Decoder(Transformer(config).initialise(1).eval(), precision)
    draw = np.random.default_rng(batch)
    prompts = [draw.integers(0, 50, n).tolist() for n in draw.integers(1, 150, batch)]
    with torch.inference_mode():
        cache = Cache(config, batch, 160, CPU, dtype=decoder.kept)
        whole = decoder.prefill(prompts, cache=cache, rows=range(batch))
        ends = last_states(decoder, prompts, cache=cache, rows=range(batch))
        lengths = [len(prompt) for prompt in prompts]
        for i, each in enumerate(whole.split(lengths)):
            assert torch.equal(each[-1], ends[i])
        first = prompts[0]
        own = Cache(config, 3, 160, CPU, dtype=decoder.kept)
        assert torch.equal(decoder.prefill([first], cache=own, rows=[1]), whole[: len(first)])
        assert torch.equal(own.data[:, 1, :, :, : len(first)], cache.data[:, 0, :, :, : len(first)])
        cut = len(first) // 2
        if cut:  # what begins a prompt may be in the cache already
            rest = decoder.prefill([first[cut:]], cache=own, rows=[1], starts=[cut])
            assert torch.equal(rest, whole[cut : len(first)])
        assert torch.equal(decoder.prefill([first]), whole[: len(first)])  # without a cache


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_compiled_way_is_the_operation_by_operation_one(
    precision: Precision, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(layers=3, d_model=64, heads=4, kv_heads=2, vocab_size=50, context_length=128, qk_norm=True)
    decoder = Decoder(Transformer(config).initialise(1).eval(), precision)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 50, n).tolist() for n in (100, 1, 37)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with torch.inference_mode():
        caches = [Cache(config, 3, 128, CPU, dtype=decoder.kept) for _ in range(2)]
        found = decoder.prefill(prompts, cache=caches[0], rows=[2, 0, 1])
        ends = decoder.prefill(prompts, cache=caches[0], rows=[2, 0, 1], last=True)
        monkeypatch.setattr(decoder, "_reads_compiled", lambda *_: False)
        wanted = decoder.prefill(prompts, cache=caches[1], rows=[2, 0, 1])
        assert torch.equal(decoder.prefill(prompts, last=True), wanted[[99, 100, 137]])
    share = 1e-6 if precision == "float32" else 0.02  # the other way attends in float32
    for here, there in ((found, wanted), [cache.data.float() for cache in caches]):
        torch.testing.assert_close(here, there, atol=share * float(there.abs().max()), rtol=0)
    assert torch.equal(ends, found[[99, 100, 137]])


def test_a_prompt_that_is_no_number_stays_with_itself() -> None:
    config = ModelConfig(layers=2, d_model=48, heads=4, vocab_size=8, context_length=64, tie_embeddings=False)
    model = Transformer(config).initialise(1).eval()
    with torch.no_grad():
        model.embedding.weight[7] = float("nan")
    for precision in PRECISIONS:
        found = Decoder(model, precision).prefill([[1, 2, 3], [1, 7, 3], [4, 5]])  # type: ignore[arg-type]
        assert found[[0, 1, 2, 3, 6, 7]].isfinite().all() and found[4:6].isnan().all()


def test_models_that_the_fast_decoder_lacks_give_last_states_too() -> None:
    config = ModelConfig(layers=2, d_model=48, heads=4, vocab_size=50, context_length=64, position="alibi")
    decoder = ModuleDecoder(Transformer(config).initialise(1).eval())
    prompts = [[1, 2, 3], [4], [5, 6]]
    with torch.inference_mode():
        assert torch.equal(last_states(decoder, prompts), decoder.prefill(prompts)[[2, 3, 5]])


def test_spans_are_where_rows_stand() -> None:
    spans = spans_of([3, 2], [64, 0], [1, 0])
    assert spans == [Span(0, 3, 0, 0, 64, 1), Span(3, 2, 3, 3, 0, 0)]
    assert last_rows(spans) == [Span(0, 1, 2, 0, 64, 1), Span(1, 1, 4, 3, 0, 0)]
    assert attention_kind(False) == FLOAT32
