"""The model's laws: kernels agree, packed documents do not meet, counts are true, what cannot be is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmlab.model.config import GATED, ModelConfig
from lmlab.model.feed_forward import ACTIVATIONS, FeedForward
from lmlab.model.norm import RMSNorm
from lmlab.model.transformer import Transformer


def make(seed: int = 0, **shape) -> Transformer:
    """A small model with random weights in every part."""
    usual = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": 50, "context_length": 24}
    model = Transformer(ModelConfig(**{**usual, **shape})).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def random_tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("shape", [{}, {"kv_heads": 2, "qk_norm": True}, {"position": "learned", "kv_heads": 1}])
def test_kernels_agree_in_output_and_gradient(shape: dict, segmented: bool) -> None:
    model = make(**shape)
    tokens_BT = random_tokens(3, 20)
    segments_BT = torch.tensor([[0] * 7 + [1] * 13, [0] * 20, [0, 1] + [2] * 18]) if segmented else None
    weight = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(1))
    results = {}
    for kernel in ("math", "sdpa"):
        model.kernel = kernel
        model.zero_grad()
        logits = model(tokens_BT, segments_BT=segments_BT).logits()
        (logits * weight).mean().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results[kernel] = (logits.detach(), gradients)
    torch.testing.assert_close(results["math"][0], results["sdpa"][0], atol=1e-5, rtol=1e-5)
    assert results["math"][1].keys() == results["sdpa"][1].keys() == dict(model.named_parameters()).keys()
    for name, gradient in results["math"][1].items():
        torch.testing.assert_close(gradient, results["sdpa"][1][name], atol=1e-6, rtol=1e-4, msg=name)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5).filter(lambda each: sum(each) <= 24),
    position=st.sampled_from(["rope", "learned", "none"]),
    kernel=st.sampled_from(["math", "sdpa"]),
)
def test_packed_documents_are_separate_documents(lengths: list[int], position: str, kernel: str) -> None:
    model = make(position=position).eval()
    model.kernel = kernel  # type: ignore[assignment]
    tokens = random_tokens(1, sum(lengths), seed=len(lengths))
    segments = torch.tensor([[index for index, n in enumerate(lengths) for _ in range(n)]])
    places = torch.tensor([[place for n in lengths for place in range(n)]])
    with torch.inference_mode():
        packed = model(tokens, segments_BT=segments, positions_BT=places).logits()[0]
        for document, part in zip(tokens[0].split(lengths), packed.split(lengths)):
            torch.testing.assert_close(part, model(document[None]).logits()[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 15), change=st.integers(1, 49))
def test_no_position_sees_what_comes_after_it(cut: int, change: int) -> None:
    model = make().eval()
    tokens = random_tokens(1, 16)
    other = tokens.clone()
    other[:, cut:] = (other[:, cut:] + change) % 50
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits()[:, :cut], model(other).logits()[:, :cut])
        assert not torch.allclose(model(tokens).logits()[:, cut:], model(other).logits()[:, cut:])


def test_rotation_makes_attention_depend_on_distance_only() -> None:
    model = make().eval()
    tokens = random_tokens(1, 10)
    with torch.inference_mode():
        here = model(tokens, positions_BT=torch.arange(10)[None]).logits()
        there = model(tokens, positions_BT=torch.arange(10)[None] + 13).logits()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    norm = draw(st.sampled_from(["rmsnorm", "layernorm"]))
    return ModelConfig(
        layers=draw(st.integers(1, 3)),
        d_model=12 * draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=draw(st.sampled_from([None, *(n for n in (1, 2) if heads % n == 0)])),
        head_dim=draw(st.sampled_from([2, 10])),
        d_ff=draw(st.sampled_from([None, 7])),
        vocab_size=draw(st.integers(2, 30)),
        context_length=draw(st.integers(1, 9)),
        norm=norm,
        norm_bias=norm == "layernorm" and draw(st.booleans()),
        activation=draw(st.sampled_from(["gelu", "relu2", "silu", *sorted(GATED)])),
        position=draw(st.sampled_from(["learned", "rope", "none"])),
        bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
    )


@settings(max_examples=80, deadline=None)
@given(config=configs())
def test_parameters_are_counted_as_they_are(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    counts = config.parameters()
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    real = {"embedding": 0, "attention": 0, "feed_forward": 0, "norms": 0, "head": 0}
    for name, parameter in model.named_parameters():
        if name.startswith(("embedding", "position")):
            real["embedding"] += parameter.numel()
        elif name.startswith("head"):
            real["head"] += parameter.numel()
        elif ".attention." in name:
            real["attention"] += parameter.numel()
        elif ".feed_forward." in name:
            real["feed_forward"] += parameter.numel()
        else:
            real["norms"] += parameter.numel()
    assert {part: counts[part] for part in real} == real


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_the_start_is_a_function_of_the_seed_alone(seed: int) -> None:
    config = ModelConfig(layers=1, d_model=8, heads=1, vocab_size=9, context_length=4)
    first = Transformer(config).initialise(seed)
    torch.rand(7)
    second = Transformer(config).initialise(seed)
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "d_model 32 is no multiple of heads 5"),
        ({"kv_heads": 3}, "heads 4 is no multiple of kv_heads 3"),
        ({"head_dim": 7}, "the head dimension must be even"),
        ({"norm_bias": True}, "rmsnorm has a gain only"),
        ({"activation": "swish"}, "activation"),
        ({"layers": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"widht": 3}, "widht"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_the_reason(wrong: dict, message: str) -> None:
    usual = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": 50, "context_length": 24}
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{**usual, **wrong})


def _normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * _normal(x),
    "gelu-tanh": _tanh_gelu,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "glu": lambda x: 1 / (1 + math.exp(-x)),
    "swiglu": lambda x: x / (1 + math.exp(-x)),
    "geglu": lambda x: x * _normal(x),
    "geglu-tanh": _tanh_gelu,
    "reglu": lambda x: max(x, 0.0),
}
"""The papers' (1606.08415, 1612.08083, 2002.05202, 2109.08668)."""


@pytest.mark.parametrize("name", FORMULAS)
def test_a_feed_forward_layer_is_its_formula(name: str) -> None:
    config = ModelConfig(
        layers=1,
        d_model=4,
        heads=1,
        vocab_size=5,
        context_length=4,
        activation=name,
        d_ff=6,
        bias=True,
        position="none",
    )
    layer = FeedForward(config)
    x = torch.randn(4, generator=torch.Generator().manual_seed(0)) * 2
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        inner = layer.up(x)
        if name in GATED:
            assert layer.gate is not None
            inner = inner * torch.tensor([FORMULAS[name](float(each)) for each in layer.gate(x)])
        else:
            inner = torch.tensor([FORMULAS[name](float(each)) for each in inner])
        torch.testing.assert_close(layer(x), layer.down(inner), atol=1e-5, rtol=1e-5)
    assert set(FORMULAS) == set(ACTIVATIONS)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="25 tokens are more than the model's context of 24"):
        make()(random_tokens(1, 25))


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=0, max_size=3), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_rmsnorm_s_gradient_by_hand_is_the_formula_s(shape: list[int], width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = RMSNorm(width, 1e-3).double()
    x = torch.randn(*shape, width, generator=generator, dtype=torch.float64, requires_grad=True)
    norm.weight.data.uniform_(-2, 2, generator=generator)
    formula = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-3) * norm.weight
    above = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(norm(x), formula)
    for found, wanted in zip(
        *(torch.autograd.grad(y, (x, norm.weight), above) for y in (norm(x), formula)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_rmsnorm_of_a_half_type_is_computed_in_float32_and_of_zeros_is_zero() -> None:
    norm = RMSNorm(64, 1e-5)
    x = torch.full((3, 64), 300.0, dtype=torch.float16, requires_grad=True)  # whose square overflows
    torch.testing.assert_close(norm(x), torch.ones(3, 64, dtype=torch.float16))
    zero = torch.zeros(2, 64, requires_grad=True)
    norm(zero).sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all() and not norm(zero).any()
