"""Expert parallelism (GShard, 2006.16668): the experts of a layer divided among ranks, and tokens sent to where theirs are.

A router's choice stays as it is: `Experts` is called with rows sorted by expert, and here sends each rank its experts' rows
(all_to_all, as many as there are), and gets the results back. An expert's gradient is then complete but for the ranks that hold
the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.moe import Experts, MoE
from lmlab.train.parallel.collectives import exchanged
from lmlab.train.parallel.tensor import EXPERTS_CUT, parts_of
from lmlab.train.sharded import is_part


def expert_misfits(shape: ModelConfig, ranks: int) -> Iterator[str]:
    """Why a model's experts cannot be divided among so many ranks."""
    where = f"parallel: expert {ranks}"
    if shape.moe is None:
        yield f"{where}: this model has no experts (model.moe)"
    elif shape.moe.experts % ranks:
        yield f"{where}: moe.experts {shape.moe.experts} cannot be divided by it"


def divide_experts(network: nn.Module, mesh: Any) -> set[str]:
    """Divide the experts of every layer, in place, over the ranks of `mesh["expert"]`, and their d_ff over those of
    `mesh["tensor"]`. Before tensor parallelism cuts the rest. Returns the names of the parameters."""
    for module in network.modules():
        if isinstance(module, MoE):
            _divide(module.experts, mesh)
    return {name for name, _ in network.named_parameters() if ".experts." in name}


def _divide(experts: Experts, mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    group = mesh.get_group("expert")
    cut_too = mesh.size(mesh.mesh_dim_names.index("tensor")) > 1
    for name, held in Experts.weights(experts).items():
        if held is not None:
            over, places = (
                (("expert", "tensor"), [Shard(0), Shard(EXPERTS_CUT[name])]) if cut_too else ("expert", [Shard(0)])
            )
            made = distribute_tensor(held.detach(), mesh[over], places, src_data_rank=None)
            setattr(experts, name, nn.Parameter(made, requires_grad=held.requires_grad))
    experts.weights = lambda: parts_of(experts)  # type: ignore[method-assign]
    experts.forward = lambda x_XD, sizes: _sent(experts, x_XD, sizes, group)  # type: ignore[method-assign]
    experts.coming = lambda sizes, device: _coming(sizes, device, group)  # type: ignore[attr-defined]


def _coming(sizes: list[int], device: torch.device, group: Any) -> list[list[int]]:
    """How many rows come from each rank for each of this rank's experts, where each sends `sizes` to the experts of all."""
    sent_RE = torch.tensor(sizes, device=device).view(dist.get_world_size(group), -1)  # E: the experts of a rank
    came_RE = torch.empty_like(sent_RE)
    dist.all_to_all_single(came_RE, sent_RE, group=group)
    return came_RE.tolist()


def _sent(experts: Experts, x_XD: Tensor, sizes: list[int], group: Any) -> Tensor:
    """Rows sorted by expert, `sizes[e]` for expert e of all, each through its own expert, wherever that is."""
    came_RE: list[list[int]] = experts.coming(sizes, x_XD.device)  # type: ignore[operator]
    ranks, own = len(came_RE), len(came_RE[0])
    sent, came = [sum(sizes[at * own : (at + 1) * own]) for at in range(ranks)], [sum(row) for row in came_RE]
    rows_YD = exchanged(x_XD, sent, came, group)
    # By rank and then by expert; the experts take them by expert.
    numbers = torch.arange(own, device=x_XD.device).repeat(ranks)
    repeats = torch.tensor(came_RE, device=x_XD.device).flatten()
    order_Y = numbers.repeat_interleave(repeats, output_size=sum(came)).argsort(stable=True)
    found_YD = Experts.forward(experts, rows_YD[order_Y], [sum(column) for column in zip(*came_RE)])
    return exchanged(found_YD[order_Y.argsort()], came, sent, group)


def shard_experts(network: nn.Module, mesh: Any, reshard: bool, **settings: Any) -> None:
    """ZeRO 2 and 3 for divided experts: over the ranks that hold the same ones."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    ranks = mesh["replicas"].size()

    def place(parameter: Any) -> Any:
        """A dimension that nothing has cut, if it can be divided; the experts, which can be unevenly, come last."""
        taken = {each.dim for each in parameter.placements} if is_part(parameter) else set()
        free = [dim for dim in range(parameter.dim()) if dim not in taken and parameter.shape[dim] % ranks == 0]
        return Shard(free[-1]) if free else None

    for module in network.modules():
        if isinstance(module, Experts):
            fully_shard(
                module, mesh=mesh["replicas"], reshard_after_forward=reshard, shard_placement_fn=place, **settings
            )
