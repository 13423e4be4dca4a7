"""A running mean of the weights beside training (EMA): what is measured and saved as the model where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmlab.train.pieces import Saved
from lmlab.train.sharded import local


class Average:
    """m <- d m + (1 - d) w after every step, of the trained parameters; the first steps' d is smaller, (1 + n) / (10 + n),
    so that the random beginning is soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.named: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().clone() for name, p in self.named.items()}

    @torch.no_grad()
    def update(self) -> None:
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        means = [local(self.mean[name]) for name in self.named]
        torch._foreach_lerp_(means, [local(p) for p in self.named.values()], 1 - keep)

    @torch.no_grad()
    def put(self) -> None:
        """The network holds the mean from here on."""
        for name, parameter in self.named.items():
            local(parameter).copy_(local(self.mean[name]))

    @torch.no_grad()
    def exchange(self) -> None:
        """Weights and mean change places: twice is as before, to the bit."""
        for name, parameter in self.named.items():
            held, mean = local(parameter), local(self.mean[name])
            kept = held.clone()
            held.copy_(mean)
            mean.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """To be kept with a checkpoint; `restore` takes it back."""
        return {**self.mean, "#steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def restore(self, saved: Saved, group: str) -> None:
        """Take back what stands in a checkpoint under `group`: of each tensor this rank's part."""
        self.steps = int(saved.read(f"{group}/#steps"))
        for name, mean in self.mean.items():
            local(mean).copy_(saved.part(f"{group}/{name}", mean))


_OF: WeakKeyDictionary[nn.Module, Average] = WeakKeyDictionary()
"""Of the networks that are in training."""


@contextmanager
def beside(network: nn.Module, average: Average | None) -> Iterator[None]:
    """In the block this mean (None: none) is what `averaged` shows of a network."""
    if average is not None:
        _OF[network] = average
    try:
        yield
    finally:
        _OF.pop(network, None)


@contextmanager
def averaged(network: nn.Module) -> Iterator[None]:
    """In the block a network in training holds what would be saved of it now: its running mean, if it has one. Of several
    ranks all enter, each with its part."""
    average = _OF.get(network)
    if average is not None:
        average.exchange()
    try:
        yield
    finally:
        if average is not None:
            average.exchange()
