"""Sparse patterns against brute force, and what the parser refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import make, random_tokens, small

from lmlab.model.pattern import Pattern, parse_pattern
from lmlab.model.seeing import Sight


def seen_by_definition(kind: str, numbers: tuple[int, ...], i: int, j: int) -> bool:
    """1904.10509, section 4.3, the union of both heads; for j <= i."""
    if kind == "local":
        return 0 <= i - j < numbers[0]
    if kind == "strided":
        return j in range(max(0, i - numbers[0]), i + 1) or (i - j) % numbers[0] == 0
    if kind == "fixed":
        length, columns = numbers
        return i // length == j // length or j % length in range(length - columns, length)
    return True


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    kind = draw(st.sampled_from(["full", "local", "strided", "fixed"]))
    length = draw(st.integers(1, 9))
    return kind, {"full": (), "fixed": (length, draw(st.integers(1, length)))}.get(kind, (length,))


@settings(max_examples=60, deadline=None)
@given(pattern=patterns(), T=st.integers(1, 14), prefix=st.integers(0, 14))
def test_masks_are_the_definition(pattern: tuple[str, tuple[int, ...]], T: int, prefix: int) -> None:
    kind, numbers = pattern
    parsed = parse_pattern(f" {kind}({', '.join(map(str, numbers))})" if numbers else kind)
    assert parsed == Pattern(kind, numbers)
    found = Sight(True, T, T, torch.device("cpu"), prefix_BS=torch.full((1, T), prefix)).dense(parsed)
    assert found is not None
    for i in range(T):
        for j in range(T):
            if j <= i:
                assert bool(found[0, i, j]) == seen_by_definition(kind, numbers, i, j)
            elif j >= prefix:
                assert not found[0, i, j]
            elif kind == "local":
                assert bool(found[0, i, j]) == (j - i < numbers[0])


def test_layers_take_the_patterns_in_turn() -> None:
    config = small(layers=5, attention=("full", "local(3)"))
    assert [config.pattern(layer).kind for layer in range(5)] == ["full", "local", "full", "local", "full"]
    assert config.is_sparse and not small().is_sparse


def test_a_local_layer_reaches_no_further_than_its_window() -> None:
    model = make(layers=2, attention="local(3)")
    tokens, other = random_tokens(1, 12), random_tokens(1, 12)
    other[0, 4] = (other[0, 4] + 1) % 50
    with torch.inference_mode():
        same = torch.isclose(model(tokens).logits(), model(other).logits(), atol=1e-6).all(-1)[0]
    assert same.tolist() == [True] * 4 + [False] * 5 + [True] * 3  # two layers reach 2 x (3 - 1) further


def test_a_wide_window_is_full_attention() -> None:
    tokens = random_tokens(2, 12)
    with torch.inference_mode():
        full, wide = (make(attention=each)(tokens).logits() for each in ("full", "local(12)"))
    torch.testing.assert_close(full, wide)


def test_flops_fall_with_the_window() -> None:
    full, local = small().flops_per_token(20), small(attention="local(5)").flops_per_token(20)
    assert full - local == 12 * 2 * 32 * 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("locl(4)", r"unknown pattern; did you mean 'local\(W\)'"),
        ("local", r"expected local\(W\) with whole numbers above 0"),
        ("local(0)", "whole numbers above 0"),
        ("local(4, 5)", r"expected local\(W\)"),
        ("fixed(4)", r"expected fixed\(l, c\)"),
        ("fixed(4, 5)", "c 5 is more than the block l 4"),
        ("full(3)", "expected full with"),
        ("", "unknown pattern"),
    ],
)
def test_what_is_no_pattern_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pattern(text)
    with pytest.raises(ValueError, match=message if text else "at least one pattern"):
        small(attention=text)
