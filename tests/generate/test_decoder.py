"""The lean decoder is the model: the same logits over random configs, with and without a cache, in both kernels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.generate.cache import Cache
from lmlab.generate.decoder import Decoder
from lmlab.generate.kernels import attend_cached, attend_parallel
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

CPU = torch.device("cpu")


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    norm = draw(st.sampled_from(["rmsnorm", "layernorm"]))
    return ModelConfig(
        layers=draw(st.integers(1, 3)),
        d_model=12 * draw(st.integers(1, 4)),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (1, 2, 3, 6) if heads % n == 0])),
        head_dim=draw(st.sampled_from([2, 8, 14])),
        vocab_size=draw(st.integers(2, 90)),
        context_length=24,
        norm=norm,
        norm_bias=norm == "layernorm" and draw(st.booleans()),
        activation=draw(
            st.sampled_from(["relu", "gelu", "gelu-tanh", "silu", "relu2", "glu", "swiglu", "geglu", "reglu"])
        ),
        position=draw(st.sampled_from(["learned", "rope", "none"])),
        bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
    )


def shaken(config: ModelConfig, seed: int) -> Transformer:
    """Random weights in every part: gains that are not 1 and biases that are not 0 too."""
    model = Transformer(config).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@settings(max_examples=30, deadline=None)
@given(config=configs(), lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_logits_are_the_model_s(config: ModelConfig, lengths: list[int], seed: int) -> None:
    model = shaken(config, seed)
    decoder = Decoder(model)
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, config.vocab_size, n).tolist() for n in lengths]
    rows = list(range(len(prompts)))
    with torch.inference_mode():
        cache = Cache(config, len(prompts), 24, CPU)
        found = decoder.logits(decoder.prefill(prompts, cache=cache, rows=rows))
        wanted = torch.cat([model(torch.tensor([prompt])).logits()[0] for prompt in prompts])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        for _ in range(3):
            new = draw.integers(0, config.vocab_size, len(prompts)).tolist()
            found = decoder.logits(decoder.decode(new, [len(prompt) for prompt in prompts], cache))
            prompts = [[*prompt, token] for prompt, token in zip(prompts, new)]
            wanted = torch.stack([model(torch.tensor([prompt])).logits()[0, -1] for prompt in prompts])
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_both_kernels_of_cached_attention_agree(heads: int, kv_heads: int, threads: int) -> None:
    config = ModelConfig(
        layers=1, d_model=8, heads=heads, kv_heads=kv_heads, head_dim=10, vocab_size=4, context_length=40
    )
    generator = torch.Generator().manual_seed(0)
    inner = heads * 10
    first, second = Cache(config, 5, 40, CPU), Cache(config, 5, 40, CPU)
    content = torch.randn(first.data.shape, generator=generator)
    first.data.copy_(content)
    second.data.copy_(content)
    qkv = torch.randn(3, inner + 2 * kv_heads * 10, generator=generator)
    positions = [0, 39, 17]
    found = torch.empty(3, inner)
    nothing, angles = np.empty((0, 0), np.float32), np.empty((40, 0), np.float32)
    settings_of = (nothing, np.float32(0), angles, angles, np.float32(10**-0.5))
    attend_parallel(threads, qkv.numpy(), first.arrays[0], np.array(positions), *settings_of, found.numpy())
    wanted = attend_cached(0, qkv, second, positions, inner)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(first.data, second.data)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs AVX2 or better")
@pytest.mark.parametrize(("inputs", "outputs"), [(192, 576), (512, 192), (384, 1152), (2048, 96), (50, 33)])
def test_a_row_s_product_does_not_depend_on_the_rows_beside_it(inputs: int, outputs: int) -> None:
    """What the engine's exactness stands on; were it false on some processor, this names the cause."""
    from lmlab.generate.weights import Linear

    generator = torch.Generator().manual_seed(0)
    linear = Linear(torch.randn(outputs, inputs, generator=generator), None, "float32")
    x = torch.randn(64, inputs, generator=generator)
    whole = linear(x)
    for rows in (1, 2, 3, 5, 8, 17, 32, 63):
        assert torch.equal(linear(x[7 : 7 + rows]), whole[7 : 7 + rows])


def test_a_rows_attention_does_not_depend_on_the_threads() -> None:
    from lmlab.generate import kernels

    generator = np.random.default_rng(0)
    config = ModelConfig(layers=1, d_model=8, heads=4, head_dim=16, vocab_size=4, context_length=64)
    qkv = generator.standard_normal((7, 3 * 64)).astype(np.float32)
    positions = generator.integers(0, 64, 7)
    nothing, angles = np.empty((0, 0), np.float32), np.empty((64, 0), np.float32)
    found = []
    for threads in (1, 2, 7):
        cache = Cache(config, 7, 64, CPU)
        cache.data.copy_(torch.randn(cache.data.shape, generator=torch.Generator().manual_seed(1)))
        out = np.empty((7, 64), np.float32)
        settings_of = (nothing, np.float32(0), angles, angles, np.float32(0.25))
        attend_parallel(threads, qkv.copy(), cache.arrays[0], positions, *settings_of, out)
        found.append(out)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    assert kernels.parts([10] * 7, 64) == 1  # too little to do


@settings(max_examples=20, deadline=None)
@given(config=configs(), seed=st.integers(0, 99))
def test_the_accelerators_way_gives_the_same(config: ModelConfig, seed: int) -> None:
    """torch's operations all the way, here on the processor: what an accelerator computes with."""
    model = shaken(config, seed)
    decoder = Decoder(model)
    prompts = [[0, 1, 1], [1]]
    logits = []
    with torch.inference_mode():
        for compiled in (True, False):
            cache = Cache(config, 2, 24, CPU)
            if not compiled:
                cache.arrays = []
            decoder.prefill(prompts, cache=cache, rows=[0, 1])
            logits.append(decoder.logits(decoder.decode([1, 0], [3, 1], cache)))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
