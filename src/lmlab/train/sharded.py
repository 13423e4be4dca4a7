"""A tensor whose parts lie on several ranks (torch's DTensor), and the same functions for one that does not.

For a plain tensor all of them give back what they were given, so whoever uses them need not ask.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_part(tensor: Any) -> bool:
    """Whether this rank holds a part of it under a global shape."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds, sharing memory. For elementwise work on it, without autograd."""
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of it, gathered. A collective call where it is a part: every rank must make it."""
    return tensor.full_tensor() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def part(full: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what `like` holds here, as a plain tensor."""
    if not is_part(like):
        return full
    from torch.distributed.tensor.placement_types import _StridedShard

    placements, mesh = like.placements, like.device_mesh  # type: ignore[attr-defined]
    # A strided shard cuts what the dimensions after it have cut already (FSDP over tensor parallel).
    order = sorted(range(len(placements)), key=lambda at: (isinstance(placements[at], _StridedShard), at))
    found = full
    for at in order:
        if placements[at].is_shard() or isinstance(placements[at], _StridedShard):
            dim = placements[at].dim
            pieces, place = found.chunk(mesh.size(at), dim), mesh.get_local_rank(at)
            found = pieces[place] if place < len(pieces) else found.narrow(dim, 0, 0)
    return found


def alike(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that lies as `like` does."""
    if not is_part(like):
        return tensor
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(tensor, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def mesh_of(tensor: Tensor) -> Any:
    """The ranks that it lies on, None for a plain tensor: tensors of one mesh can be worked on in one call."""
    return tensor.device_mesh if is_part(tensor) else None  # type: ignore[attr-defined]
