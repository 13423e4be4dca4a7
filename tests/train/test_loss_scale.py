"""float16: the loss is scaled so that small gradients count, and a step that overflows is left out."""

import math

import pytest
import torch

from lmlab.errors import Failed
from lmlab.train.loss_scale import LEAST, STEPS, LossScale


def test_it_halves_when_gradients_overflow_and_doubles_after_many_steps_that_do_not():
    scale = LossScale(True, 1024.0)
    assert scale.overflown(3.0, math.inf)
    assert scale.overflown(3.0, math.nan)
    assert scale.scale == 256
    assert not any(scale.overflown(3.0, 1.0) for _ in range(STEPS - 1))
    assert scale.scale == 256
    assert not scale.overflown(3.0, 1.0)
    assert scale.scale == 512
    again = LossScale(True, 1.0)
    again.load(scale.state())
    assert again.state() == scale.state()


def test_an_overflow_begins_the_count_anew():
    scale = LossScale(True, 1024.0)
    for norm in (*[1.0] * (STEPS - 1), math.inf, *[1.0] * (STEPS - 1)):
        scale.overflown(3.0, norm)
    assert scale.scale == 512


def test_a_loss_that_is_no_number_is_not_its_matter():
    scale = LossScale(True, 1024.0)
    assert not scale.overflown(math.nan, math.nan)
    assert scale.scale == 1024


def test_where_no_scale_helps_the_run_stops():
    scale = LossScale(True, 2 * LEAST)
    assert scale.overflown(3.0, math.inf)
    with pytest.raises(Failed, match="gradients overflow at every loss scale"):
        scale.overflown(3.0, math.inf)


def test_gradients_are_divided_without_losing_a_bit():
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, 1e-30, 3e30])
    LossScale(True, 65536.0).unscale([weight])
    assert torch.equal(weight.grad, torch.tensor([1.0, 1e-30, 3e30]) / 65536)
    LossScale(False, 65536.0).unscale([weight])
    assert torch.equal(weight.grad, torch.tensor([1.0, 1e-30, 3e30]) / 65536)
