"""Bytes of tensors while they live, whatever makes them: on real tensors, on fake ones, on parts of a DTensor."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._guards import active_fake_mode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmlab.train.sharded import local


@dataclass
class _Counted:
    bytes: int
    ungraded: int


class Living(TorchDispatchMode):
    """Counts the bytes of every storage that operations make, while it lives: `bytes` now, `peak` at most; `ungraded` and
    `ungraded_peak` the same without gradients of parameters, from when they are said to be one. A storage that is given back
    and taken again (torch's FSDP does so with gathered weights) counts while it has memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.ungraded = self.ungraded_peak = 0
        self._known: Any = weakref.WeakKeyDictionary()
        self._mode: Any = None
        self._resize: Any = None

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Not to be counted: what was there before."""
        for tensor in tensors:
            self._known[local(tensor).untyped_storage()] = None

    def start_again(self) -> None:
        """Peaks from here on."""
        self.peak, self.ungraded_peak = self.bytes, self.ungraded

    def gradient(self, tensor: Tensor) -> None:
        """This is a parameter's gradient."""
        counted = self._known[local(tensor).untyped_storage()]
        self.ungraded -= counted.ungraded
        counted.ungraded = 0

    def _add(self, tensor: Tensor) -> None:
        storage = local(tensor).untyped_storage()
        if storage in self._known:
            return
        counted = self._known[storage] = _Counted(0, 0)
        weakref.finalize(storage, self._change, counted, 0)
        self._change(counted, storage.nbytes())

    def _change(self, counted: _Counted, size: int) -> None:
        self.bytes += size - counted.bytes
        self.ungraded += size - counted.ungraded
        counted.bytes, counted.ungraded = size, size
        self.peak = max(self.peak, self.bytes)
        self.ungraded_peak = max(self.ungraded_peak, self.ungraded)

    def __enter__(self) -> Any:
        self._mode, self._resize = active_fake_mode(), torch.UntypedStorage.resize_

        @functools.wraps(self._resize)
        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            found = self._resize(storage, size)
            if (counted := self._known.get(storage)) is not None:
                self._change(counted, storage.nbytes())
            return found

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(exc_type, exc_val, exc_tb)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # it takes itself apart, and its parts come here
        if self._mode is not None and func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]  # for fake tensors it makes a copy, which it does not for real ones
        made = func(*args, **(kwargs or {}))
        # A DTensor finds out shapes of whole tensors in a mode of its own, or on the meta device of the one that is there.
        if active_fake_mode() is self._mode:
            for leaf in tree_leaves(made):
                if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                    self._add(leaf)
        return made
