"""Bytes that an optimizer's step makes beside weights, gradients and state: those of Muon, which turns whole matrices."""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import without_storage
from lmlab.train.muon import Muon
from lmlab.train.optimizer import is_hidden_matrix
from lmlab.train.planner.living import Living

Matrices = tuple[tuple[tuple[int, ...], int], ...]
"""How many matrices, or stacks of experts' matrices, there are of each shape."""


def matrices_of(shape: ModelConfig, share: float = 1.0) -> Matrices:
    """The hidden matrices of a model, or of a share of its blocks, none left out of what is cut in the middle."""
    counts: dict[tuple[int, ...], int] = {}
    for name, parameter in without_storage(shape).named_parameters():
        if is_hidden_matrix(name, parameter):
            counts[tuple(parameter.shape)] = counts.get(tuple(parameter.shape), 0) + 1
    return tuple(sorted((each, math.ceil(count * share - 1e-9)) for each, count in counts.items()))


@functools.lru_cache(maxsize=1024)
def muon_bytes(matrices: Matrices, dtype: torch.dtype) -> int:
    """Most bytes alive in a step of Muon whose iteration is made in `dtype`, beside weights, gradients and momenta: found by
    taking the step on tensors without values. Every rank turns whole matrices, whatever part of them it keeps."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        parameters = [nn.Parameter(torch.empty(shape)) for shape, count in matrices for _ in range(count)]
        optimizer, living = Muon([{"params": parameters}], dtype=dtype), Living()
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
            optimizer.state[parameter]["momentum"] = torch.empty_like(parameter)
            living.leave_out((parameter, parameter.grad, optimizer.state[parameter]["momentum"]))
        with living:
            optimizer.step()
        return living.peak
