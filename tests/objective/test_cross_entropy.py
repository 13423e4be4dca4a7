"""The chunked cross-entropy is the textbook one, in value and gradients, for any chunk; labels come from lengths."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.objective import cross_entropy
from lmlab.objective.batch import pad_rows
from lmlab.objective.cross_entropy import cross_entropy_by_row, linear_cross_entropy, token_logprobs


def problem(rows: int, width: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator).requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) < 0.7)
    return hidden, head, targets, weights


@contextmanager
def taken(columns: int) -> Iterator[None]:
    """Logits are worked on so many columns at a time."""
    with mock.patch.dict(cross_entropy.CHUNKS, cpu=cross_entropy.Chunks(1024, 1 << 24, columns)):
        yield


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 9),
    vocabulary=st.integers(2, 30),
    chunk=st.integers(1, 50),
    columns=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_value_and_gradients_are_the_textbook_s(
    rows: int, width: int, vocabulary: int, chunk: int, columns: int, seed: int
) -> None:
    hidden, head, targets, weights = problem(rows, width, vocabulary, seed)
    wanted = (F.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    with taken(columns):
        found = linear_cross_entropy(hidden, head, targets, weights, chunk=chunk)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    scale = 0.37  # what comes from above the loss must reach both gradients
    for a, b in zip(
        torch.autograd.grad(found * scale, (hidden, head)), torch.autograd.grad(wanted * scale, (hidden, head))
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, head, targets, weights, chunk=chunk), wanted)


def test_under_autocast_it_is_near_and_its_sum_is_float32() -> None:
    hidden, head, targets, weights = problem(30, 16, 40, 0)
    exact = linear_cross_entropy(hidden, head, targets, weights)
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_cross_entropy(hidden, head, targets, weights)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    softcap=st.sampled_from([None, 3.0]),
    size=st.sampled_from([1.0, 30.0]),
    z_weight=st.sampled_from([0.0, 0.3]),
)
def test_a_bias_and_large_logits(rows: int, columns: int, softcap: float | None, size: float, z_weight: float) -> None:
    """Logits of some hundreds, of which a piece's largest may be far below the row's."""
    hidden, head, targets, weights = (
        each.double() if each.is_floating_point() else each for each in problem(rows, 6, 14, rows)
    )
    hidden, head = (each.detach().mul(size).requires_grad_() for each in (hidden, head))
    bias = torch.linspace(-size, size, 14, dtype=torch.float64, requires_grad=True)
    logits = hidden @ head.T + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    wanted = wanted + z_weight * (logits.logsumexp(-1).square() * weights).sum()
    with taken(columns):
        found = cross_entropy_by_row(
            hidden, head, targets, weights, bias_V=bias, softcap=softcap, chunk=7, z_weight=z_weight
        ).total
    torch.testing.assert_close(found, wanted)
    got, expected = (torch.autograd.grad(each, (hidden, head, bias)) for each in (found, wanted))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9 * size, rtol=1e-7)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_it_is_the_same(precision: str) -> None:
    """Several chunks and pieces, with ends of other sizes."""
    hidden, head, targets, weights = problem(50, 16, 70, 3)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return linear_cross_entropy(hidden, head, targets, weights, chunk=16)

    with taken(32), mock.patch.object(cross_entropy, "_compile", wraps=cross_entropy._compile) as used:
        totals = torch.compile(loss)(), loss()
        found, wanted = (torch.autograd.grad(total, (hidden, head)) for total in totals)
    assert used.called
    for a, b in zip((totals[0], *found), (totals[1], *wanted), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 if precision == "float32" else 0.05, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), temperature=st.floats(0.3, 3))
def test_token_logprobs_are_log_softmax_at_the_temperature(seed: int, temperature: float) -> None:
    hidden, head, targets, _ = problem(9, 6, 20, seed)
    wanted = ((hidden @ head.T) / temperature).log_softmax(-1)[torch.arange(9), targets]
    torch.testing.assert_close(token_logprobs(hidden, head, targets, temperature), wanted, atol=1e-5, rtol=1e-5)


@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4),
    pad=st.integers(0, 5),
    multiple=st.integers(1, 16),
)
def test_padding_never_trains_whatever_its_id(rows: list[list[int]], pad: int, multiple: int) -> None:
    """The pad may equal a real token (its end of text): labels come from lengths."""
    flags = [[index % 3 != 1 for index in range(len(row))] for row in rows]
    batch = pad_rows(list(zip(rows, flags)), pad, multiple)
    assert batch.tokens_BT.shape[1] % multiple == 0
    for index, (row, trained) in enumerate(zip(rows, flags)):
        n = len(row) - 1
        assert batch.tokens_BT[index, :n].tolist() == row[:-1]
        assert batch.targets_BT[index, :n].tolist() == row[1:]
        assert batch.mask_BT[index].tolist() == trained[1:] + [False] * (batch.mask_BT.shape[1] - n)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    chunk=st.integers(1, 25),
    z_weight=st.floats(1e-4, 2.0),
    softcap=st.sampled_from([None, 3.0]),
)
def test_the_z_loss_is_log_z_squared(rows: int, chunk: int, z_weight: float, softcap: float | None) -> None:
    hidden, head, targets, weights = problem(rows, 5, 12, rows)
    logits = hidden @ head.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    nats = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    squares = (logits.logsumexp(-1).square() * weights).sum()
    found = cross_entropy_by_row(hidden, head, targets, weights, softcap=softcap, chunk=chunk, z_weight=z_weight)
    torch.testing.assert_close(found.total, nats + z_weight * squares)
    torch.testing.assert_close(torch.stack([found.nats_N.sum(), found.squares_N.sum()]), torch.stack([nats, squares]))
    wanted = torch.autograd.grad(nats + z_weight * squares, (hidden, head))
    got = torch.autograd.grad(found.total, (hidden, head))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            cross_entropy_by_row(hidden, head, targets, weights, softcap=softcap, chunk=chunk, z_weight=z_weight), found
        )
