"""A step's micro-batches through a pipeline, in the order of one of torch.distributed.pipelining's schedules.

Every rank of a pipeline has the step's batches, so that only numbers of micro-batches are handed to the schedule. The last
stage has the loss, divided by counts that are known beforehand; its numbers are told to the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmlab.model.transformer import Output, Transformer
from lmlab.objective.batch import filled
from lmlab.train.parallel.layout import Layout
from lmlab.train.parallel.schedules import run
from lmlab.train.parallel.stages import Stage, stages_of
from lmlab.train.step import Objective, Tally, autocast, judged, on_device


class Pipeline:
    """A rank's part of a step, called as `step.make_step` says."""

    def __init__(self, network: nn.Module, objective: Objective, layout: Layout, precision: str) -> None:
        """`network`: as `stages.keep` left it. Its forward is that of its stage from here on."""
        self.objective, self.layout, self.precision = objective, layout, precision
        self.network = cast(Transformer, network)
        self.stages = stages_of(self.network, layout)
        self.parts = [_Part(self, stage) for stage in self.stages]
        if layout.sharded:  # weights are gathered when the network itself is called
            self.network.forward = self.parts[0].forward  # type: ignore[method-assign]
        self.batches: list[Any] = []
        self.outputs: dict[int, Output] = {}
        self.tally: Tally | None = None
        self.scale = 1.0
        self._made: tuple[Any, Any] = (None, None)

    def __call__(
        self, batches: list[Any], after_each: Callable[[], None] | None = None, scale: float = 1.0
    ) -> dict[str, float]:
        """Gradients and numbers of a step. Raises ValueError where rows of its micro-batches differ in length."""
        layout, self.scale = self.layout, scale
        self.tally = Tally(self.objective, batches, layout)
        self.batches = _even(on_device(batches, layout), run(layout.config.schedule, layout.pipeline, len(batches)))
        numbers = torch.arange(len(self.batches))  # on the CPU: nobody must wait for a GPU to read them
        self._schedule().step(number=numbers, target=numbers, return_outputs=False)
        self.batches = []
        return layout.from_last(self.tally.numbers() if self.stages[-1].last else None)

    def given(self, number: int) -> dict[str, Any]:
        """What the network takes of a micro-batch."""
        return self.objective.inputs(self.batches[number])

    def _schedule(self) -> Any:
        """The schedule for batches of this shape; it has buffers for what is received."""
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

        given = self.given(0)
        key = (len(self.batches), {name: value.shape for name, value in given.items()})
        if self._made[0] == key:
            return self._made[1]
        layout, made = self.layout, []
        ranks = layout.tensor if layout.config.sequence else 1
        for stage, part in zip(self.stages, self.parts):
            passed = (stage.passed(given, ranks, after) for after in (False, True))
            where = (self.network if layout.sharded else part, stage.number, layout.config.stages, layout.world.device)
            made.append(PipelineStage(*where, *passed, group=layout.mesh.get_group("pipeline")))
        kinds: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
        kind = kinds.get(layout.config.schedule)
        settings = {"n_microbatches": len(self.batches), "loss_fn": self._loss, "scale_grads": False}
        schedule = kind(made[0], **settings) if kind else ScheduleInterleaved1F1B(made, **settings)
        self._made = (key, schedule)
        return schedule

    def _loss(self, hidden_BTD: Tensor, number: Tensor) -> Tensor:
        output, tally = self.outputs.pop(int(number)), self.tally
        assert tally is not None
        with autocast(self.precision, self.layout.world.device.type):
            total = tally.take(*judged(self.objective, output, self.batches[int(number)]))
        if not isinstance(total, Tensor):
            return 0.0 * hidden_BTD.sum()  # nothing to learn in the whole step
        return total if self.scale == 1.0 else total * self.scale


class _Part(nn.Module):
    """A stage as torch's schedules call it."""

    def __init__(self, pipeline: Pipeline, stage: Stage) -> None:
        super().__init__()
        self.called: tuple[Pipeline, Stage] = (pipeline, stage)  # in a tuple: the network is no module of this one

    def forward(self, *carried: Tensor, number: Tensor) -> Tensor | tuple[Tensor, ...]:
        pipeline, stage = self.called
        at = int(number)
        with autocast(pipeline.precision, pipeline.layout.world.device.type):
            found = stage.forward(carried, pipeline.given(at))
        if not isinstance(found, Output):
            return found
        pipeline.outputs[at] = found
        return found.hidden_BTD


def _even(batches: list[Any], count: int) -> list[Any]:
    """So many micro-batches with equally many rows each, made up of rows that count for nothing."""
    lengths = {batch.tokens_BT.shape[1] for batch in batches}
    if len(lengths) > 1:
        raise ValueError(f"a pipeline takes micro-batches with rows of one length, found {sorted(lengths)}")
    rows = max(len(batch.tokens_BT) for batch in batches)
    nothing = [filled(batches[0], rows, kept=0)] * (count - len(batches))
    return [filled(batch, rows) for batch in batches] + nothing
