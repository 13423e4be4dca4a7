"""Checkpoints: atomic, checksummed, without pickle; the newest good one is found by its checksums.

    checkpoints/step-00000500/   network.safetensors  optimizer.safetensors  state.json (with the sha256 of the others)

`torch.distributed.checkpoint`'s own writer pickles its metadata, so these files are safetensors and JSON (see
docs/architecture.md).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmlab.errors import Failed
from lmlab.progress import say
from lmlab.provenance import digest_file
from lmlab.run import folder_atomic, write_json
from lmlab.train.optimizer import named_state, restore_state
from lmlab.train.parallel.layout import Layout
from lmlab.train.sharded import is_part, local, part, whole


def save(
    folder: Path,
    step: int,
    network: nn.Module,
    optimizers: list[Any],
    state: dict[str, Any],
    keep: int,
    more: Mapping[str, dict[str, Tensor]] | None = None,
    back: int | None = None,
    layout: Layout | None = None,
) -> Path:
    """Write the checkpoint taken before `step`; then drop all but the newest `keep`, and with `back` those that are needed
    to go back to that step. `more` are further files of tensors, by name. Of several ranks, all of which must call it, the
    first gathers the tensors and writes them, so that a checkpoint knows nothing of ranks.
    """
    layout = layout or Layout()
    path = folder / f"step-{step:08d}"
    optimizer = layout.collect(_gathered(named_state(network, optimizers)))
    weights = layout.together(_gathered(trained_state(network)))
    more = {name: layout.together(_gathered(each)) for name, each in (more or {}).items()}
    if not layout.leads:
        layout.barrier()
        return path
    try:
        with folder_atomic(path) as temporary:
            save_file(_apart(weights), temporary / "network.safetensors")
            save_file(_apart(optimizer), temporary / "optimizer.safetensors")
            for name, tensors in more.items():
                save_file(_apart(tensors), temporary / f"{name}.safetensors")
            sums = {file.name: digest_file(file) for file in temporary.iterdir()}
            write_json(temporary / "state.json", {**state, "step": step, "sha256": sums})
    except OSError as error:
        raise Failed(
            f"{path}: could not be written ({error.strerror}); the checkpoints before it are untouched"
        ) from None
    for old in _spare(listed(folder), keep, back):
        shutil.rmtree(old)
    layout.barrier()
    return path


def gathered(network: nn.Module, layout: Layout | None = None) -> dict[str, Tensor]:
    """The whole weights of a network of which each rank holds a part. Every rank must call it."""
    return (layout or Layout()).together(_gathered(network.state_dict()))


def _gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in tensors.items()}


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def _spare(paths: list[Path], keep: int, back: int | None) -> list[Path]:
    """Of checkpoints, oldest first, those that may go."""
    old = paths[:-keep]
    if back is None:
        return old
    reaching = [path for path in paths if step_of(path) <= back]
    oldest = reaching[-1] if reaching else paths[0]
    return [path for path in old if step_of(path) < step_of(oldest)]


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: parameters that take a gradient, and buffers that are kept."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one memory: the second (a tied weight) is left out."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in tensors.items():
        held = local(tensor)
        if held.data_ptr() not in seen or held.numel() == 0:
            seen.add(held.data_ptr())
            kept[name] = tensor.contiguous()
    return kept


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []


def good(path: Path) -> dict[str, Any] | None:
    """The state of a checkpoint whose files match their checksums, else None."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if all(digest_file(path / name) == wanted for name, wanted in state["sha256"].items()):
            return state
    except (OSError, ValueError, KeyError, TypeError):
        pass  # unreadable, not UTF-8, not JSON, or not what was written: damaged all the same
    return None


def restore(
    folder: Path,
    network: nn.Module,
    optimizers: list[Any],
    more: Mapping[str, Callable[[dict[str, Tensor]], None]] | None = None,
    wanted: Callable[[dict[str, Any]], bool] = lambda state: True,
    layout: Layout | None = None,
) -> dict[str, Any] | None:
    """Load the newest good checkpoint whose state is `wanted` into network and optimizers; its state, or None for none.
    `more` are takers of the further files, by name. Of several ranks the first chooses it, and each takes its part.

    A damaged one is said aloud and passed over for the one before.
    """
    layout = layout or Layout()
    path = _newest(folder, wanted) if layout.leads else None
    step = int(layout.agree(-1 if path is None else step_of(path)))
    if step < 0:
        return None
    path = folder / f"step-{step:08d}"
    names = set(_apart(trained_state(network)))
    weights = load_file(path / "network.safetensors")
    if set(weights) != names | layout.elsewhere:
        odd = sorted(set(weights) ^ (names | layout.elsewhere))
        raise Failed(f"{path}: holds other weights than this network: {odd[:3]}")
    put(network, {name: tensor for name, tensor in weights.items() if name in names})
    for optimizer in optimizers:
        optimizer.state.clear()
    restore_state(network, optimizers, load_file(path / "optimizer.safetensors"))
    for name, take in (more or {}).items():
        take(load_file(path / f"{name}.safetensors"))
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


@torch.no_grad()
def put(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a network, of which this rank may hold a part, the whole weights of a checkpoint."""
    held = network.state_dict()
    if not any(is_part(tensor) for tensor in held.values()):
        network.load_state_dict(weights, strict=False)
        return
    for name, tensor in weights.items():
        local(held[name]).copy_(part(tensor, held[name]))


def _newest(folder: Path, wanted: Callable[[dict[str, Any]], bool]) -> Path | None:
    for path in reversed(listed(folder)):
        state = good(path)
        if state is None:
            say(f"{path}: is damaged (a checksum differs); using the one before")
            continue
        if wanted(state):
            return path
    return None


def write_batches(path: Path, batches: Sequence[Any]) -> Path:
    """Micro-batches as they are (every field that is a tensor), to look at what made a loss that is no number."""
    tensors = {
        f"{place}.{name}": value.contiguous().clone()
        for place, batch in enumerate(batches)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
    save_file(tensors, path)
    return path
