"""The matrix product of our own: right in every precision and shape, and each row's numbers are its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.generate import products
from lmlab.generate.cache import Cache
from lmlab.generate.decoder import Decoder
from lmlab.generate.kernels import attend_rows
from lmlab.generate.products import Panels, kind_of, narrow
from lmlab.generate.quantise import group_size, round_int4, round_int8
from lmlab.generate.simd import BFLOAT16, FLOAT32, PAIRED, available
from lmlab.generate.weights import Linear
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

PRECISIONS = ["float32", "bfloat16", "int8", "int4"]
pytestmark = pytest.mark.skipif(len(available()) < 4, reason="needs a processor with AVX-512, its BF16 and its VNNI")


def panels(weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Panels:
    kind = kind_of(precision, weight.shape[1])
    assert kind is not None
    return Panels(weight, bias, kind)


def stood_for(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """The matrix that the codes of int8 and int4 mean."""
    group = group_size(weight.shape[1]) if precision == "int4" else 0
    if not group:
        codes, scale = round_int8(weight)
        return codes * scale[:, None]
    codes, scale, low = round_int4(weight, group)
    steps, lowest = (each.bfloat16().float().repeat_interleave(group, 1) for each in (scale, low))
    return codes * steps + lowest


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 130),
    inputs=st.sampled_from([1, 2, 7, 32, 64, 96, 255, 256, 258, 640]),
    rows=st.integers(1, 70),
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 99),
)
def test_the_product_is_the_dense_one(outputs: int, inputs: int, rows: int, precision: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(outputs, inputs, generator=draw), torch.randn(outputs, generator=draw)
    x = torch.randn(rows, inputs, generator=draw)
    made = panels(weight, bias, precision)
    dense, seen, rounding = weight, x, torch.tensor(0.0)
    if precision == "bfloat16":
        dense, seen = weight.bfloat16().float(), x.bfloat16().float() if PAIRED else x
    elif precision != "float32":
        dense = stood_for(weight, precision)
        rounding = x.abs().amax(1, keepdim=True) / 65534 * dense.abs().sum(1)  # of x to 16 bits: half a step at most
    size = (seen.abs() @ dense.abs().T) + bias.abs()
    wanted = seen @ dense.T + bias
    assert bool(((made(x) - wanted).abs() <= 1e-5 * size + rounding + 1e-6).all())
    residual = torch.ones(rows, outputs)
    found = made(x, residual)
    assert found is residual
    torch.testing.assert_close(found, made(x) + 1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("inputs", [1, 2, 7])
def test_few_inputs_over_threads(precision: str, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few, words of 4 bytes may be as many as the inputs, and still be no float32."""
    draw = torch.Generator().manual_seed(0)
    made, x = panels(torch.randn(100, inputs, generator=draw), None, precision), torch.randn(9, inputs, generator=draw)
    alone = made(x)
    monkeypatch.setattr(products, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(made(x), alone)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_rows_product_does_not_depend_on_rows_or_threads(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    made = panels(torch.randn(200, 320, generator=draw), None, precision)
    x = torch.randn(1000, 320, generator=draw)  # more than stay in the second cache at once
    whole = made(x)
    for start, rows in ((0, 1), (3, 5), (7, 8), (40, 33), (500, 450)):
        assert torch.equal(made(x[start : start + rows]), whole[start : start + rows])
    monkeypatch.setattr(products, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(made(x), whole)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(precision: str, bad: float) -> None:
    made = panels(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), None, precision)
    x = torch.ones(3, 64)
    x[1, 5] = bad
    assert (~made(x)[1].isfinite()).all() and made(x)[[0, 2]].isfinite().all()


@pytest.mark.skipif(not PAIRED, reason="rows of x stay float32 here")
def test_rounding_to_bfloat16_is_torchs() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    x = bits.view(np.float32)[None].copy()
    words = np.zeros((1, 2048), np.int32)
    narrow(BFLOAT16, 4096, x, words, np.empty((1, 0, 2), np.float32))
    found, wanted = torch.from_numpy(words).view(torch.bfloat16), torch.from_numpy(x).bfloat16()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found[~found.isnan()], wanted[~wanted.isnan()])


def test_memory_is_what_the_codes_take() -> None:
    weight = torch.randn(480, 768)
    sizes = {p: Linear(weight, None, p).bytes for p in PRECISIONS}  # type: ignore[arg-type]
    assert sizes["float32"] > 1.9 * sizes["bfloat16"] > 3.7 * sizes["int8"] > 6 * sizes["int4"]
    assert kind_of("float32", 768) == FLOAT32


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "activation", ["relu", "gelu", "gelu-tanh", "silu", "relu2", "glu", "swiglu", "geglu", "reglu"]
)
def test_the_compiled_step_is_the_layer_by_layer_one(
    activation: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all at once, once operation by operation, as with one row on several threads."""
    norm = "layernorm" if activation in ("relu", "gelu") else "rmsnorm"
    config = ModelConfig(
        layers=2, d_model=48, heads=4, kv_heads=2, vocab_size=50, context_length=16, activation=activation, norm=norm
    )
    decoder = Decoder(Transformer(config).initialise(1).eval())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = []
    with torch.inference_mode():
        for compiled in (True, False):
            cache = Cache(config, 3, 16, torch.device("cpu"))
            decoder.prefill([[1, 2, 3], [4], [5, 6]], cache=cache, rows=[0, 1, 2])
            if not compiled:
                decoder.steps = [None] * config.layers
            found.append(decoder.decode([7, 8, 9], [3, 1, 2], cache))
    torch.testing.assert_close(*found, atol=2e-6, rtol=1e-5)


def test_attention_over_bfloat16_keys_and_values_is_that_over_their_float32() -> None:
    config = ModelConfig(layers=1, d_model=8, heads=4, kv_heads=2, head_dim=16, vocab_size=4, context_length=40)
    draw = torch.Generator().manual_seed(0)
    kept = Cache(config, 2, 40, torch.device("cpu"), dtype=torch.bfloat16)
    kept.data.copy_(torch.randn(kept.data.shape, generator=draw))
    wide = Cache(config, 2, 40, torch.device("cpu"))
    wide.data.copy_(kept.data)
    qkv = torch.randn(2, 128, generator=draw).bfloat16().float().numpy()
    nothing, angles = np.empty((0, 0), np.float32), np.empty((40, 0), np.float32)
    outs = []
    for cache in (kept, wide):
        out = np.empty((2, 64), np.float32)
        where = np.array([39, 11])
        attend_rows(qkv.copy(), cache.arrays[0], where, nothing, np.float32(0), angles, angles, np.float32(0.25), out)
        outs.append(out)
    np.testing.assert_allclose(*outs, atol=1e-6)
    assert torch.equal(kept.data.float(), wide.data)
    grown = kept.grown(config, 3, 41)
    assert grown.data.dtype == torch.bfloat16 and grown.bytes * 2 == Cache(config, 3, 41, torch.device("cpu")).bytes
