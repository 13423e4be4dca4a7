"""Activation bytes of a training step, found by running it on tensors that have shapes and no values.

Nothing is guessed about which operation keeps what: autograd decides on fake tensors as it does on real ones, and every
storage that lives is counted. Two depths are run and the rest follows, since each further layer adds the same.
"""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lmlab.model.config import ModelConfig
from lmlab.objective.cross_entropy import rows_a_chunk
from lmlab.train.planner.living import Living
from lmlab.train.planner.pretended import Pretended, blank, pretended, spread_evenly


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


@dataclass(frozen=True)
class Cut:
    """What a trace needs to know of how rows and experts are divided: `context` ranks with some tokens of every row each, by
    `method`; `expert` ranks with some experts each."""

    context: int = 1
    method: str = "gather"
    expert: int = 1


WHOLE = Cut()


def activations(
    shape: ModelConfig,
    rows: int,
    length: int,
    precision: str,
    recompute: str = "none",
    kernel: str = "auto",
    cut: Cut = WHOLE,
) -> Depth:
    """Of a micro-batch of `rows` rows of `length` tokens, of which a rank may have a part: what is kept for the backward pass,
    and what the loss or a block needs beside it. Experts take equally many tokens each, since shapes would else depend on
    values.
    """
    deep = len(shape.attention) if isinstance(shape.attention, (list, tuple)) else 1
    deep = deep if shape.moe is None else math.lcm(deep, shape.moe.every)
    traced = functools.partial(
        _by_rows, rows=rows, length=length, precision=precision, recompute=recompute, kernel=kernel, cut=cut
    )
    base = traced(_deep(shape, deep, 1))
    nothing = Activations(0, 0, 0)
    beside = traced(_deep(shape, deep, 2)).plus(base, -1) if shape.has_encoder else nothing
    blocks, encoder_blocks = shape.sizes().layers / deep, shape.sizes(encoder=True).layers if shape.has_encoder else 0
    return Depth(base, traced(_deep(shape, 2 * deep, 1)).plus(base, -1), beside, blocks, encoder_blocks)


def _deep(shape: ModelConfig, layers: int, encoder_layers: int) -> ModelConfig:
    changes: dict[str, Any] = {"layers": layers}
    if shape.has_encoder:
        changes["encoder_layers"] = encoder_layers
    return ModelConfig.model_validate({**shape.model_dump(), **changes})


def _by_rows(shape: ModelConfig, *, rows: int, length: int, cut: Cut, **more: Any) -> Activations:
    """Many rows by what two and three times the loss's chunk of tokens show: beyond a chunk each row adds the same."""
    few = -(-2 * rows_a_chunk(shape.vocab_size) * cut.context // length)
    if rows <= few + 1:
        return _traced(shape, rows=rows, length=length, cut=cut, **more)
    base = _traced(shape, rows=few, length=length, cut=cut, **more)
    more_rows = max(1, few // 2)
    step = _traced(shape, rows=few + more_rows, length=length, cut=cut, **more).plus(base, -1)
    return base.plus(step, (rows - few) / more_rows)


@functools.lru_cache(maxsize=4096)
def _traced(
    shape: ModelConfig, *, rows: int, length: int, precision: str, recompute: str, kernel: str, cut: Cut = WHOLE
) -> Activations:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lmlab.model.transformer import Transformer
    from lmlab.objective.language_model import LanguageModel
    from lmlab.train.parallel import Layout, ParallelConfig
    from lmlab.train.parallel.apply import parallelize
    from lmlab.train.parallel.eight_bits import to_float8
    from lmlab.train.step import autocast, make_forward

    # Torch readies its backward passes once a process, and for a GPU if it finds one: fake tensors pretend that there is one.
    # With its threads a process could not be forked and train.
    torch.ones((), requires_grad=True).backward()
    data = math.lcm(cut.expert, cut.context) // cut.context
    size = data * cut.context
    given: dict[str, Any] = {"context": cut.context, "context_method": cut.method, "expert": cut.expert}
    config = ParallelConfig(data=data, recompute=recompute, **given)  # type: ignore[arg-type]
    with contextlib.ExitStack() as within:
        layout = Layout(config) if size == 1 else Pretended(config, within.enter_context(pretended(0, size)))
        within.enter_context(FakeTensorMode())
        network, objective = Transformer(shape), LanguageModel()
        network.kernel = kernel  # type: ignore[assignment]
        if precision == "float8":  # not by `parallelize`, which asks whether it is here
            to_float8(network)
        parallelize(network, layout)
        spread_evenly(network, layout)
        whole = blank(shape, rows, length)
        batch = layout.cut(whole)
        living = Living()
        living.leave_out([*network.parameters(), *network.buffers()])
        for given_or_cut in (whole, batch):
            living.leave_out(each for each in vars(given_or_cut).values() if isinstance(each, torch.Tensor))
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: living.gradient(p.grad))
        with living:
            with autocast(precision):
                sums, _, found = make_forward(network, objective, False)(batch)
            total = sum(sums.values()) + found.get("penalty", 0.0)
            forward = living.peak
            living.start_again()
            total.backward()  # type: ignore[union-attr]
        return Activations(forward, living.peak, living.ungraded_peak)
