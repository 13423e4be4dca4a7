"""Weight files: safetensors, one or sharded with an index, read and written; pytorch_model.bin, read as tensors only."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.errors import Refused
from lmlab.run import write_json

SAFE, OLD = "model.safetensors", "pytorch_model.bin"
LIMIT = 5 * 10**9
"""Bytes above which weights are written in several files, as the ecosystem does."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory under the files' names and in their types. Safetensors come before the older .bin files,
    and an index before a single file. Raises Refused where there are none, or a file is damaged or does not hold what the
    index says."""
    for name in (SAFE, OLD):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _sharded(folder, index)
        if (folder / name).is_file():
            return _tensors(folder / name)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return _tensors(others[0])
    raise Refused(f"{folder}: holds no weights: expected {SAFE}, {OLD}, or one of them in parts with an index")


def _sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        listed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(listed.values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise Refused(f"{index}: is no index: expected {{'weight_map': {{name: file}}}}") from None
    weights: dict[str, Tensor] = {}
    for part in parts:
        path = folder / part
        if Path(part).name != part or not path.is_file():
            raise Refused(f"{index}: names {part}, which is not in {folder}")
        found = _tensors(path)
        wanted = {name for name, file in listed.items() if file == part}
        if wanted != set(found):
            lost, more = sorted(wanted - set(found)), sorted(set(found) - wanted)
            said = "; ".join(
                f"{word}: {names_of(names)}" for word, names in (("lacks", lost), ("also holds", more)) if names
            )
            raise Refused(f"{path}: is not what {index.name} says it is: {said}")
        weights |= found
    return weights


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".bin":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise Refused(f"{path}: is damaged or not a safetensors file: {error}") from None
    try:  # weights_only: a file that would run code is refused, not run
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).split("\n", maxsplit=1)[0]
        raise Refused(f"{path}: is damaged, or holds more than tensors, which is not opened: {first}") from None
    if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
        raise Refused(f"{path}: expected tensors by name")
    return dict(found)


def write_weights(folder: Path, weights: dict[str, Tensor], limit: int = LIMIT) -> list[str]:
    """Write tensors as one file, or in parts of at most `limit` bytes with an index. Returns the files' names.

    Parts appear under temporary names and are renamed; the index comes last, and what it replaces goes after it.
    """
    groups = list(_groups(weights, limit))
    count = len(groups)
    names = [SAFE] if count == 1 else [f"model-{place:05}-of-{count:05}.safetensors" for place in range(1, count + 1)]
    for name, group in zip(names, groups):
        temporary = folder / f".{name}.tmp"
        save_file({key: tensor.contiguous() for key, tensor in group.items()}, temporary, metadata={"format": "pt"})
        temporary.replace(folder / name)
    if count > 1:
        place = {key: name for name, group in zip(names, groups) for key in group}
        total = sum(map(_bytes, weights.values()))
        names.append(f"{SAFE}.index.json")
        write_json(folder / names[-1], {"metadata": {"total_size": total}, "weight_map": place})
    for stale in [*folder.glob("model*.safetensors"), folder / f"{SAFE}.index.json"]:
        if stale.name not in names:
            stale.unlink(missing_ok=True)
    return names


def _groups(weights: dict[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights.items():
        if group and size + _bytes(tensor) > limit:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += _bytes(tensor)
    yield group


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def names_of(names: list[str], most: int = 5) -> str:
    """The first few names of a list."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
