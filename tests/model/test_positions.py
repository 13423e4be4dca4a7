"""Position formulas against their definitions, written out in loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import make, random_tokens

from lmlab.model.attention import Attention, Place
from lmlab.model.config import ModelConfig, RopeScaling
from lmlab.model.position import (
    ROTATIONS,
    alibi_slopes,
    relative_bucket,
    rotary_table,
    scaled_frequencies,
    sinusoid,
)
from lmlab.model.seeing import Alibi, Buckets, Sight


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_a_rotation_turns_pairs_as_complex_numbers_and_so_does_its_gradient(pairing: str) -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(1, 5, 1, 4, dtype=torch.float64)

    def by_definition(x: torch.Tensor) -> torch.Tensor:
        pairs = x.unflatten(-1, (2, 4)).mT if pairing == "half" else x.unflatten(-1, (4, 2))
        turned = torch.view_as_real(torch.complex(*pairs.unbind(-1)) * torch.exp(1j * angle))
        return (turned.mT if pairing == "half" else turned).flatten(-2)

    found, wanted = ROTATIONS[pairing](x, angle.cos(), angle.sin()), by_definition(x)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(each, x, upstream)[0] for each in (found, wanted)))
    with torch.inference_mode():
        assert torch.equal(ROTATIONS[pairing](x.detach(), angle.cos(), angle.sin()), found)


@settings(max_examples=40, deadline=None)
@given(
    pairing=st.sampled_from(["half", "interleaved"]),
    first=st.integers(0, 40),
    second=st.integers(0, 40),
    shift=st.integers(0, 40),
    dim=st.sampled_from([2, 8, 14]),
)
def test_rotated_scores_depend_on_the_distance_only(
    pairing: str, first: int, second: int, shift: int, dim: int
) -> None:
    cos, sin = rotary_table(100, dim, 100.0)
    q, k = torch.randn(2, 1, 1, 1, dim, generator=torch.Generator().manual_seed(dim)).unbind()

    def score(i: int, j: int) -> torch.Tensor:
        turn = ROTATIONS[pairing]
        return (turn(q, cos[i], sin[i]) * turn(k, cos[j], sin[j])).sum()

    torch.testing.assert_close(score(first, second), score(first + shift, second + shift), atol=1e-4, rtol=1e-4)


def test_interleaved_pairs_are_the_half_split_ones_in_another_order() -> None:
    cos, sin = rotary_table(9, 8, 100.0)
    x = torch.randn(1, 9, 2, 8)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    half = ROTATIONS["half"](x[..., order], cos[None, :, None], sin[None, :, None])
    whole = ROTATIONS["interleaved"](x, cos[None, :, None], sin[None, :, None])
    torch.testing.assert_close(whole[..., order], half)
    angle = torch.tensor(3 * 100.0 ** (-2 / 8))  # position 3, the pair (2, 3)
    a, b = x[0, 3, 0, 2], x[0, 3, 0, 3]
    torch.testing.assert_close(whole[0, 3, 0, 2], a * angle.cos() - b * angle.sin())


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_a_model_of_rotations_does_not_know_where_it_stands(pairing: str, fraction: float) -> None:
    model = make(rope_pairing=pairing, rope_fraction=fraction)
    with torch.inference_mode():
        here = model(random_tokens(1, 10), positions_BT=torch.arange(10)[None]).logits()
        there = model(random_tokens(1, 10), positions_BT=torch.arange(10)[None] + 13).logits()
        closer = model(random_tokens(1, 10), positions_BT=torch.arange(10)[None] // 2).logits()
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(here, closer, atol=1e-3)


def test_stretched_frequencies() -> None:
    plain = 10000.0 ** (-torch.arange(0, 64, 2).float() / 64)

    def of(**settings) -> tuple[torch.Tensor, float]:
        return scaled_frequencies(64, 10000.0, RopeScaling(**settings), 4096)

    torch.testing.assert_close(of(kind="linear", factor=4.0)[0], plain / 4)
    ntk = of(kind="ntk", factor=4.0)[0]
    assert ntk[0] == 1 and ntk[-1] == pytest.approx(float(plain[-1]) / 4, rel=1e-4)
    for kind, kept in (("yarn", 4), ("llama3", 4)):
        found = of(kind=kind, factor=8.0, original_context=512)[0]
        torch.testing.assert_close(found[:kept], plain[:kept])
        torch.testing.assert_close(found[-4:], plain[-4:] / 8)
        assert bool(((found <= plain * 1.0001) & (found >= plain / 8.0001)).all())
    assert of(kind="yarn", factor=8.0)[1] == pytest.approx(0.1 * math.log(8) + 1)
    assert of(kind="yarn", factor=8.0, attention_factor=1.5)[1] == 1.5
    cos, _ = rotary_table(4, 64, 10000.0, RopeScaling(kind="yarn", factor=8.0, attention_factor=1.5))
    assert float(cos[0, 0]) == 1.5


@pytest.mark.parametrize("heads", [1, 2, 8, 16])
def test_slopes_of_a_power_of_two_are_a_geometric_sequence(heads: int) -> None:
    assert alibi_slopes(heads) == [2 ** (-8 * h / heads) for h in range(1, heads + 1)]


@given(heads=st.integers(1, 130))
def test_other_numbers_of_heads_take_every_other_slope_of_the_next_power(heads: int) -> None:
    power = 2 ** (heads.bit_length() - 1)
    slopes, next_ones = alibi_slopes(heads), alibi_slopes(2 * power)
    assert len(slopes) == heads == len(set(slopes))
    assert slopes[:power] == alibi_slopes(power)
    assert slopes[power:] == next_ones[::2][: heads - power]


def test_the_alibi_of_twelve_heads() -> None:
    """Worked by hand: eight heads 1/2 to 1/256, then 2^-0.5, 2^-1.5, 2^-2.5, 2^-3.5."""
    wanted = [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert alibi_slopes(12) == pytest.approx(wanted)
    bias = Alibi(torch.tensor(alibi_slopes(12))).dense(torch.tensor([[[0, -1], [1, 0]]]))
    assert bias[0, 0].tolist() == [[0, -0.5], [-0.5, 0]]


def bucket_by_definition(distance: int, buckets: int, longest: int, bidirectional: bool) -> int:
    """1910.10683, section 2.1, and its code, for one pair; distance is query minus key."""
    base = 0
    if bidirectional:
        buckets //= 2
        base = buckets if distance < 0 else 0
        distance = abs(distance)
    distance = max(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return base + distance
    far = exact + int(math.log(distance / exact) / math.log(longest / exact) * (buckets - exact))
    return base + min(far, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (16, 20), (8, 100)])
def test_buckets_are_the_papers(buckets: int, longest: int, bidirectional: bool) -> None:
    distances = torch.arange(-300, 301)
    found = relative_bucket(distances, buckets, longest, bidirectional).tolist()
    wanted = [bucket_by_definition(d, buckets, longest, bidirectional) for d in distances.tolist()]
    # On a bucket's very edge float32 and float64 may differ by one bucket.
    assert sum(a != b for a, b in zip(found, wanted)) <= 4 and max(abs(a - b) for a, b in zip(found, wanted)) <= 1
    assert min(found) == 0 and max(found) == buckets - 1
    table = torch.arange(float(buckets))[:, None]
    dense = Buckets(table, longest, bidirectional).dense(torch.tensor([[[0, 1, 2]]]))
    assert dense.flatten().tolist() == [0, 1, 2]


def test_sinusoids() -> None:
    found = sinusoid(torch.tensor([0, 5, -5]), 8)
    for i in range(4):
        angle = 5 / 10000 ** (2 * i / 8)
        assert found[1, 2 * i] == pytest.approx(math.sin(angle)) and found[1, 2 * i + 1] == pytest.approx(
            math.cos(angle)
        )
        assert found[2, 2 * i] == -found[1, 2 * i]
    assert found[0].tolist() == [0, 1] * 4


def test_transformer_xl_scores_are_the_four_terms() -> None:
    """Against a double loop over queries and keys of 1901.02860, section 3.3: (a) to (d)."""
    config = ModelConfig(
        layers=1, d_model=12, heads=2, head_dim=4, vocab_size=5, context_length=9, position="transformer-xl"
    )
    generator, T, K = torch.Generator().manual_seed(0), 6, 4
    attention = Attention(config)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(1, T, 12, generator=generator)
    sight = Sight(True, T, T, x.device)
    place = Place(
        sight, "math", relative_RD=sinusoid(torch.arange(1 - T, T), 12), distance_BTS=sight.distance() + T - 1
    )
    with torch.no_grad():
        found = attention(x, place)
        q, k, v = (each(x).view(T, 2, K) for each in (attention.q, attention.k, attention.v))
        mixed = torch.zeros(T, 2, K)
        for h in range(2):
            for i in range(T):
                scores = []
                for j in range(i + 1):
                    r = attention.relative(sinusoid(torch.tensor(i - j), 12)).view(2, K)[h]  # type: ignore[misc]
                    content = q[i, h] @ k[j, h] + attention.content_bias[h] @ k[j, h]
                    scores.append((content + q[i, h] @ r + attention.position_bias[h] @ r) / K**0.5)
                mixed[i, h] = torch.stack(scores).softmax(0) @ v[: i + 1, h]
        torch.testing.assert_close(found[0], attention.out(mixed.view(T, 8)), atol=1e-4, rtol=1e-4)
