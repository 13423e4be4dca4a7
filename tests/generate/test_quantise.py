"""8 and 4 bits: the codes stand for the matrix to half a step, kernels and unpacking agree, and the cost is told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmlab.errors import Refused
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.quantise import Quantised
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import train

SHAPES = [(96, 64), (64, 192), (33, 50), (32, 96), (64, 32)]


@settings(max_examples=30, deadline=None)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 99), bits=st.sampled_from(["int8", "int4"]))
def test_codes_stand_for_the_matrix_to_half_a_step(shape: tuple[int, int], seed: int, bits: str) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[3] = 0.0
    made = Quantised(weight, bits)  # type: ignore[arg-type]
    if made.group:
        grouped = weight.view(shape[0], -1, made.group)
        step = ((grouped.amax(-1) - grouped.amin(-1)) / 15).repeat_interleave(made.group, 1)
    else:
        step = (weight.abs().amax(1, keepdim=True) / 127).expand(shape)
    # bfloat16 keeps 8 bits of the scale and of the result.
    assert bool(((made.weight().float() - weight).abs() <= step * 0.5 + weight.abs().amax() * 2**-6).all())
    assert (made.weight()[3] == 0).all()
    assert made.codes.element_size() * made.codes.numel() == weight.numel() // (2 if made.group else 1)
    assert not (bits == "int4" and shape[1] % 32 == 0) or made.group > 0


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_and_the_unpacked_matrix_give_the_same(shape: tuple[int, int], bits: str) -> None:
    made = Quantised(torch.randn(shape, generator=torch.Generator().manual_seed(0)), bits)  # type: ignore[arg-type]
    x = torch.randn(20, shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = x.float() @ made.weight().float().T
    for rows in (1, 5, 20):
        torch.testing.assert_close(made(x[:rows]).float(), wanted[:rows], atol=0.3, rtol=0.02)


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_fewer_bits_cost_more_and_generation_works(position: str) -> None:
    tokenizer = train(["the cat sat on the mat\n"] * 20, 300)
    config = ModelConfig(
        layers=2, d_model=64, heads=2, vocab_size=tokenizer.vocab_size, context_length=64, position=position
    )
    model = Transformer(config).initialise(0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    engine = Engine(model, tokenizer)
    documents = [tokenizer.encode("the cat sat on the mat " * 20), tokenizer.encode("on the cat")]
    costs = {p: engine.precision_cost(documents, p) for p in ("float32", "bfloat16", "int8", "int4")}
    assert costs["float32"].difference == 0.0
    assert 0 < costs["bfloat16"].difference <= costs["int8"].difference * 1.5 < costs["int4"].difference
    for precision, cost in costs.items():
        nats = sum(engine.score_documents(documents, precision=precision))
        assert cost.nats_per_token == pytest.approx(nats / cost.tokens, rel=1e-6)
        assert cost.bits_per_byte == pytest.approx(nats / 0.6931471805599453 / (23 * 20 + 10), rel=1e-6)
    rough = Engine(model, tokenizer, precision="int4")
    assert len(rough.generate([[7, 8]] * 3, Sampling(5, stop_ids=()))[0].ids) == 5
    with pytest.raises(Refused, match="no tokens"):
        engine.precision_cost([[]])


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_the_float32_weights_are_given_back(position: str) -> None:
    config = ModelConfig(layers=1, d_model=64, heads=2, vocab_size=90, context_length=32, position=position)
    kept, freed = (Engine(Transformer(config).initialise(0).eval(), precision="int8", start_id=0) for _ in range(2))
    freed.release()
    assert freed.released and not kept.released
    assert all(parameter.is_meta for parameter in freed.model.parameters())
    settings_of = Sampling(6, stop_ids=())
    assert freed.generate([[1, 2], [3]], settings_of) == kept.generate([[1, 2], [3]], settings_of)
    assert freed.score([([1], [2, 3])]) == kept.score([([1], [2, 3])])
    for refused in (
        freed.refresh,
        lambda: freed.precision_cost([[1, 2]]),
        lambda: freed.score_documents([[1]], precision="float32"),
    ):
        with pytest.raises(Refused, match="given back"):
            refused()
