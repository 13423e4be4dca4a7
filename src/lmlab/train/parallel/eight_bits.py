"""Which of a network's layers multiply in float8: every matrix in a block.

Those are attention's q, k, v and out, feed-forward layers' gate, up and down, and the experts'. The rest stays as it is in
bfloat16: embedding and head, because small errors there reach every logit; routers, norms and softmax, which are float32;
attention's own products, which have no weights and whose scores span many powers of two. A matrix with a size that is no multiple
of 16 stays too, since the hardware cannot take it.

Layers change their class and nothing else: names and types of weights, checkpoints and what is saved are those of every precision.
Evaluating (`network.eval()`) is done in bfloat16, as the model that is saved is read elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lmlab.errors import Refused
from lmlab.model.attention import Attention
from lmlab.model.feed_forward import FeedForward
from lmlab.model.moe import Experts
from lmlab.train.float8 import MULTIPLE, linear
from lmlab.train.sharded import is_part, local

MATRICES: dict[type[nn.Module], tuple[str, ...]] = {
    Attention: ("q", "k", "v", "out"),
    FeedForward: ("gate", "up", "down"),
}


class Float8Linear(nn.Linear):
    """An nn.Linear that trains in float8, whole or cut among ranks by columns or by rows."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return (_cut_linear if is_part(self.weight) else linear)(input, self.weight, self.bias)


class Float8Experts(Experts):
    """Experts that train in float8, each with scales of its own."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return (linear if self.training else F.linear)(x, weight, bias)


def _cut_linear(x: Any, weight: Any, bias: Any) -> Any:
    """Of DTensors: each rank multiplies what it holds, with scales of that. By columns every rank sees all of x and makes some of
    the outputs, by rows it sees some inputs and makes a part of a sum (Megatron-LM, 1909.08053)."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = weight.device_mesh
    if weight.placements == (Shard(0),):
        seen, gradient, made = Replicate(), Partial(), Shard(x.dim() - 1)
        held = None if bias is None else bias.to_local()
    else:
        seen, gradient, made = Shard(x.dim() - 1), Shard(x.dim() - 1), Partial()
        # The bias is added to a part of the sum on every rank: a share of it.
        held = None if bias is None else bias.to_local(grad_placements=[Partial()]) / mesh.size()
    assert x.placements == (seen,), (x.placements, seen)
    found = linear(x.to_local(grad_placements=[gradient]), weight.to_local(), held)
    return DTensor.from_local(found, mesh, [made], run_check=False)


def to_float8(network: nn.Module) -> str:
    """Let a network's matrices train in float8, in place, after they are cut among ranks and before they are divided (ZeRO).
    Returns what is to be said of it. Raises Refused where none can."""
    changed, stay = 0, []
    for path, module in network.named_modules():
        if type(module) is Experts:
            held = {name: w[0] for name, w in module.weights().items() if w is not None and w.dim() == 3}
            if all(_fits(weight) for weight in held.values()):
                module.__class__ = Float8Experts
                changed += len(held)
            else:
                stay += [f"{path}.{name} ({' x '.join(map(str, w.shape))})" for name, w in held.items()]
        for name in next((names for kind, names in MATRICES.items() if isinstance(module, kind)), ()):
            layer = getattr(module, name)
            if type(layer) is not nn.Linear:
                continue
            weight = local(layer.weight)
            if _fits(weight):
                layer.__class__ = Float8Linear
                changed += 1
            else:
                stay.append(f"{path}.{name} ({' x '.join(map(str, weight.shape))})")
    if not changed:
        raise Refused(
            f"precision float8: no matrix of this network has sizes that are multiples of {MULTIPLE}: expected bfloat16"
            + (f" (found {stay[0]})" if stay else "")
        )
    said = f"float8: {changed} matrices of blocks"
    if stay:
        said += f"; {len(stay)} stay in bfloat16, their sizes being no multiples of {MULTIPLE}: {', '.join(stay[:4])}"
        said += ", ..." if len(stay) > 4 else ""
    return said


def from_float8(network: nn.Module) -> None:
    """Take back `to_float8`."""
    plain: dict[type[nn.Module], type[nn.Module]] = {Float8Linear: nn.Linear, Float8Experts: Experts}
    for module in network.modules():
        module.__class__ = plain.get(type(module), type(module))


def _fits(weight: Tensor) -> bool:
    return all(size % MULTIPLE == 0 for size in weight.shape)
