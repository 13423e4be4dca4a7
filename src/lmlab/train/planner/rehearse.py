"""A step of a layout as one of its ranks takes it, without the others and without values: shows that the layout can be built,
and what that rank holds. `lmlab plan --dry-run`."""

from __future__ import annotations

import gc
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.language_model import LanguageModel
from lmlab.train.optimizer import OptimizerConfig, make_optimizers
from lmlab.train.parallel import ParallelConfig
from lmlab.train.parallel.apply import blocks_of, parallelize
from lmlab.train.parallel.layout import Layout, misfits
from lmlab.train.parallel.pipeline import Pipeline
from lmlab.train.planner.living import Living
from lmlab.train.planner.pretended import Pretended, blank, pretended, spread_evenly
from lmlab.train.sharded import local
from lmlab.train.step import Tally, backward, make_forward


@dataclass(frozen=True)
class Rehearsal:
    """Of one rank: its `place` in the pipeline, the blocks that it has, the numbers of parameters and of optimizer state that
    it keeps between steps, and the most bytes of tensors that are alive in two steps (float32 weights included)."""

    rank: int
    place: int
    blocks: int
    parameters: int
    state: int
    peak: float


class _EveryToken(LanguageModel):
    """Every token carries loss, so that there is a count where there are no values."""

    def count(self, batch: Batch) -> dict[str, int]:
        return {"lm": batch.tokens_BT.numel()}


class _Counting(Pipeline):
    """Every schedule has a stage's micro-batches pass in order, and the loss follows at once: no value is needed."""

    counts: dict[int, int]

    def backward(self, batches: list[Any], scale: float = 1.0) -> Tally:
        self.counts = {}
        return super().backward(batches, scale)

    def _schedule(self) -> Any:
        schedule = super()._schedule()
        schedule._warmup_p2p = _shapes_are_known
        return schedule

    def which(self, place: int | None, number: Tensor) -> int:
        if place is None:
            return max(self.outputs)
        self.counts[place] = self.counts.get(place, -1) + 1
        return self.counts[place]


def _shapes_are_known(stages: list[Any], has_backward: bool, p2p_done: bool) -> None:
    """In place of the vote of a pipeline's ranks on whether all know the shapes that they will be sent: its result is read."""
    from torch.distributed.pipelining.stage import InferenceMode

    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC


def rehearse(
    shape: ModelConfig,
    config: ParallelConfig,
    ranks: int,
    rank: int,
    optimizer: OptimizerConfig,
    *,
    rows: int,
    length: int,
    micro_batches: int = 1,
    precision: str = "float32",
    kernel: str = "sdpa",
) -> Rehearsal:
    """Two steps of rank `rank` of `ranks`, forward, backward and optimizer, with `rows` rows of `length` tokens a micro-batch
    before `context` cuts them. Experts take equally many tokens each; gradients are not clipped, which holds nothing.

    In a process of its own, because torch remembers meshes of ranks as long as a process lives. Raises ValueError where
    `misfits` finds something, RuntimeError where the step failed, with what it said.
    """
    for problem in misfits(config, ranks, shape):
        raise ValueError(problem)
    more = {"rows": rows, "length": length, "micro_batches": micro_batches, "precision": precision, "kernel": kernel}
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, (shape, config, ranks, rank, optimizer), more))
    child.start()
    theirs.close()
    found: dict[str, Any]
    try:
        found = json.loads(ours.recv_bytes())
    except EOFError:
        found = {"error": "it ended without a word"}
    child.join()
    if "error" in found:
        raise RuntimeError(f"a step of rank {rank} of {ranks} failed: {found['error']}")
    return Rehearsal(**found)


def _child(pipe: Any, given: tuple[Any, ...], more: dict[str, Any]) -> None:
    said: dict[str, Any]
    try:
        said = vars(_rehearse(*given, **more))
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error.__cause__ or error}"}
    pipe.send_bytes(json.dumps(said).encode())


def _rehearse(
    shape: ModelConfig,
    config: ParallelConfig,
    ranks: int,
    rank: int,
    optimizer: OptimizerConfig,
    *,
    rows: int,
    length: int,
    micro_batches: int,
    precision: str,
    kernel: str,
) -> Rehearsal:
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.ones((), requires_grad=True).backward()  # see traced.py
    with pretended(rank, ranks) as world:
        layout = Pretended(config, world, shape)
        with FakeTensorMode() as fake:
            network = Transformer(shape)
        network.kernel = kernel  # type: ignore[assignment]
        parallelize(network, layout, precision=precision)  # outside: meshes of ranks are tensors, and have values
        spread_evenly(network, layout)
        with fake:
            optimizers = make_optimizers(network, optimizer, layout.owns)
            batches = [layout.cut(blank(shape, rows, length)) for _ in range(micro_batches)]
            living, own = Living(), list(network.parameters())
            held = sum(_bytes(each) for each in own)
            living.leave_out([*own, *network.buffers()])
            living.leave_out(each for batch in batches for each in vars(batch).values() if isinstance(each, Tensor))
            with living:
                gradients = _backward(network, layout, precision)
                for _ in range(2):
                    gc.collect()  # what is in a circle lives until someone looks for it
                    gradients(batches)
                    layout.finish(network)
                    for each in optimizers:
                        each.step()
                    layout.spread(network)
                    network.zero_grad(set_to_none=True)
            state = [v for each in optimizers for kept in each.state.values() for v in kept.values()]
            return Rehearsal(
                rank,
                layout.place,
                len(blocks_of(network)),
                sum(local(each).numel() for each in own),
                sum(local(each).numel() for each in state if isinstance(each, Tensor)),
                float(held + living.peak),
            )


def _backward(network: nn.Module, layout: Layout, precision: str) -> Callable[[list[Batch]], Any]:
    """Gradients of a step's micro-batches."""
    objective = _EveryToken()
    if layout.pipeline > 1:
        return _Counting(network, objective, layout, precision).backward
    forward = make_forward(network, objective, False)
    return lambda batches: backward(forward, objective, batches, precision, layout=layout)


def _bytes(tensor: Tensor) -> int:
    return local(tensor).numel() * tensor.element_size()
