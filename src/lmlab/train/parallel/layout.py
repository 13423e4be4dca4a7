"""Which rank does what: the settings, what cannot be, and the mesh of ranks with the sums that are taken over it.

Gradients and losses are sums, never averages: counts are summed over ranks before the backward pass, every rank divides by
the sum, and gradients are added up. So a layout cannot change what is learnt, only the order in which numbers are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from lmlab.config import Config
from lmlab.model.config import ModelConfig
from lmlab.train.parallel.exchange import told, union
from lmlab.train.parallel.schedules import Schedule
from lmlab.train.parallel.world import World
from lmlab.train.sharded import local

Name = TypeVar("Name", str, tuple[str, str])


class ParallelConfig(Config):
    """How several processes share the work. The product of the degrees is the number of processes."""

    pipeline: int = Field(default=1, ge=1)
    """Processes that each have some of the blocks; the micro-batches of a step pass through them one behind another."""
    schedule: Schedule = "1f1b"
    """With `pipeline`: the order in which a rank works on micro-batches (schedules.py)."""
    stages_per_rank: int | None = Field(default=None, ge=1)
    """Stages of the pipeline on each rank: with `interleaved-1f1b` 2 (null) or more, else 1."""

    data: int | None = Field(default=None, ge=1)
    """Groups of processes that each take their rows of every batch. null: what the other degrees leave."""
    zero: Literal[0, 1, 2, 3] = 0
    """What data-parallel ranks keep only a part of (ZeRO, 1910.02054): nothing; 1 the optimizer's state; 2 also gradients;
    3 also weights. 2 and 3 are torch's fully_shard."""

    context: int = Field(default=1, ge=1)
    """Processes that share every row: some consecutive tokens each (context parallelism). They hold the same weights, and
    `zero` divides over them too."""
    context_method: Literal["gather", "ulysses"] = "gather"
    """How attention reaches the other tokens: by gathering all keys and values (2407.21783), or by exchanging tokens for
    heads (2309.14509), of which there must be enough."""
    expert: int = Field(default=1, ge=1)
    """Of the processes of data x context, how many divide a layer's experts among them (GShard, 2006.16668)."""
    tensor: int = Field(default=1, ge=1)
    """Processes that share every matrix (Megatron-LM, 1909.08053): some heads, some of d_ff, some of the vocabulary each."""
    sequence: bool = True
    """With `tensor`: the residual stream between matrices is divided too, by tokens (sequence parallelism, 2205.05198)."""
    cpu_offload: bool = False
    """With `zero` 2 or 3 on GPUs: weights, gradients and optimizer state lie in the CPU's memory and visit the GPU by blocks."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What a block computes again in the backward pass instead of keeping it: all of it (1604.06174; a third more FLOPs), or
    its attention alone (2205.05198). Also with one process."""

    @property
    def stages(self) -> int:
        """Stages of the whole pipeline."""
        each = self.stages_per_rank or (2 if self.schedule == "interleaved-1f1b" else 1)
        return self.pipeline * each if self.pipeline > 1 else 1


def misfits(config: ParallelConfig, ranks: int, shape: ModelConfig | None = None) -> Iterator[str]:
    """Why so many processes cannot be laid out so."""
    yield from rank_misfits(config, ranks)
    yield from shape_misfits(config, shape)


def rank_misfits(config: ParallelConfig, ranks: int) -> Iterator[str]:
    """What so many processes, or the devices here, lack for a layout."""
    needed = config.pipeline * (config.data or 1) * config.context * config.tensor
    if (needed != ranks) if config.data is not None else ranks % needed:
        between = f" x context {config.context}" if config.context > 1 else ""
        named = f"data {config.data or '(the rest)'}{between} x tensor {config.tensor}"
        named = named if config.pipeline == 1 else f"pipeline {config.pipeline} x {named}"
        yield f"parallel: {named} makes {needed} processes, but {ranks} run (torchrun --nproc-per-node)"
    elif ranks // config.tensor // config.pipeline % config.expert:
        held = f"the {ranks // config.tensor // config.pipeline} processes of data x context"
        yield f"parallel: expert {config.expert} does not divide {held}"
    if config.cpu_offload and (config.zero < 2 or ranks == 1):
        yield "parallel: cpu_offload moves what fully_shard divides: it goes with zero 2 or 3 on several processes"
    elif config.cpu_offload and not torch.cuda.is_available():
        yield "parallel: cpu_offload moves weights out of a GPU, and there is none here: they are in the CPU's memory already"


def shape_misfits(config: ParallelConfig, shape: ModelConfig | None) -> Iterator[str]:
    """Why a model (None: one that is not decided yet) cannot be divided so, on any number of processes."""
    if shape is not None and config.tensor > 1:
        from lmlab.train.parallel.tensor import tensor_misfits

        yield from tensor_misfits(shape, config.tensor, config.sequence)
    if shape is not None and config.context > 1:
        from lmlab.train.parallel.context import context_misfits

        yield from context_misfits(shape, config.context, config.context_method, config.tensor)
    if shape is not None and config.expert > 1:
        from lmlab.train.parallel.experts import expert_misfits

        yield from expert_misfits(shape, config.expert)
    if config.pipeline > 1:
        from lmlab.train.parallel.stages import pipeline_misfits

        yield from pipeline_misfits(config, shape)


class Layout:
    """The mesh of ranks, and what this rank shares with the others. `Layout()` is one process: every method then gives back
    what it was given."""

    def __init__(
        self, config: ParallelConfig | None = None, world: World | None = None, shape: ModelConfig | None = None
    ) -> None:
        """Raises ValueError where `misfits` finds something. Every rank makes it at the same time."""
        self.config, self.world = config or ParallelConfig(), world or World()
        for problem in misfits(self.config, self.world.size, shape):
            raise ValueError(problem)
        self.tensor, self.context, self.pipeline = self.config.tensor, self.config.context, self.config.pipeline
        self.data = self.config.data or self.world.size // self.tensor // self.context // self.pipeline
        self.shares = self.data * self.context
        """Ranks of one place in the pipeline that hold the same weights, each with tokens of its own."""
        self.partial: set[str] = set()
        self.divided: set[str] = set()
        """Parameters that expert parallelism has divided, by name."""
        self.elsewhere: set[str] = set()
        """Names of the network that this rank of a pipeline has not."""
        self.copies: dict[str, Copies] = {}
        """Parameters that several ranks of a pipeline have, by name."""
        self.mesh: Any = None
        self.context_mesh: Any = None
        self.expert_mesh: Any = None
        if self.several:
            self.mesh = self._mesh({"data": self.shares, "tensor": self.tensor})
        if self.context > 1:
            rows = {"data": self.data, "context": self.context, "tensor": self.tensor}
            self.context_mesh = self._mesh(rows)["context"]
        if self.config.expert > 1:
            replicas = self.shares // self.config.expert
            self.expert_mesh = self._mesh({"replicas": replicas, "expert": self.config.expert, "tensor": self.tensor})
        self._owners: dict[str, int] = {}

    def _mesh(self, degrees: dict[str, int]) -> Any:
        """A mesh of all ranks; the pipeline's places come first, neighbours of the last dimension share a node."""
        from torch.distributed.device_mesh import init_device_mesh

        degrees = {"pipeline": self.pipeline, **degrees}
        return init_device_mesh(self.world.device.type, tuple(degrees.values()), mesh_dim_names=tuple(degrees))

    @property
    def several(self) -> bool:
        return self.world.size > 1

    @property
    def leads(self) -> bool:
        """Whether this rank writes files."""
        return self.world.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """(this rank's place among those that divide a batch's rows, their number)."""
        return (self.part // self.context, self.data)

    @property
    def part(self) -> int:
        """This rank's place among those that have tokens of their own."""
        return self.mesh.get_local_rank("data") if self.several else 0

    def cut(self, batch: Any) -> Any:
        """Of a batch of this rank's rows its tokens: all of them but for context parallelism."""
        if self.context == 1:
            return batch
        from lmlab.train.parallel.context import cut_batch

        multiple = self.tensor if self.config.sequence else 1
        return cut_batch(batch, self.part % self.context, self.context, multiple)

    @property
    def place(self) -> int:
        """This rank's place in the pipeline."""
        return self.mesh.get_local_rank("pipeline") if self.several else 0

    @property
    def stream(self) -> int:
        """Alike on ranks that must draw the same random numbers."""
        return self.place * self.shares + self.part

    @property
    def sharded(self) -> bool:
        """Whether weights lie in parts (fully_shard)."""
        return self.several and self.config.zero >= 2

    # --- sums and agreements -----------------------------------------------------------------------------------------

    def _group(self, name: str = "data", divided: bool = False) -> Any:
        """Along `data`: the ranks that have tokens of their own; for divided experts those of them that hold the same ones."""
        return self.expert_mesh.get_group("replicas") if divided else self.mesh.get_group(name)

    def total(self, count: Tensor) -> Tensor:
        """A count of this rank's part of a micro-batch, summed over those who share it. Not differentiable."""
        if not self.several:
            return count
        count = count.detach().clone()
        dist.all_reduce(count, group=self._group())
        return count

    def sums(self, values: Mapping[Name, float]) -> dict[Name, float]:
        """Each number summed over the ranks that have tokens of their own. The names must be the same on all."""
        if not self.several:
            return dict(values)
        names = sorted(values)
        row = torch.tensor([values[name] for name in names], dtype=torch.float64)
        row = self.total(row.to(self.world.device))
        found = dict(zip(names, row.tolist(), strict=True))
        return {name: found[name] for name in values}

    def agree(self, value: float) -> float:
        """Rank 0's number."""
        if not self.several:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.world.device)
        dist.broadcast(told, 0)
        return float(told)

    def norm(self, norm: float) -> float:
        """Of this rank's blocks' gradients -> the whole network's, the same number on all ranks."""
        if self.pipeline > 1:
            square = torch.tensor(norm, dtype=torch.float64, device=self.world.device).square()
            dist.all_reduce(square, group=self._group("pipeline"))
            norm = math.sqrt(float(square))
        return self.agree(norm)

    def along(self, numbers: dict[str, float]) -> dict[str, float]:
        """What all ranks of a pipeline have, the later one's where several have a number by the same name."""
        found = {} if self.pipeline > 1 else numbers
        for source in range(self.pipeline) if self.pipeline > 1 else ():
            found |= told(numbers, self._group("pipeline"), source, self.world.device)
        return found

    def from_last(self, numbers: dict[str, float] | None) -> dict[str, float]:
        """What the last rank of a pipeline has."""
        return told(numbers, self._group("pipeline"), self.pipeline - 1, self.world.device)

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        if not self.several:
            return flag
        told = torch.tensor(int(flag), device=self.world.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def barrier(self) -> None:
        """Until all are here."""
        if self.several:
            dist.barrier()

    # --- gradients ---------------------------------------------------------------------------------------------------

    def finish(self, network: nn.Module) -> None:
        """After the step's last backward pass: every gradient is the sum over all ranks."""
        if self.tensor > 1:
            from lmlab.train.parallel.tensor import complete

            complete(network, self.partial, self.mesh.get_group("tensor"))
        if self.shares > 1 and not self.sharded:
            trained = [(name in self.divided, p) for name, p in network.named_parameters() if p.requires_grad]
            for divided in sorted({each for each, _ in trained}):
                _sum_gradients([p for each, p in trained if each == divided], self._group(divided=divided))
        for group in dict.fromkeys(each.group for each in self.copies.values()):
            named = [(n, p) for n, p in network.named_parameters() if n in self.copies and p.requires_grad]
            _sum_gradients([p for name, p in named if self.copies[name].group is group], group)

    def copy(self, holders: Mapping[str, tuple[int, ...]]) -> None:
        """Remember parameters of which several places of a pipeline, given by name, hold copies that must stay alike. Every
        rank must call it, with the same."""
        ranks = self.mesh.mesh.flatten(1)
        for places in sorted(set(holders.values())):
            group, _ = dist.new_subgroups_by_enumeration(ranks[list(places)].T.tolist())
            if self.place in places:
                made = Copies(group, self.place == places[0])
                self.copies |= {name: made for name, each in holders.items() if each == places}

    def counts(self, name: str) -> bool:
        """Whether a parameter's gradient is part of this rank's norm: of copies the first is."""
        return name not in self.copies or self.copies[name].first

    # --- ZeRO 1: each parameter's optimizer state lives on one rank --------------------------------------------------

    def divide(self, network: nn.Module) -> None:
        """Give each parameter an owner, so that all own about as much: the largest first, each to whoever has least."""
        if not self.several or self.config.zero != 1:
            return
        loads = {False: [0] * self.shares, True: [0] * (self.shares // self.config.expert)}
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        for name, parameter in sorted(trained, key=lambda each: (-each[1].numel(), each[0])):
            load = loads[name in self.divided]
            least = load.index(min(load))
            self._owners[name] = least
            load[least] += parameter.numel()

    def owns(self, name: str) -> bool:
        """Whether this rank's optimizer moves the parameter."""
        place = self.part // self.config.expert if name in self.divided else self.part
        return self._owners.get(name, place) == place

    def spread(self, network: nn.Module) -> None:
        """After the optimizer's step: the owners' weights to all that hold the same."""
        for name, parameter in network.named_parameters():
            if name in self._owners:
                group = self._group(divided=name in self.divided)
                dist.broadcast(local(parameter.detach()), group=group, group_src=self._owners[name])

    def together(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The whole network's named tensors, of those of each rank of a pipeline. Every rank must call it."""
        return tensors if self.pipeline == 1 else union(tensors, self._group("pipeline"), self.world.device)


@dataclass(frozen=True)
class Copies:
    """Of a parameter that several ranks have: these ranks, and whether this is the first of them."""

    group: Any
    first: bool


BUCKET_BYTES = 25 << 20
"""Gradients that are summed in one call (torch's DistributedDataParallel takes as many)."""


def _sum_gradients(parameters: Sequence[nn.Parameter], group: Any) -> None:
    """Add gradients up over a group, several in one call. One that is missing here counts as zeros."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradient = local(parameter.grad)
        if bucket and (gradient.dtype != bucket[0].dtype or sum(map(_bytes, bucket)) + _bytes(gradient) > BUCKET_BYTES):
            _sum_bucket(bucket, group)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _sum_bucket(bucket, group)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sum_bucket(bucket: list[Tensor], group: Any) -> None:
    flat = torch.cat([each.reshape(-1) for each in bucket])
    dist.all_reduce(flat, group=group)
    for gradient, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
        gradient.copy_(summed.view_as(gradient))
