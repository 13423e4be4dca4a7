"""Tensors of which each rank holds a piece, as files: one safetensors file a rank, and an index of what lies where.

    index.json   {"tensors": {NAME: {"dtype", "shape", "pieces": [{"file", "offset", "shape"}]}}}

A piece stands in its file under the tensor's name. The index knows nothing of layouts, only of boxes in whole tensors, so any
number of ranks can read what any other number wrote, each no more than its own part.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmlab.train.sharded import local, span

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of them."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

INDEX = "index.json"
BLOCK_BYTES = 16 << 20
"""Written, and hashed, at a time."""


def file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def describe(tensors: Mapping[str, Tensor]) -> list[list[Any]]:
    """[name, dtype, whole shape, offset, shape] of what this rank holds, as JSON values."""
    return [[name, NAMES[tensor.dtype], list(tensor.shape), *span(tensor)] for name, tensor in tensors.items()]


def divide(described: Sequence[Sequence[list[Any]]]) -> dict[str, Any]:
    """Of what each rank holds, the index: every piece is written once, by that of its holders which has least to write so far.
    A function of what is described, so that all ranks come to the same one. Raises ValueError where pieces do not make up
    the tensor, or ranks do not agree on what it is."""
    holders: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[int]] = {}
    tensors: dict[str, Any] = {}
    for rank, listed in enumerate(described):
        for name, dtype, whole, offset, shape in listed:
            entry = tensors.setdefault(name, {"dtype": dtype, "shape": whole, "pieces": []})
            if (entry["dtype"], entry["shape"]) != (dtype, whole):
                raise ValueError(
                    f"{name}: is {dtype} {whole} on rank {rank}, and {entry['dtype']} {entry['shape']} before"
                )
            if 0 not in shape or 0 in whole:
                holders.setdefault((name, tuple(offset), tuple(shape)), []).append(rank)
    load = [0] * len(described)
    for (name, offset, shape), ranks in sorted(holders.items(), key=lambda each: (-math.prod(each[0][2]), each[0])):
        writer = min(ranks, key=lambda rank: (load[rank], rank))
        size = math.prod(shape) * DTYPES[tensors[name]["dtype"]].itemsize
        load[writer] += size
        tensors[name]["pieces"].append({"file": file_of(writer), "offset": list(offset), "shape": list(shape)})
    for name, entry in tensors.items():
        held, wanted = sum(math.prod(piece["shape"]) for piece in entry["pieces"]), math.prod(entry["shape"])
        if held != wanted:
            raise ValueError(f"{name}: its pieces hold {held} of its {wanted} numbers")
    return {"tensors": tensors}


def copied(tensors: Mapping[str, Tensor], index: Mapping[str, Any], rank: int) -> dict[str, Tensor]:
    """Copies in CPU memory of the pieces that this rank writes."""
    file, made = file_of(rank), {}
    for name, tensor in tensors.items():
        offset, shape = span(tensor)
        if {"file": file, "offset": offset, "shape": shape} in index["tensors"][name]["pieces"]:
            held = local(tensor.detach())
            copy = torch.empty(held.shape, dtype=held.dtype, pin_memory=held.is_cuda)
            made[name] = copy.copy_(held, non_blocking=held.is_cuda)
    if any(copy.is_pinned() for copy in made.values()):
        torch.cuda.synchronize()
    return made


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file, and have it on the disk when this returns: {sha256, bytes}. Raises OSError.

    Not safetensors' own writer, which makes all of the file in memory before it writes, and reports no OSError when the disk is
    full; what it has written would have to be read again for the checksum.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for block in _blocks([len(text).to_bytes(8, "little") + text], tensors.values()):
            digest.update(block)
            done = 0
            while done < len(block):
                done += file.write(block[done:])
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": 8 + len(text) + end}


def _blocks(first: list[bytes], tensors: Iterable[Tensor]) -> Iterable[memoryview]:
    yield from map(memoryview, first)
    for tensor in tensors:
        if tensor.numel():
            numbers: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            data = memoryview(numbers)
            for start in range(0, len(data), BLOCK_BYTES):
                yield data[start : start + BLOCK_BYTES]


class Saved:
    """What stands in a folder of pieces. Files are mapped: only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["tensors"]
        self._files: dict[str, Any] = {}

    def names(self, group: str) -> list[str]:
        """The names under `group/`, without it."""
        return [name.removeprefix(f"{group}/") for name in self.tensors if name.startswith(f"{group}/")]

    def shape(self, name: str) -> list[int]:
        return self.tensors[name]["shape"]

    def part(self, name: str, like: Tensor) -> Tensor:
        """Of the whole tensor what `like` holds here, a plain tensor on the CPU."""
        return self.read(name, *span(like))

    def read(self, name: str, offset: list[int] | None = None, shape: list[int] | None = None) -> Tensor:
        """A box of the tensor, all of it by default."""
        entry = self.tensors[name]
        shape = entry["shape"] if shape is None else shape
        offset = [0] * len(shape) if offset is None else offset
        made = torch.empty(shape, dtype=DTYPES[entry["dtype"]])
        for piece in entry["pieces"]:
            low = [max(a, b) for a, b in zip(offset, piece["offset"])]
            high = [min(a + n, b + m) for a, n, b, m in zip(offset, shape, piece["offset"], piece["shape"])]
            if any(a >= b for a, b in zip(low, high)):
                continue
            if (piece["offset"], piece["shape"]) == (low, [b - a for a, b in zip(low, high)]):
                found = self._file(piece["file"]).get_tensor(name)
            else:
                found = self._file(piece["file"]).get_slice(name)[_box(low, high, piece["offset"])]
            made[_box(low, high, offset)] = found
        return made

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._files:
            self._files[name] = safe_open(self.folder / name, framework="pt")
        return self._files[name]


def _box(low: list[int], high: list[int], origin: list[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin))
