"""A model's own modules with their matrices packed for inference, for the architectures that `decoder.py` lacks.

The copy shares no weight that training changes: it is the model as it was when the copy was made. Every product goes
through `weights.Linear`, so that a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.generate.mapped import is_untouched
from lmlab.generate.weights import Linear, Precision
from lmlab.model.feed_forward import FeedForward
from lmlab.model.moe import Experts, MoE, Routing
from lmlab.model.transformer import Transformer

LANES = 32
"""torch computes elementwise functions of so many numbers at once and what is left over one by one, with another
rounding: the reason why a row must not end within them."""


def rowwise(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An elementwise function whose result for a row does not depend on how many rows stand before it."""

    def apply(x: Tensor) -> Tensor:
        width = x.shape[-1]
        return function(x) if width % LANES == 0 else function(F.pad(x, (0, -width % LANES)))[..., :width]

    return apply


class PackedLinear(nn.Module):
    """An nn.Linear for inference, (..., in) -> (..., out), float32 in and out."""

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: Precision) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self.product = Linear(weight.detach(), None if bias is None else bias.detach(), precision)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


class PackedExperts(nn.Module):
    """`Experts`, each matrix packed."""

    def __init__(self, experts: Experts, precision: Precision) -> None:
        super().__init__()
        self.activation = rowwise(experts.activation)

        def pack(weight: Tensor | None, bias: Tensor | None) -> list[Linear]:
            rows = [] if weight is None else list(weight.detach())
            biases = [None] * len(rows) if bias is None else list(bias.detach())
            return [Linear(w, b, precision) for w, b in zip(rows, biases)]

        self.gate = pack(experts.gate, experts.gate_bias)
        self.up, self.down = pack(experts.up, experts.up_bias), pack(experts.down, experts.down_bias)

    def forward(self, x_ND: Tensor, sizes: list[int]) -> Tensor:
        """As `Experts.forward`: the first `sizes[0]` rows go through the first expert, and so on."""
        parts = [self._expert(rows, number) for number, rows in enumerate(x_ND.split(sizes)) if len(rows)]
        return torch.cat(parts) if parts else x_ND

    def _expert(self, x_ND: Tensor, number: int) -> Tensor:
        up = self.up[number](x_ND)
        inner = self.activation(self.gate[number](x_ND)) * up if self.gate else self.activation(up)
        return self.down[number](inner)


@dataclass
class Queues(Routing):
    """Whose tokens stand before whose at an expert with a `sequence_capacity`: `spans`, the (first, end) tokens of each
    sequence that is read from its start, and `orders`, (T, T) of each, True where a token is in another's way, None for
    all that come before it. Tokens of no span are never dropped: those that follow what a cache holds."""

    spans: Sequence[tuple[int, int]] = ()
    orders: Sequence[Tensor | None] = ()

    def kept(self, chosen_N1: Tensor, experts: int, capacity: int) -> Tensor:
        """(N, 1), 1.0 where a token is among its sequence's first `capacity` of its expert."""
        kept_N1 = torch.ones(chosen_N1.shape, device=chosen_N1.device)
        for (first, end), order_TT in zip(self.spans, self.orders):
            mine_TE = F.one_hot(chosen_N1[first:end, 0], experts).float()
            places_TE = mine_TE.cumsum(0) if order_TT is None else order_TT.float() @ mine_TE
            kept_N1[first:end] = (places_TE.gather(1, chosen_N1[first:end]) <= capacity).float()
        return kept_N1


class PackedMoE(MoE):
    """A mixture of experts in inference: no token is dropped by the capacity that the config has in evaluation, since which
    tokens an expert has no place for would depend on who shares the batch. A limit on an expert's tokens of each sequence
    (`sequence_capacity`) is applied to what is read at once, see `Queues`."""

    def __init__(self, moe: MoE, precision: Precision) -> None:
        nn.Module.__init__(self)
        self.moe = moe.moe
        self.router = cast(nn.Linear, PackedLinear(moe.router.weight.float(), None, "float32"))
        self.experts = cast(Experts, PackedExperts(moe.experts, precision))
        self.shared = moe.shared

    def route(self, x_ND: Tensor, routing: Routing, sequences: int = 1) -> tuple[Tensor, Tensor]:
        """Weights and experts of each token, (N, C), in float32."""
        weights_NC, chosen_NC = self.router(x_ND.float()).softmax(-1).topk(self.moe.top_k, dim=-1)
        if self.moe.normalise == "chosen":
            weights_NC = weights_NC / weights_NC.sum(-1, keepdim=True)
        capacity = self.moe.sequence_capacity
        if capacity is None:
            return weights_NC, chosen_NC
        if isinstance(routing, Queues):
            return weights_NC * routing.kept(chosen_NC, self.moe.experts, capacity), chosen_NC
        every_NC = torch.ones_like(weights_NC, dtype=torch.bool)  # an encoder's sequences, whole
        return weights_NC * self._taken(chosen_NC, every_NC, capacity, sequences), chosen_NC


@torch.no_grad()
def packed(model: Transformer, precision: Precision) -> Transformer:
    """The model as it is now, with packed matrices. Embeddings and norms are copied in float32, but for the tables of a
    model that is as its file (`mapped.untouched`)."""
    kinds = (nn.Linear, Experts, nn.Embedding) if is_untouched() else (nn.Linear, Experts)
    heavy = [m for m in model.modules() if isinstance(m, kinds)]
    shared = {id(p): p for m in heavy for p in m.parameters(recurse=False)}  # packed below: one copy is enough
    made = copy.deepcopy(model, shared).float().eval() if _is_float32(model) else copy.deepcopy(model).float().eval()
    for name, module in list(made.named_modules()):
        if isinstance(module, MoE):
            _put(made, name, PackedMoE(module, precision))
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear):
            _put(made, name, PackedLinear(module.weight, module.bias, precision))
        elif isinstance(module, FeedForward):
            module.activation = rowwise(module.activation)
    return made


def _is_float32(model: nn.Module) -> bool:
    return all(p.dtype == torch.float32 for p in model.parameters())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, module)
