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


def span(like: Tensor) -> tuple[list[int], list[int]]:
    """Where in the whole tensor lies what this rank holds of it: (offset, shape), a number a dimension."""
    offset, shape = [0] * like.dim(), list(like.shape)
    if not is_part(like):
        return offset, shape
    from torch.distributed.tensor.placement_types import _StridedShard

    placements, mesh = like.placements, like.device_mesh  # type: ignore[attr-defined]
    # A strided shard cuts what the dimensions after it have cut already (FSDP over tensor parallel).
    order = sorted(range(len(placements)), key=lambda at: (isinstance(placements[at], _StridedShard), at))
    for at in order:
        if placements[at].is_shard() or isinstance(placements[at], _StridedShard):
            dim = placements[at].dim
            length = -(-shape[dim] // mesh.size(at))  # as torch.chunk cuts: the last ones get less, or nothing
            start = min(mesh.get_local_rank(at) * length, shape[dim])
            offset[dim] += start
            shape[dim] = min(length, shape[dim] - start)
    return offset, shape


def part(full: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what `like` holds here, as a plain tensor."""
    for dim, (start, length) in enumerate(zip(*span(like))):
        full = full.narrow(dim, start, length)
    return full


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
