"""A step's micro-batches through a pipeline, in the order of one of torch.distributed.pipelining's schedules.

Every rank of a pipeline has the step's batches, so that only numbers of micro-batches are handed to the schedule. The last
stage has the loss, divided by counts that are known beforehand; its numbers are told to the others.

With weights in parts (fully_shard) all stages of a rank are stages of one network, which is what torch's FSDP knows of: they are
called through it, and FSDP does with each micro-batch what it does without a pipeline. The schedules are shown modules that are
none of FSDP's: of one of FSDP's they would take charge, and keep whole gradients and weights until the end of the step.
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
from lmlab.train.parallel.stages import stages_of
from lmlab.train.step import Objective, Tally, autocast, judged, on_device


class Pipeline:
    """A rank's part of a step, called as `step.make_step` says."""

    def __init__(self, network: nn.Module, objective: Objective, layout: Layout, precision: str) -> None:
        """`network`: as `stages.keep` left it. Its forward is that of its stage from here on."""
        self.objective, self.layout, self.precision = objective, layout, precision
        self.network = cast(Transformer, network)
        self.stages = stages_of(self.network, layout)
        self.parts = [_Part(self, place) for place in range(len(self.stages))]
        self.gathered: list[Any] = []
        """What of FSDP's keeps its weights from pass to pass, until the end of a step."""
        if layout.sharded:  # weights are gathered when the network itself is called
            self.network.forward = self.through  # type: ignore[method-assign]
            self.gathered = _kept(self.network, all_of_it=layout.config.zero == 2)
        self.batches: list[Any] = []
        self.outputs: dict[int, Output] = {}
        self.tally: Tally | None = None
        self.scale = 1.0
        self._made: tuple[Any, Any] = (None, None)

    def __call__(
        self, batches: list[Any], after_each: Callable[[], None] | None = None, scale: float = 1.0
    ) -> dict[str, float]:
        """Gradients and numbers of a step. Raises ValueError where rows of its micro-batches differ in length."""
        tally = self.backward(batches, scale)
        return self.layout.from_last(tally.numbers() if self.stages[-1].last else None)

    def backward(self, batches: list[Any], scale: float = 1.0) -> Tally:
        """The gradients alone; the last stage's numbers are in what is given back."""
        layout, self.scale = self.layout, scale
        self.tally = Tally(self.objective, batches, layout)
        self.batches = _even(on_device(batches, layout), run(layout.config.schedule, layout.pipeline, len(batches)))
        numbers = torch.arange(len(self.batches))  # on the CPU: nobody must wait for a GPU to read them
        self._schedule().step(number=numbers, target=numbers, return_outputs=False)
        for module in self.gathered:
            module.reshard()
        self.batches = []
        return self.tally

    def given(self, number: int) -> dict[str, Any]:
        """What the network takes of a micro-batch."""
        return self.objective.inputs(self.batches[number])

    def which(self, place: int | None, number: Tensor) -> int:
        """The number of a micro-batch that is to pass the stage at a place, or for None the loss."""
        return int(number)

    def through(self, *carried: Tensor, place: int, number: int) -> Tensor | tuple[Tensor, ...]:
        """A micro-batch through the stage at a place among this rank's: what goes on to the next one."""
        with autocast(self.precision, self.layout.world.device.type):
            found = self.stages[place].forward(carried, self.given(number))
        if not isinstance(found, Output):
            return found
        self.outputs[number] = found
        return found.hidden_BTD

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
            where = (part, stage.number, layout.config.stages, layout.world.device)
            made.append(PipelineStage(*where, *passed, group=layout.mesh.get_group("pipeline")))
        kinds: dict[str, Any] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
        kind = kinds.get(layout.config.schedule)
        settings = {"n_microbatches": len(self.batches), "loss_fn": self._loss, "scale_grads": False}
        schedule = kind(made[0], **settings) if kind else ScheduleInterleaved1F1B(made, **settings)
        self._made = (key, schedule)
        return schedule

    def _loss(self, hidden_BTD: Tensor, number: Tensor) -> Tensor:
        at, tally = self.which(None, number), self.tally
        output = self.outputs.pop(at)
        assert tally is not None
        with autocast(self.precision, self.layout.world.device.type):
            total = tally.take(*judged(self.objective, output, self.batches[at]))
        if not isinstance(total, Tensor):
            return 0.0 * hidden_BTD.sum()  # nothing to learn in the whole step
        return total if self.scale == 1.0 else total * self.scale


class _Part(nn.Module):
    """A stage as torch's schedules call it."""

    def __init__(self, pipeline: Pipeline, place: int) -> None:
        super().__init__()
        self.place = place
        self.called: tuple[Pipeline] = (pipeline,)  # in a tuple: the network is no module of this one

    def forward(self, *carried: Tensor, number: Tensor) -> Tensor | tuple[Tensor, ...]:
        (pipeline,) = self.called
        through = pipeline.network if pipeline.layout.sharded else pipeline.through
        return through(*carried, place=self.place, number=pipeline.which(self.place, number))


def _kept(network: Any, all_of_it: bool) -> list[Any]:
    """Have FSDP keep gathered weights after a backward pass: of all, or of what is in no block, since a loss has no pass of its
    own in which the head could be gathered again, and others' backward passes come between a stage's output and its loss."""
    from torch.distributed.fsdp import FSDPModule

    network.set_reshard_after_backward(False, recurse=all_of_it)
    return [each for each in network.modules() if isinstance(each, FSDPModule)] if all_of_it else [network]


def _even(batches: list[Any], count: int) -> list[Any]:
    """So many micro-batches with equally many rows each, made up of rows that count for nothing."""
    lengths = {batch.tokens_BT.shape[1] for batch in batches}
    if len(lengths) > 1:
        raise ValueError(f"a pipeline takes micro-batches with rows of one length, found {sorted(lengths)}")
    rows = max(len(batch.tokens_BT) for batch in batches)
    nothing = [filled(batches[0], rows, kept=0)] * (count - len(batches))
    return [filled(batch, rows) for batch in batches] + nothing
