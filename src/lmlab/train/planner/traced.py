"""Activation bytes of a training step, found by running it on tensors that have shapes and no values.

Nothing is guessed about which operation keeps what: autograd decides on fake tensors as it does on real ones, and every
storage that lives is counted. Two depths are run and the rest follows, since each further layer adds the same.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmlab.model.config import ModelConfig
from lmlab.objective.cross_entropy import rows_a_chunk


class Living(TorchDispatchMode):
    """Counts the bytes of every storage that operations make, while it lives: `bytes` now, `peak` at most; `ungraded` and
    `ungraded_peak` the same without gradients of parameters, from when they are said to be one."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = self.ungraded = self.ungraded_peak = 0
        self._known: Any = weakref.WeakKeyDictionary()

    def leave_out(self, tensors: Any) -> None:
        """Not to be counted: what was there before."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = [0]

    def start_again(self) -> None:
        """Peaks from here on."""
        self.peak, self.ungraded_peak = self.bytes, self.ungraded

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        counted = self._known[storage] = [size]
        self.bytes += size
        self.ungraded += size
        self.peak = max(self.peak, self.bytes)
        self.ungraded_peak = max(self.ungraded_peak, self.ungraded)
        weakref.finalize(storage, self._remove, size, counted)

    def _remove(self, size: int, counted: list[int]) -> None:
        self.bytes -= size
        self.ungraded -= counted[0]

    def gradient(self, tensor: Tensor) -> None:
        """This is a parameter's gradient."""
        counted = self._known[tensor.untyped_storage()]
        self.ungraded -= counted[0]
        counted[0] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return made


class Activations(NamedTuple):
    """Most bytes alive beside weights and optimizer state: in `forward`, the loss included; in `backward` of a step's only
    micro-batch, where gradients come as activations go and are counted as they come; in `later`, the backward pass of a
    micro-batch that is not the first, whose gradients were there before and are not counted."""

    forward: float
    backward: float
    later: float

    def plus(self, other: Activations, times: float = 1.0) -> Activations:
        return Activations(*(a + times * b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Depth:
    """`base`: of one block (a period of blocks, with an encoder's one beside it); `block`, `encoder_block`: what each more
    adds; `blocks`, `encoder_blocks`: how many there are."""

    base: Activations
    block: Activations
    encoder_block: Activations
    blocks: float
    encoder_blocks: float

    @property
    def total(self) -> Activations:
        return self.base.plus(self.block, self.blocks - 1).plus(self.encoder_block, max(0.0, self.encoder_blocks - 1))


def activations(
    shape: ModelConfig, rows: int, length: int, precision: str, recompute: str = "none", kernel: str = "auto"
) -> Depth:
    """Of a micro-batch of `rows` rows of `length` tokens: what is kept for the backward pass, and what the loss or a block
    needs beside it. Of a mixture of experts, whose shapes depend on values, a dense feed-forward of the width that a token
    uses stands in.
    """
    dense = _dense(shape)
    deep = len(dense.attention) if isinstance(dense.attention, (list, tuple)) else 1
    traced = functools.partial(
        _by_rows, rows=rows, length=length, precision=precision, recompute=recompute, kernel=kernel
    )
    base = traced(_deep(dense, deep, 1))
    nothing = Activations(0, 0, 0)
    beside = traced(_deep(dense, deep, 2)).plus(base, -1) if dense.has_encoder else nothing
    blocks, encoder_blocks = dense.sizes().layers / deep, dense.sizes(encoder=True).layers if dense.has_encoder else 0
    return Depth(base, traced(_deep(dense, 2 * deep, 1)).plus(base, -1), beside, blocks, encoder_blocks)


def _deep(shape: ModelConfig, layers: int, encoder_layers: int) -> ModelConfig:
    changes: dict[str, Any] = {"layers": layers}
    if shape.has_encoder:
        changes["encoder_layers"] = encoder_layers
    return ModelConfig.model_validate({**shape.model_dump(), **changes})


def _dense(shape: ModelConfig) -> ModelConfig:
    """The same with every feed-forward dense; where only every n-th block has experts, of the mean width."""
    moe = shape.moe
    if moe is None:
        return shape
    wide = (moe.top_k + moe.shared_experts) * (moe.d_ff or shape.sizes().d_ff)
    blocks = [wide if shape.has_experts(layer) else shape.sizes().d_ff for layer in range(shape.sizes().layers)]
    return ModelConfig.model_validate({**shape.model_dump(), "moe": None, "d_ff": round(sum(blocks) / len(blocks))})


def _by_rows(shape: ModelConfig, *, rows: int, length: int, **more: Any) -> Activations:
    """Many rows by what two and three times the loss's chunk of tokens show: beyond a chunk each row adds the same."""
    few = -(-2 * rows_a_chunk(shape.vocab_size) // length)
    if rows <= few + 1:
        return _traced(shape, rows=rows, length=length, **more)
    base = _traced(shape, rows=few, length=length, **more)
    more_rows = max(1, few // 2)
    step = _traced(shape, rows=few + more_rows, length=length, **more).plus(base, -1)
    return base.plus(step, (rows - few) / more_rows)


@functools.lru_cache(maxsize=4096)
def _traced(shape: ModelConfig, *, rows: int, length: int, precision: str, recompute: str, kernel: str) -> Activations:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lmlab.model.transformer import Transformer
    from lmlab.objective.batch import Batch
    from lmlab.objective.language_model import LanguageModel
    from lmlab.train.parallel import Layout, ParallelConfig
    from lmlab.train.parallel.apply import parallelize
    from lmlab.train.parallel.eight_bits import to_float8
    from lmlab.train.step import autocast, make_forward

    # Torch readies its backward passes once a process, and for a GPU if it finds one: fake tensors pretend that there is one.
    # With its threads a process could not be forked and train.
    torch.ones((), requires_grad=True).backward()
    with FakeTensorMode():
        network, objective = Transformer(shape), LanguageModel()
        network.kernel = kernel  # type: ignore[assignment]
        if precision == "float8":  # not by `parallelize`, which asks whether it is here
            to_float8(network)
        parallelize(network, Layout(ParallelConfig(recompute=recompute)))  # type: ignore[arg-type]
        tokens = torch.zeros(rows, length, dtype=torch.long)
        places, real = torch.arange(length).expand(rows, length), torch.ones(rows, length, dtype=torch.bool)
        source = {}
        if shape.has_encoder:
            source = {"encoder_tokens_BS": tokens, "encoder_segments_BS": tokens, "encoder_positions_BS": places}
        batch = Batch(tokens, tokens, real, segments_BT=tokens, positions_BT=places, **source)
        living = Living()
        living.leave_out([*network.parameters(), *network.buffers(), tokens, places, real])
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: living.gradient(p.grad))
        with living:
            with autocast(precision):
                sums, _, _ = make_forward(network, objective, False)(batch)
            total = sum(sums.values())
            forward = living.peak
            living.start_again()
            total.backward()  # type: ignore[union-attr]
        return Activations(forward, living.peak, living.ungraded_peak)
