"""All kernels compute the same, in outputs and in gradients, whatever is seen and whatever is added to scores."""

import pytest
import torch
from model_helpers import make, pairs, random_tokens

from lmlab.model import kernels
from lmlab.model.transformer import Transformer

SEGMENTS = torch.tensor([[0] * 7 + [1] * 5, [0] * 12, [0, 1] + [2] * 10])
PLACES = torch.tensor([[*range(7), *range(5)], [*range(12)], [0, 0, *range(10)]])
PADDING = torch.tensor([[True] * 3 + [False] * 9, [False] * 12, [True] * 11 + [False]])
SOURCE_PADDING = torch.tensor([[False] * 6 + [True] * 3, [False] * 9, [True] * 2 + [False] * 7])
SOURCE_SEGMENTS = torch.tensor([[0] * 4 + [1] * 5, [0] * 9, [0, 1] + [2] * 7])


def inputs(architecture: str, kind: str) -> dict:
    """What a mask kind gives to a model of an architecture, for 3 rows of 12 tokens."""
    given: dict = {
        "plain": {},
        "segments": {"segments_BT": SEGMENTS},
        "packed": {"segments_BT": SEGMENTS, "positions_BT": PLACES},
        "padding": {"padding_BT": PADDING},
    }[kind]
    if architecture == "prefix-decoder":
        given = {**given, "prefix_B": torch.tensor([3, 0, 12])}
    if architecture == "encoder-decoder":
        given = {**given, "encoder_tokens_BS": random_tokens(3, 9, seed=5)}
        if kind == "padding":
            given["encoder_padding_BS"] = SOURCE_PADDING
        if kind in ("segments", "packed"):
            given["encoder_segments_BS"] = SOURCE_SEGMENTS
    return given


KINDS = ("plain", "segments", "packed", "padding")
OTHERS = (
    {"attention": ("full", "local(3)")},
    {"attention": ("strided(3)", "fixed(4, 1)")},
    {"attention": "local(4)", "architecture": "prefix-decoder"},
    {"attention_scale": 1.0, "kv_heads": 2, "logit_softcap": 5.0, "head_bias": True},
    {"attention_softcap": 1.5, "kv_heads": 1, "qk_norm": True, "qk_norm_width": "all"},
    {"rope_fraction": 0.5, "rope_pairing": "interleaved", "attention": "fixed(5, 2)"},
)
MODELS = [{"architecture": a, "position": p} for a, p in pairs()] + list(OTHERS)


def run(model: Transformer, kernel: str, given: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.kernel = kernel  # type: ignore[assignment]
    model.zero_grad()
    logits = model(random_tokens(3, 12), **given).logits()
    real = ~given["padding_BT"] if "padding_BT" in given else torch.ones(3, 12, dtype=torch.bool)
    weight = torch.randn(3, 12, 50, generator=torch.Generator().manual_seed(1)) * real[..., None]
    (logits * weight).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach()[real], gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", MODELS, ids=lambda each: " ".join(map(str, each.values())))
def test_math_and_sdpa_agree_in_output_and_gradient(shape: dict, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 12 in parts of 5, 5 and 2 where the formula takes causal queries in parts."""
    monkeypatch.setattr(kernels, "SMALLEST_PART", 5)
    model = make(**shape)
    given = inputs(model.config.architecture, kind)
    logits, gradients = run(model, "math", given)
    others, other_gradients = run(model, "sdpa", given)
    torch.testing.assert_close(others, logits, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == other_gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", MODELS, ids=lambda each: " ".join(map(str, each.values())))
def test_flex_agrees_in_output(shape: dict, kind: str) -> None:
    """Its functions of indices against the dense masks; not compiled, which changes the code and not the formula."""
    model = make(**shape)
    given = inputs(model.config.architecture, kind)
    real = ~given["padding_BT"] if "padding_BT" in given else torch.ones(3, 12, dtype=torch.bool)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        model.kernel = "math"
        wanted = model(random_tokens(3, 12), **given).logits()
        model.kernel = "flex"
        found = model(random_tokens(3, 12), **given).logits()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-4, rtol=1e-4)


def test_a_causal_row_in_parts_computes_fewer_scores_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make(context_length=24), random_tokens(2, 24)
    model.kernel = "math"
    sizes: list[tuple[int, int]] = []
    whole = kernels._attend_rows

    def watched(q, k, *others):
        sizes.append((q.shape[-2], k.shape[-2]))
        return whole(q, k, *others)

    monkeypatch.setattr(kernels, "_attend_rows", watched)
    with torch.inference_mode():
        wanted = model(tokens).logits()
        assert set(sizes) == {(24, 24)}
        monkeypatch.setattr(kernels, "SMALLEST_PART", 4)
        sizes.clear()
        found = model(tokens).logits()
    assert set(sizes) == {(12, 12), (12, 24)}
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_flex_with_places_that_all_rows_share() -> None:
    model, tokens = make(position="alibi"), random_tokens(3, 12)
    given = {"segments_BT": SEGMENTS, "positions_BT": torch.arange(12)[None] + 3}
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        model.kernel = "math"
        wanted = model(tokens, **given).logits()
        model.kernel = "flex"
        torch.testing.assert_close(model(tokens, **given).logits(), wanted, atol=1e-4, rtol=1e-4)


def test_flex_refuses_to_train_on_a_cpu() -> None:
    model = make()
    model.kernel = "flex"
    with pytest.raises(ValueError, match="no backward on a CPU"):
        model(random_tokens(1, 4))
