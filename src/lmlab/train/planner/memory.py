"""Bytes on one rank, by part, of a model under a layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmlab.model.config import ModelConfig
from lmlab.model.settings import GATED
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel.schedules import held, spans
from lmlab.train.planner.traced import Activations, Depth, activations


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

    @property
    def ranks(self) -> int:
        return self.pipeline * self.data * self.tensor

    def settings(self) -> dict[str, Any]:
        """As overrides of a recipe, defaults left out."""
        given = {"pipeline": self.pipeline, "zero": self.zero, "tensor": self.tensor, "recompute": self.recompute}
        usual = {"pipeline": 1, "zero": 0, "tensor": 1, "recompute": "none"}
        chosen = {f"parallel.{name}": value for name, value in given.items() if value != usual[name]}
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
    ZeRO 2 and 3 hold whole for a while; `activations`, most that lives beside them. `total` is the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    activations: float
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
) -> Memory:
    """Of one rank that trains `rows` rows of `length` tokens a micro-batch.

    Weights, gradients and optimizer state are float32. ZeRO 1 divides the state over `data`, 2 the gradients too (and holds
    all weights while a micro-batch lasts), 3 also the weights (and gathers two blocks at a time, and what is in no block).
    """
    stages = {0, degrees.pipeline - 1}
    found = [
        _of_stage(stage, shape, degrees, optimizer, rows, length, precision, ema, kernel) for stage in sorted(stages)
    ]
    return max(found, key=lambda each: each.total)


def _of_stage(
    stage: int,
    shape: ModelConfig,
    degrees: Degrees,
    optimizer: OptimizerConfig,
    rows: int,
    length: int,
    precision: str,
    ema: bool,
    kernel: str,
) -> Memory:
    """Of a rank of the pipeline: the first, which holds most micro-batches, or the last, which has the head and the loss."""
    local = cut(shape, degrees.tensor)
    parts, data, zero = local.parameters(), degrees.data, degrees.zero
    outer, last = parts["embedding"] + parts["head"], stage == degrees.pipeline - 1
    layers = shape.sizes().layers + (shape.sizes(encoder=True).layers if shape.has_encoder else 0)
    block = (parts["total"] - outer) / layers
    blocks = len(spans(layers, degrees.pipeline)[stage])
    if degrees.pipeline > 1:
        has_table = stage == 0 or shape.tie_embeddings
        outer = (parts["embedding"] if has_table else 0) + (parts["head"] if last else 0)
    total = outer + blocks * block
    matrices = total - outer - parts["norms"] * blocks / layers
    weights = gradients = 4 * total / (data if zero >= 2 else 1)
    state = 4 * states(optimizer, matrices, total - matrices) / (data if zero else 1)
    average = weights if ema else 0.0
    found = _activations(shape, local, degrees, rows, length, precision, kernel)
    if degrees.pipeline == 1:
        alive = found.total
    else:
        kept = held("1f1b", degrees.pipeline, degrees.micro_batches, stage)
        alive = found.block.plus(found.block, blocks * kept / (layers / found.blocks) - 1)
        if last:
            alive = alive.plus(found.base).plus(found.block, -1)
    whole, some, gradient = (
        0.0,
        0.0,
        0.0,
    )  # ZeRO: what is gathered in the forward pass, in the backward pass, and a gradient
    if zero >= 2 and data > 1:
        whole = 4 * (total if zero == 2 else outer)
        some = 4 * (total if zero == 2 else outer + 2 * block)
        gradient = 4 * block
    between = weights + state + average
    before, alone = gradients, alive.later
    if degrees.micro_batches == 1:  # gradients come as activations go, and are cut where they are summed
        before, alone = 0.0, alive.later + (alive.backward - alive.later) / (data if zero >= 2 else 1)
    gathered, most = max(((whole, alive.forward), (some + gradient, alone)), key=sum)
    peak = max(between + before + gathered + most, between + gradients)
    return Memory(weights, gradients, state, average, gathered, most, peak)


def _activations(
    shape: ModelConfig, local: ModelConfig, degrees: Degrees, rows: int, length: int, precision: str, kernel: str
) -> Depth:
    found = activations(local, rows, length, precision, degrees.recompute, kernel)
    share = degrees.tensor
    if share == 1 or not degrees.sequence:
        return found
    # What is in `found` and not in a share of the whole is the stream between matrices. Within blocks it is cut by tokens,
    # but for the inputs of matrices, which are gathered and kept.
    whole = activations(shape, rows, length, precision, degrees.recompute, kernel)
    inputs = (5 if shape.activation in GATED else 4) if precision != "float32" else 2
    size = {"float32": 4, "float8": 1}.get(precision, 2)
    kept = rows * length * shape.d_model * inputs * size * (degrees.recompute != "full")

    def shared(part: Activations, entire: Activations) -> Activations:
        stream = [max(0.0, (share * p - e) / (share - 1) - kept) for p, e in zip(part, entire, strict=True)]
        return part.plus(Activations(*stream), 1 / share - 1)

    block = shared(found.block, whole.block)
    beside = shared(found.encoder_block, whole.encoder_block) if shape.has_encoder else found.encoder_block
    base = found.base.plus(found.block, -1).plus(block)
    if shape.has_encoder:
        base = base.plus(found.encoder_block, -1).plus(beside)
    return Depth(base, block, beside, found.blocks, found.encoder_blocks)
