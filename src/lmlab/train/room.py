"""Whether a training run fits into the memory that is there, asked before its first step, and what to set where it does not."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch

from lmlab.device import memory as memory_here
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.objective.cross_entropy import rows_a_chunk
from lmlab.progress import say
from lmlab.train.parallel.layout import ParallelConfig
from lmlab.train.planner.memory import Degrees, Memory, memory_of, states
from lmlab.train.pretrain_config import PretrainConfig
from lmlab.train.step import HALVES

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Step:
    """What of an optimizer step decides its memory: `rows` and `length` of all of it as the network sees them, and on how many
    processes."""

    shape: ModelConfig
    config: PretrainConfig
    precision: str
    kernel: str
    rows: int
    length: int
    ranks: int

    def need(self, **changed: Any) -> Memory:
        """Bytes on one rank; `changed`: settings of `Degrees`, of which the recipe gives the others. What context and expert
        parallelism divide beside the tokens is not taken off."""
        given: ParallelConfig = self.config.parallel
        shares = max(1, self.ranks // given.tensor // given.pipeline)
        degrees = dataclasses.replace(
            Degrees(
                data=shares,
                tensor=given.tensor,
                zero=given.zero,
                sequence=given.sequence,
                recompute=given.recompute,
                micro_batches=self.config.micro_batches,
                pipeline=given.pipeline,
            ),
            **changed,
        )
        rows = -(-self.rows // degrees.micro_batches // max(1, shares // given.context))
        length = -(-self.length // given.context)
        precision, optimizer, ema = (
            self.precision.removesuffix("-onednn"),
            self.config.optimizer,
            self.config.ema is not None,
        )
        return memory_of(self.shape, degrees, optimizer, max(1, rows), length, precision, ema=ema, kernel=self.kernel)

    def bound(self) -> dict[str, float]:
        """Bytes by part of which a rank takes no more, counted in microseconds: what of a block is held is taken large, and
        nothing divided among ranks. `need` runs the step on tensors without values, which takes a second or two."""
        shape, sizes, optimizer = self.shape, self.shape.sizes(), self.config.optimizer
        parts, moe = shape.parameters(), shape.moe
        total = parts["total"]
        matrices = total - parts["embedding"] - parts["head"] - parts["norms"]
        rows = -(-self.rows // self.config.micro_batches)
        tokens = rows * self.length
        wide = max(shape.d_model, sizes.heads * sizes.head_dim)
        used = 1 if moe is None else moe.top_k + moe.shared_experts
        inner = max(sizes.d_ff, 0 if moe is None else moe.d_ff or 0) * used
        layers = sizes.layers + (2 * shape.sizes(encoder=True).layers if shape.has_encoder else 0)
        block = tokens * (40 * wide + 10 * inner + 8 * sizes.heads * self.length)
        head = 4 * rows_a_chunk(shape.vocab_size) * shape.vocab_size + 8 * tokens * wide
        return {
            "weights": 4.0 * total,
            "gradients": 4.0 * total,
            "optimizer": 4.0 * states(optimizer, matrices, total - matrices),
            "average": 4.0 * total if self.config.ema is not None else 0.0,
            "activations": 4.0 * (layers * block + head) + (4.0 * total if self.precision in HALVES else 0.0),
        }

    def changes(self) -> Iterator[dict[str, Any]]:
        """Settings that make it smaller and leave what is learnt as it is, the cheapest first."""
        for recompute in dict.fromkeys((self.config.parallel.recompute, "full")):
            n = self.config.micro_batches
            while n < self.rows:
                n = min(2 * n, self.rows)
                yield {"micro_batches": n, "recompute": recompute}


def free() -> int | None:
    """Bytes that one rank here may still take: of its GPU, or its part of the memory that the ranks of this machine share.
    None where it is not known."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    available = memory_here()["available"]
    return None if available is None else available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def room_for(name: str, run: Step, available: int | None) -> None:
    """Say what a step needs. Raises Refused where that is more than `available`, with what to set."""
    bound = run.bound()
    if available is None or 2 * sum(bound.values()) <= available:
        _tell(bound, available, run.ranks, "at most about")
        return
    found = run.need().parts()
    need = found.pop("total")
    _tell(found, available, run.ranks, "about", need)
    if need <= available:
        return
    advice = "fewer tokens a step, a shorter context or a smaller model"
    for changed in run.changes():
        smaller = run.need(**changed).total
        if smaller <= available:
            settings = [f"{name}.micro_batches={changed['micro_batches']}"]
            if changed["recompute"] != run.config.parallel.recompute:
                settings.append(f"{name}.parallel.recompute={changed['recompute']}")
            advice = f"{' and '.join(settings)} (about {_size(smaller)}; nothing else changes)"
            break
    raise Refused(
        f"{name}: a step needs about {_size(need)} ({_listed(found)}), and {_size(available)} are free: set {advice}"
    )


def _tell(parts: dict[str, float], available: int | None, ranks: int, how: str, total: float | None = None) -> None:
    whole = sum(parts.values()) if total is None else total
    of = "" if available is None else f" of {_size(available)} that are free"
    say(f"memory: {how} {_size(whole)}{of}{' on each process' if ranks > 1 else ''} ({_listed(parts)})")


def _listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{part} {_size(size)}" for part, size in parts.items() if size)


def _size(count: float) -> str:
    small = count / 2**20
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{small:.0f} MiB" if small >= 10 else f"{small:.1f} MiB"
