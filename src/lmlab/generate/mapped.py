"""Weights that lie in their file: used where they are mapped, and their pages given back once they are laid out.

safetensors files are mapped into memory, not read: a tensor's pages come from the file when something looks at them, and
stand in this process beside what is made of them. `untouched` says of a model that was just loaded that nothing has
written to its weights. Within it

- `give_back` returns the pages of a tensor that has been laid out; a later look fetches them from the file again,
- `as_it_is` takes a tensor for inference without a copy, where a model in training needs one.

Of tensors that are not mapped from a file (random weights, older .bin files, converted ones) nothing is given back.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

Ranges = list[tuple[int, int]]
"""(first, end) addresses."""

_given: ContextVar[Ranges | None] = ContextVar("given", default=None)

_DONTNEED = 4
"""Linux's MADV_DONTNEED: of a private mapping of a file, the file's own content comes back at the next look."""


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """For the time of laying out a model whose weights are still what its file holds. What was written to them before
    would be lost."""
    ranges = _files(model.parameters())
    for first, end in ranges:  # what was looked at in reading: experts that were stacked, copies of tied weights
        _return(first, end)
    given = _given.set(ranges)
    try:
        yield
    finally:
        _given.reset(given)


def is_untouched() -> bool:
    """Whether a model is being laid out that nothing has written to."""
    return _given.get() is not None


def as_it_is(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in a type: itself within `untouched`, where it has the type already; else a copy."""
    return weight.detach().to(dtype, copy=not is_untouched())


def give_back(weight: Tensor) -> None:
    """Return the whole pages of a tensor to the system, within `untouched` and where a file holds them."""
    ranges = _given.get()
    if not ranges or not weight.is_contiguous():
        return
    first, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
    if any(a <= first and end <= b for a, b in ranges):
        _return(first, end)


def _return(first: int, end: int) -> None:
    """The whole pages between two addresses of a mapped file."""
    first, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _DONTNEED)


def _files(weights: Iterable[Tensor]) -> Ranges:
    """Where in memory safetensors files are mapped that hold one of the weights; none where the system does not say."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: Ranges = []
    for line in lines:
        if line.endswith(".safetensors"):
            span, mode = line.split(maxsplit=2)[:2]
            if mode.endswith("p"):
                first, end = (int(each, 16) for each in span.split("-"))
                found.append((first, end))
    held = [each.data_ptr() for each in weights if each.device.type == "cpu"]
    return [(a, b) for a, b in found if any(a <= place < b for place in held)]
