"""Bytes on one rank, by part, of a model under a layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lmlab.model.config import ModelConfig
from lmlab.model.count import expert_parameters
from lmlab.model.settings import GATED
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel import ParallelConfig
from lmlab.train.parallel.schedules import Schedule, held, spans
from lmlab.train.planner.traced import Activations, Cut, Depth, activations
from lmlab.train.planner.update import matrices_of, muon_bytes


@dataclass(frozen=True)
class Degrees:
    """How the work is divided: the settings of `pretrain.parallel`, and the micro-batches of a step."""

    data: int = 1
    tensor: int = 1
    zero: int = 0
    sequence: bool = True
    recompute: str = "none"
    micro_batches: int = 1
    pipeline: int = 1
    context: int = 1
    context_method: str = "gather"
    expert: int = 1
    stages_per_rank: int = 1

    @property
    def shares(self) -> int:
        """Ranks that hold the same weights and have tokens of their own."""
        return self.data * self.context

    @property
    def ranks(self) -> int:
        return self.pipeline * self.shares * self.tensor

    @property
    def schedule(self) -> Schedule:
        return "interleaved-1f1b" if self.stages_per_rank > 1 else "1f1b"

    def parallel(self) -> dict[str, Any]:
        """As `ParallelConfig` has it, what does not apply left out."""
        found = {name: getattr(self, name) for name in ("pipeline", "zero", "context", "expert", "tensor", "recompute")}
        if self.stages_per_rank > 1:
            found |= {"schedule": self.schedule, "stages_per_rank": self.stages_per_rank}
        if self.context > 1:
            found |= {"context_method": self.context_method}
        return found if self.tensor == 1 else {**found, "sequence": self.sequence}

    def settings(self) -> dict[str, Any]:
        """As overrides of a recipe, defaults left out."""
        usual = ParallelConfig()
        chosen = {f"parallel.{n}": value for n, value in self.parallel().items() if value != getattr(usual, n)}
        return {**chosen, "micro_batches": self.micro_batches}


def states(optimizer: OptimizerConfig, matrices: float, others: float) -> float:
    """Numbers of optimizer state for so many parameters in hidden matrices and in all else (embedding, head, norms)."""
    if optimizer.name == "muon":
        return matrices + 2 * others
    if optimizer.name == "lion":
        return matrices + others
    if optimizer.name == "adafactor":
        second = 0.0 if optimizer.factored else matrices + others  # rows' and columns' means are nothing beside these
        return second + (matrices + others if optimizer.betas[0] else 0.0)
    return 2 * (matrices + others)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank: `weights`, `gradients`, `optimizer`, `average` (EMA) as they lie between steps; `gathered`, what
    ZeRO 2 and 3 hold whole for a while; `activations`, most that lives beside them; `update`, what the optimizer's step makes
    when these are gone. `total` is the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    activations: float
    update: float
    total: float = field(default=0.0)

    def parts(self) -> dict[str, float]:
        """The parts by name, and their `total`."""
        return {name: getattr(self, name) for name in Memory.__dataclass_fields__}


def cut(shape: ModelConfig, tensor: int) -> ModelConfig:
    """The shape of which one of `tensor` ranks has the matrices. Its stream keeps the whole width."""
    if tensor == 1:
        return shape
    given, sizes = shape.model_dump(), shape.sizes()
    given |= {"heads": sizes.heads // tensor, "kv_heads": sizes.kv_heads // tensor, "head_dim": sizes.head_dim}
    given |= {"d_ff": sizes.d_ff // tensor, "vocab_size": shape.vocab_size // tensor}
    if shape.has_encoder:
        encoder = shape.sizes(encoder=True)
        given |= {"encoder_heads": encoder.heads // tensor, "encoder_d_ff": encoder.d_ff // tensor}
    if given["moe"] and given["moe"]["d_ff"]:
        given["moe"] = {**given["moe"], "d_ff": given["moe"]["d_ff"] // tensor}
    return ModelConfig.model_validate(given)


def memory_of(
    shape: ModelConfig,
    degrees: Degrees,
    optimizer: OptimizerConfig,
    rows: int,
    length: int,
    precision: str,
    *,
    ema: bool = False,
    kernel: str = "auto",
    iteration: torch.dtype = torch.bfloat16,
) -> Memory:
    """Of one rank that trains `rows` rows of `length` tokens a micro-batch, or with `context` its part of each.

    Weights, gradients and optimizer state are float32. ZeRO 1 divides the state over data x context, 2 the gradients too (and
    holds all weights while a micro-batch lasts), 3 also the weights (and gathers two blocks at a time, and what is in no
    block). Divided experts are divided again over those that hold the same ones. `iteration`: the type of Muon's.
    """
    ranks = sorted({0, degrees.pipeline - 1})
    found = [_of_rank(at, shape, degrees, optimizer, rows, length, precision, ema, kernel, iteration) for at in ranks]
    return max(found, key=lambda each: each.total)


def least_of(
    shape: ModelConfig,
    degrees: Degrees,
    optimizer: OptimizerConfig,
    *,
    ema: bool = False,
    iteration: torch.dtype = torch.bfloat16,
) -> Memory:
    """What `memory_of` is without any activations, which it is not less than: what one rank holds while the optimizer steps.
    Nothing is traced for it."""
    found = []
    for rank in sorted({0, degrees.pipeline - 1}):
        own = held_by(shape, degrees, rank)
        weights, gradients, state, average = _lying(own, degrees, optimizer, ema)
        update = _update(shape, degrees, optimizer, own, iteration)
        total = weights + gradients + state + average + update
        found.append(Memory(weights, gradients, state, average, 0.0, 0.0, update, total))
    return max(found, key=lambda each: each.total)


@dataclass(frozen=True)
class Held:
    """Numbers of parameters that a rank of a pipeline would hold without ZeRO: `outer`, in no block; of its blocks `norms`
    (gains and biases of norms), `matrices` (all else that every rank has alike) and `experts` (its own of them)."""

    outer: float
    norms: float
    matrices: float
    experts: float
    blocks: int
    layers: int

    @property
    def total(self) -> float:
        return self.outer + self.norms + self.matrices + self.experts

    @property
    def block(self) -> float:
        return (self.total - self.outer) / self.blocks

    def divided(self, over: float, experts_over: float) -> float:
        """Numbers that are left of them when each is one of so many parts."""
        return (self.total - self.experts) / over + self.experts / experts_over


def held_by(shape: ModelConfig, degrees: Degrees, rank: int) -> Held:
    """What a place of the pipeline holds."""
    local = cut(shape, degrees.tensor)
    parts, experts = local.parameters(), expert_parameters(local)
    layers = shape.sizes().layers + (shape.sizes(encoder=True).layers if shape.has_encoder else 0)
    cuts = spans(layers, degrees.pipeline * degrees.stages_per_rank)
    blocks = sum(len(each) for each in cuts[rank :: degrees.pipeline])
    outer, last = parts["embedding"] + parts["head"], rank == degrees.pipeline - 1
    matrices = parts["total"] - outer - parts["norms"] - experts
    if degrees.pipeline > 1:
        has_table = rank == 0 or (last and shape.tie_embeddings)
        outer = (parts["embedding"] if has_table else 0) + (parts["head"] if last else 0)
    share = blocks / layers
    return Held(outer, parts["norms"] * share, matrices * share, experts / degrees.expert * share, blocks, layers)


def _of_rank(
    rank: int,
    shape: ModelConfig,
    degrees: Degrees,
    optimizer: OptimizerConfig,
    rows: int,
    length: int,
    precision: str,
    ema: bool,
    kernel: str,
    iteration: torch.dtype,
) -> Memory:
    """Of a rank of the pipeline: the first, which holds most micro-batches, or the last, which has the head and the loss."""
    own, zero, shares = held_by(shape, degrees, rank), degrees.zero, degrees.shares
    weights, gradients, state, average = _lying(own, degrees, optimizer, ema)
    found = _activations(shape, cut(shape, degrees.tensor), degrees, rows, length, precision, kernel)
    if degrees.pipeline == 1:
        alive = found.total
    else:
        kept = held(degrees.schedule, degrees.pipeline, degrees.micro_batches, rank, degrees.stages_per_rank)
        alive = found.block.plus(found.block, own.blocks * kept / (own.layers / found.blocks) - 1)
        if rank == degrees.pipeline - 1:
            alive = alive.plus(found.base).plus(found.block, -1)
        passed = _passed(shape, degrees, rank, rows * length)
        alive = alive.plus(Activations(passed, passed, passed))
    # ZeRO: what is gathered in the forward pass, in the backward pass, and a gradient
    whole = some = gradient = 0.0
    if zero >= 2 and shares > 1:
        whole = 4 * (own.total if zero == 2 else own.outer)
        some = 4 * (own.total if zero == 2 else own.outer + 2 * own.block)
        gradient = 4 * own.block
    between = weights + state + average
    before, alone = gradients, alive.later
    if degrees.micro_batches == 1:  # gradients come as activations go, and are cut where they are summed
        before, alone = 0.0, alive.later + (alive.backward - alive.later) / (shares if zero >= 2 else 1)
    gathered, most = max(((whole, alive.forward), (some + gradient, alone)), key=sum)
    update = _update(shape, degrees, optimizer, own, iteration)
    peak = max(between + before + gathered + most, between + gradients + update)
    return Memory(weights, gradients, state, average, gathered, most, update, peak)


def _lying(own: Held, degrees: Degrees, optimizer: OptimizerConfig, ema: bool) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients, optimizer state and running mean, as ZeRO divides them."""
    zero, shares = degrees.zero, degrees.shares
    replicas = shares / degrees.expert
    weights = gradients = 4 * (own.divided(shares, replicas) if zero >= 2 else own.total)
    others = own.outer + own.norms
    if zero:
        state = states(optimizer, own.matrices / shares, others / shares) + states(optimizer, own.experts / replicas, 0)
    else:
        state = states(optimizer, own.matrices + own.experts, others)
    return weights, gradients, 4 * state, weights if ema else 0.0


def _passed(shape: ModelConfig, degrees: Degrees, rank: int, tokens: int) -> float:
    """Bytes of what passes between stages: torch's pipelines have a buffer for everything that a step receives, and the
    interleaved one lets nothing go that it sent until the step is over."""
    each, last = degrees.stages_per_rank, degrees.pipeline * degrees.stages_per_rank - 1
    stages = range(rank, last + 1, degrees.pipeline)
    neighbours = sum((stage > 0) + (stage < last) for stage in stages)
    stream = 4 * tokens / degrees.context * shape.d_model / (degrees.tensor if degrees.sequence else 1)
    return degrees.micro_batches * neighbours * stream * (2 if each > 1 else 1)


def _update(
    shape: ModelConfig, degrees: Degrees, optimizer: OptimizerConfig, own: Held, iteration: torch.dtype
) -> float:
    """Bytes that the optimizer's step makes: Muon's, of all matrices of a rank's blocks, or with ZeRO 1 of those it moves."""
    if optimizer.name != "muon":
        return 0.0
    share = own.blocks / own.layers / (degrees.shares if degrees.zero == 1 else 1)
    return float(muon_bytes(matrices_of(shape, share), iteration))


def _activations(
    shape: ModelConfig, local: ModelConfig, degrees: Degrees, rows: int, length: int, precision: str, kernel: str
) -> Depth:
    given = (rows, length, precision, degrees.recompute, kernel)
    given += (Cut(degrees.context, degrees.context_method if degrees.context > 1 else "gather", degrees.expert),)
    found = activations(local, *given)
    share = degrees.tensor
    if share == 1 or not degrees.sequence:
        return found
    # What is in `found` and not in a share of the whole is the stream between matrices. Within blocks it is cut by tokens,
    # but for the inputs of matrices, which are gathered and kept.
    whole = activations(shape, *given)
    inputs = (5 if shape.activation in GATED else 4) if precision != "float32" else 2
    size = {"float32": 4, "float8": 1}.get(precision, 2)
    tokens = rows * length / degrees.context
    kept = tokens * shape.d_model * inputs * size * (degrees.recompute != "full")

    def shared(part: Activations, entire: Activations) -> Activations:
        stream = [max(0.0, (share * p - e) / (share - 1) - kept) for p, e in zip(part, entire, strict=True)]
        return part.plus(Activations(*stream), 1 / share - 1)

    block = shared(found.block, whole.block)
    beside = shared(found.encoder_block, whole.encoder_block) if shape.has_encoder else found.encoder_block
    base = found.base.plus(found.block, -1).plus(block)
    if shape.has_encoder:
        base = base.plus(found.encoder_block, -1).plus(beside)
    return Depth(base, block, beside, found.blocks, found.encoder_blocks)
