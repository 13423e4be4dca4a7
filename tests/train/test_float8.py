"""Products in float8: their error against float64, what scales do, numbers that are none, and layouts that the hardware takes.

On CPUs the same numbers are multiplied in float32, which is held to torch's own product here, so all but speed is tested; a GPU's
demands are checked on tensors without values.
"""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lmlab.train import float8
from lmlab.train.float8 import GRADIENTS, VALUES, lacking, linear, product, quantise

ROUNDING = {VALUES: (2.0**-4, 2.0**-10), GRADIENTS: (2.0**-3, 2.0**-17)}
"""Half a unit in the last place: of a number that is normal, relative; of one that is not, absolute (2209.05433, table 1)."""
BFLOAT16 = 2.0**-8


def drawn(seed: int, shape: tuple[int, ...], spread: float, size: float) -> torch.Tensor:
    """Normal numbers over so many powers of two more, some of them zero, in bfloat16 already (float32)."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * torch.exp2(spread * torch.randn(shape, generator=draw)) * size
    return (x * (torch.rand(shape, generator=draw) > 0.1)).bfloat16().float()


def allowed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The most that rounding moves each number of x, which is scaled so that its largest is in the upper half (float64)."""
    relative, absolute = ROUNDING[dtype]
    scale = torch.finfo(dtype).max / 2 / float(x.abs().max().clamp_min(1e-38))
    return torch.maximum(relative * x.double().abs(), torch.tensor(absolute / scale, dtype=torch.float64))


def bound(a: torch.Tensor, a_type: torch.dtype, b: torch.Tensor, b_type: torch.dtype) -> torch.Tensor:
    """Of |a b^T| made in float8: both factors' rounding, and sums in float32."""
    da, db = allowed(a, a_type), allowed(b, b_type)
    a, b = a.double().abs(), b.double().abs()
    return da @ b.T + (a + da) @ db.T + a.shape[1] * 2.0**-22 * ((a + da) @ (b + db).T)


MATRICES = {
    "seed": st.integers(0, 10_000),
    "rows": st.integers(1, 70),
    "k": st.integers(1, 6),
    "n": st.integers(1, 6),
    "spread": st.floats(0, 4),
    "sizes": st.tuples(st.integers(-40, 20), st.integers(-40, 20), st.integers(-40, 20)),
}


@settings(deadline=None, max_examples=60)
@given(**MATRICES)
def test_all_three_products_are_within_the_formats_rounding(seed, rows, k, n, spread, sizes):
    x = drawn(seed, (rows, 16 * k), spread, 2.0 ** sizes[0]).requires_grad_()
    weight = drawn(seed + 1, (16 * n, 16 * k), spread, 2.0 ** sizes[1]).requires_grad_()
    gradient = drawn(seed + 2, (rows, 16 * n), spread, 2.0 ** sizes[2])
    made = linear(x, weight)
    made.backward(gradient.bfloat16())
    assert made.dtype == torch.bfloat16 and x.grad is not None and weight.grad is not None
    x, weight, x_grad, weight_grad = (each.detach().double() for each in (x, weight, x.grad, weight.grad))
    for found, wanted, most in (
        (made.detach().double(), x @ weight.T, bound(x, VALUES, weight, VALUES)),
        (x_grad, gradient.double() @ weight, bound(gradient, GRADIENTS, weight.T, VALUES)),
        (weight_grad, gradient.double().T @ x, bound(gradient.T, GRADIENTS, x.T, VALUES)),
    ):
        # What comes out is rounded to bfloat16, too; weights' gradients are not.
        assert ((found - wanted).abs() <= most + BFLOAT16 * (wanted.abs() + most) + 1e-37).all()
    # float32 in, float32 out: the gradient of a master weight is not rounded to bfloat16 on its way.
    assert (weight_grad - gradient.double().T @ x).abs().le(bound(gradient.T, GRADIENTS, x.T, VALUES) + 1e-37).all()


@settings(deadline=None, max_examples=30)
@given(**{name: MATRICES[name] for name in ("seed", "rows", "k", "n")}, bias=st.booleans(), batch=st.booleans())
def test_numbers_that_need_no_rounding_give_the_exact_products(seed, rows, k, n, bias, batch):
    """Small whole numbers: transposes, paddings and scales in the right places, to the last bit."""
    draw = torch.Generator().manual_seed(seed)
    shape = (2, rows, 16 * k) if batch else (rows, 16 * k)
    x = torch.randint(-2, 3, shape, generator=draw).float().requires_grad_()
    weight = torch.randint(-1, 2, (16 * n, 16 * k), generator=draw).float().requires_grad_()
    offset = torch.randint(-3, 4, (16 * n,), generator=draw).float().requires_grad_() if bias else None
    gradient = torch.randint(-1, 2, (*shape[:-1], 16 * n), generator=draw).float()
    plain = [None if each is None else each.detach().double().requires_grad_() for each in (x, weight, offset)]
    wanted = torch.nn.functional.linear(*plain)
    assume(wanted.abs().max() <= 256)  # whole numbers of bfloat16
    made = linear(x, weight, offset)
    torch.testing.assert_close(made.double(), wanted, rtol=0, atol=0)
    made.backward(gradient.bfloat16())
    wanted.backward(gradient.double())
    for own, other in zip((x, weight, offset), plain):
        if own is not None:
            exact = other.grad.abs() <= 256
            torch.testing.assert_close(own.grad.double()[exact], other.grad[exact], rtol=0, atol=0)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), size=st.integers(-130, 127), dtype=st.sampled_from([VALUES, GRADIENTS]))
def test_scales_are_powers_of_two_and_use_the_upper_half(seed, size, dtype):
    x = drawn(seed, (8, 16), 1.0, 1.0).bfloat16()
    x = (x / x.abs().max() * 1.99).bfloat16() * 2.0**size
    assume(x.abs().max().isfinite() and x.abs().max() > 0)
    found, back = quantise(x, dtype)
    assert math.frexp(float(back))[0] == 0.5 and found.dtype == dtype
    largest, most = float(found.float().abs().max()), torch.finfo(dtype).max
    assert largest <= most
    if size > -110:  # below, float32 has no scale that is large enough, and no more than its rounding is lost
        assert largest > most / 2 * (1 - 2.0**-3)
    moved = (found.double() * back.double() - x.double()).abs()
    lost = float(x.abs().max()) if size < -110 else 0.0
    assert (moved <= allowed(x, dtype) + lost).all()


@pytest.mark.parametrize("a_type", [VALUES, GRADIENTS])
def test_on_a_cpu_float32_gives_what_torchs_own_product_gives(a_type):
    """The call that a GPU gets, on tensors small enough for torch's slow one on CPUs."""
    a, a_scale = quantise(drawn(0, (32, 16), 1.0, 3.0), a_type)
    b, b_scale = quantise(drawn(1, (48, 16), 1.0, 0.1), VALUES)
    scales = {"scale_a": a_scale, "scale_b": b_scale}
    for dtype, close in ((torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)):
        theirs = torch._scaled_mm(a, b.t(), **scales, out_dtype=dtype, use_fast_accum=False)
        ours = product(a, a_scale, b.t(), b_scale, dtype)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close * float(theirs.abs().max()))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), rows=st.integers(1, 40), more=st.integers(1, 40), far=st.integers(0, 8))
def test_what_shares_a_tensor_does_not_change_a_product(seed, rows, more, far):
    """Why scales are powers of two: rows beside it, of up to some hundred times the size, leave a row's result as it was."""
    x = drawn(seed, (rows, 32), 0.0, 1.0)
    x = torch.where(x.abs() < 2.0**-4, torch.zeros(()), x)
    weight = drawn(seed + 1, (48, 32), 0.0, 1.0)
    beside = drawn(seed + 2, (more, 32), 0.0, 2.0**far)
    alone, together = linear(x, weight), linear(torch.cat((x, beside)), weight)[:rows]
    assert torch.equal(alone, together)
    weight = torch.where(weight.abs() < 2.0**-4, torch.zeros(()), weight)
    parts = torch.cat([linear(x, part) for part in weight.split(16)], dim=1)
    assert torch.equal(parts, linear(x, weight))  # a matrix that is cut among ranks by columns


def test_zeros_stay_zeros_and_give_gradients():
    x, weight = torch.zeros(5, 16, requires_grad=True), torch.zeros(32, 16, requires_grad=True)
    made = linear(x, weight)
    made.backward(torch.zeros(5, 32))
    for each in (made, x.grad, weight.grad):
        assert torch.equal(each.float(), torch.zeros(each.shape))
    assert linear(torch.zeros(0, 16), weight).shape == (0, 32)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["x", "weight", "gradient"])
def test_numbers_that_are_none_come_out_as_such(bad, where):
    """A step's loss or norm then says so, and the trainer leaves the weights alone."""
    x, weight, gradient = torch.randn(8, 16), torch.randn(32, 16), torch.randn(8, 32)
    {"x": x, "weight": weight, "gradient": gradient}[where][3, 5] = bad
    x.requires_grad_(), weight.requires_grad_()
    made = linear(x, weight)
    made.backward(gradient.bfloat16())
    for name, found in {"gradient": made, "weight": weight.grad, "x": x.grad}.items():
        assert found.isfinite().all() == (name == where)  # what is made without it
    if where != "gradient":
        assert not made[3].isfinite().any() if where == "x" else not made[:, 3].isfinite().any()


def test_only_what_is_asked_for_is_multiplied():
    """A frozen weight gets no gradient, nor is its product made."""
    x, weight = torch.randn(16, 16, requires_grad=True), torch.randn(16, 16)
    linear(x, weight).sum().backward()
    assert x.grad is not None and weight.grad is None
    x, weight = x.detach(), weight.requires_grad_()
    linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None


def on_a_gpu(a, a_scale, b, b_scale, dtype=torch.bfloat16):
    """torch's own checks of what a GPU takes (sizes, rows and columns, formats), on tensors that pretend to be there."""
    with FakeTensorMode():
        there = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in (a, a_scale, b, b_scale)
        ]
        assert product(*there, dtype).dtype == dtype


@pytest.mark.parametrize("rows", [1, 7, 48])
def test_a_gpu_takes_every_product(monkeypatch, rows):
    given = []
    monkeypatch.setattr(float8, "product", lambda *each: given.append(each) or product(*each))
    x, weight = torch.randn(rows, 32, requires_grad=True), torch.randn(64, 32, requires_grad=True)
    linear(x, weight, torch.zeros(64)).sum().backward()
    assert [(each[0].dtype, each[2].dtype) for each in given] == [(VALUES, VALUES), *[(GRADIENTS, VALUES)] * 2]
    for each in given:
        on_a_gpu(*each)
    a, a_scale, b, b_scale = given[0]
    with pytest.raises(RuntimeError, match="col_major"):  # so there are checks
        on_a_gpu(a, a_scale, b.contiguous(), b_scale)
    with pytest.raises(RuntimeError, match="divisible by 16"):
        on_a_gpu(a[:, :24].contiguous(), a_scale, b[:24].t().contiguous().t(), b_scale)


@pytest.mark.parametrize(
    ("cards", "device", "said"),
    [
        ([], "cpu", "found no GPU"),
        ([{"name": "A100", "capability": "8.0", "float8": False}], "cuda", "found A100 (8.0)"),
        ([{"name": "H100", "capability": "9.0", "float8": True}], "cpu", "trains on the CPU"),
    ],
)
def test_where_it_is_lacking_is_said_with_what_is_right(monkeypatch, cards, device, said):
    monkeypatch.setattr(float8, "gpus", lambda: cards)
    problem = lacking("float8", torch.device(device)) or ""
    assert "8.9 or later" in problem and problem.endswith(f"{said}; expected bfloat16")
    assert lacking("bfloat16", torch.device(device)) is None


def test_where_it_is_there_nothing_is_said(monkeypatch):
    monkeypatch.setattr(float8, "gpus", lambda: [{"name": "H100", "capability": "9.0", "float8": True}])
    assert lacking("float8", torch.device("cuda")) is None
