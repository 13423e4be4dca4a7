"""Checkpoints: sharded, written beside training, atomic, checksummed, without pickle; the newest good one is taken.

    checkpoints/step-00000500/   rank-00000.safetensors ...   what each rank held, every piece once (pieces.py)
                                 index.json                   which piece of which tensor lies where
                                 state.json                   the rest: metrics, data position, detector of spikes
                                 SHA256SUMS                   of all of these, as `sha256sum -c` reads it

Tensors are copied to the CPU's memory at the step; a thread writes the copies while training goes on. A folder gets its name
once all ranks' files are on the disk. `torch.distributed.checkpoint`'s own writer pickles its metadata, see
docs/architecture.md.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lmlab.errors import Failed
from lmlab.progress import say
from lmlab.provenance import digest_file
from lmlab.train import pieces
from lmlab.train.keeping import Keep
from lmlab.train.optimizer import named_state, restore_state
from lmlab.train.parallel.layout import Layout
from lmlab.train.parallel.messages import Messages
from lmlab.train.sharded import local, whole

SUMS = "SHA256SUMS"
Take = Callable[[pieces.Saved, str], None]
"""Takes the tensors of a group (see `Saved`) that it gave to `save` under that name."""


class Checkpoints:
    """The checkpoints of a folder, which all ranks see. Every rank makes one, and calls the same methods at the same steps."""

    def __init__(self, folder: Path, layout: Layout | None = None, keep: Keep | None = None) -> None:
        self.folder, self.layout, self.keep = folder, layout or Layout(), keep or Keep()
        self._messages = Messages(self.layout.several)
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._error: Exception | None = None

    # --- writing -----------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        network: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        state: Mapping[str, Any],
        more: Mapping[str, Mapping[str, Tensor]] | None = None,
        back: int | None = None,
    ) -> None:
        """Begin to write the checkpoint taken before `step`, once the one before is written. Then all that `keep` does not keep
        is dropped; with `back` those stay that are needed to go back to that step. `state` are plain values, `state["score"]`
        what the best have least of; `more` are further groups of tensors, by name.
        """
        self.settle()
        final, temporary = _place(self.folder, step), self.folder / f".step-{step:08d}.tmp"
        grouped = {"network": trained_state(network), "optimizer": named_state(network, optimizers), **(more or {})}
        tensors = {f"{group}/{name}": t for group, held in grouped.items() for name, t in held.items()}
        made = _tried(lambda: _emptied(temporary)) if self.layout.leads else None
        told = self._messages.gather([made, pieces.describe(tensors)])
        index = pieces.divide([described for _, described in told])
        if told[0][0] is not None:
            self._problem = f"{final}: {told[0][0]}"
            return
        rank = self.layout.world.rank
        copies = pieces.copied(tensors, index, rank)
        text = json.dumps({**state, "step": step, "ranks": self.layout.world.size}, indent=1, allow_nan=False)

        def work() -> None:
            found: dict[str, Any] = {}
            problem = _tried(lambda: found.update(pieces.write_file(temporary / pieces.file_of(rank), copies)))
            copies.clear()
            told = self._messages.gather([problem, found])
            problem = next((f"{f'rank {n}: ' * (n > 0)}{each}" for n, (each, _) in enumerate(told) if each), None)
            if self.layout.leads and problem is None:
                files = {pieces.file_of(n): each for n, (_, each) in enumerate(told)}
                problem = _tried(lambda: _commit(temporary, final, files, index, text))
            if self.layout.leads and problem is None:
                _tried(lambda: self._drop(back))
            elif self.layout.leads:
                shutil.rmtree(temporary, ignore_errors=True)
            problem = self._messages.gather(problem)[0]
            self._problem = None if problem is None else f"{final}: {problem}"

        self._thread = threading.Thread(target=self._guarded, args=(work,), name=f"saves step {step}", daemon=True)
        self._thread.start()

    def settle(self) -> str | None:
        """Wait until what is being written is written. Why the disk did not take it, which is also said, or None. Raises
        whatever else went wrong: a rank that is gone, a bug."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        problem, self._problem = self._problem, None
        if problem is not None:
            before = listed(self.folder)
            say(f"{problem}; not saved. {f'{before[-1]} is untouched' if before else 'There is none before it'}")
        return problem

    def _guarded(self, work: Callable[[], None]) -> None:
        """What a thread raises would be lost with it."""
        try:
            work()
        except Exception as error:
            self._error = error

    def _drop(self, back: int | None) -> None:
        scores = {step_of(path): _score(path) for path in listed(self.folder)}
        for step in self.keep.spare(scores, back):
            remove(_place(self.folder, step))

    # --- reading -----------------------------------------------------------------------------------------------------

    def restore(
        self,
        network: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        more: Mapping[str, Take] | None = None,
        wanted: Callable[[dict[str, Any]], bool] = lambda state: True,
    ) -> dict[str, Any] | None:
        """Load the newest good checkpoint whose state is `wanted` into network and optimizers; its state, or None for none.
        `more` take the further groups, by name. However many ranks wrote it, each takes its part.

        A damaged one is said aloud, renamed to `damaged-STEP`, and passed over for the one before.
        """
        self.settle()
        if self.layout.leads:
            for left in (*self.folder.glob(".step-*.tmp"), *self.folder.glob(".step-*.old")):
                shutil.rmtree(left, ignore_errors=True)  # of a life that was killed
        steps = self._messages.gather([step_of(path) for path in listed(self.folder)])[0]
        for step in reversed(steps):
            path = _place(self.folder, step)
            state = self._checked(path)
            if state is not None and wanted(state):
                self._load(path, network, optimizers, more or {})
                return state
        return None

    def _checked(self, path: Path) -> dict[str, Any] | None:
        """The state of a good checkpoint; each rank checks its share of the files."""
        world = self.layout.world
        problem = next(filter(None, self._messages.gather(damage(path, world.rank, world.size))), None)
        if problem is None:
            return json.loads((path / "state.json").read_text(encoding="utf-8"))
        if self.layout.leads:
            say(f"{path}: is damaged ({problem}); using the one before")
            aside = path.with_name(path.name.replace("step", "damaged"))
            shutil.rmtree(aside, ignore_errors=True)
            _tried(lambda: path.rename(aside))
        return None

    @torch.no_grad()
    def _load(
        self, path: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], more: Mapping[str, Take]
    ) -> None:
        saved, held = pieces.Saved(path), trained_state(network)
        wanted = {name for names in self._messages.gather(sorted(held)) for name in names}
        found = set(saved.names("network"))
        if found != wanted:
            raise Failed(f"{path}: holds other weights than this network: {sorted(found ^ wanted)[:3]}")
        for name, tensor in held.items():
            if saved.shape(f"network/{name}") != list(tensor.shape):
                raise Failed(
                    f"{path}: holds other weights than this network: {name} has shape {saved.shape(f'network/{name}')}, "
                    f"expected {list(tensor.shape)}"
                )
            local(tensor).copy_(saved.part(f"network/{name}", tensor))
        for optimizer in optimizers:
            optimizer.state.clear()
        restore_state(network, optimizers, saved, "optimizer")
        for group, take in more.items():
            take(saved, group)


# --- a checkpoint's files --------------------------------------------------------------------------------------------


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _tried(work: Callable[[], Any]) -> str | None:
    """Why it could not be done, or None."""
    try:
        work()
    except OSError as error:
        return f"{error.strerror or error}"
    return None


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _commit(temporary: Path, final: Path, files: Mapping[str, Any], index: Mapping[str, Any], state: str) -> None:
    """All ranks' files are on the disk: the small ones too, then the name. Raises OSError."""
    for name, told in files.items():
        path = temporary / name
        if not path.is_file() or path.stat().st_size != told["bytes"]:
            raise OSError(None, f"{name} is not seen by rank 0: all ranks must see the run directory under one path")
    sums = {name: told["sha256"] for name, told in files.items()}
    for name, text in {pieces.INDEX: json.dumps(index), "state.json": state}.items():
        _write(temporary / name, text + "\n")
        sums[name] = digest_file(temporary / name)
    _write(temporary / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    _sync(temporary)
    retired = _retired(final)
    if final.exists():
        final.rename(retired)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Names are on the disk once their folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _retired(path: Path) -> Path:
    """The name of a checkpoint that goes, which is free."""
    retired = path.with_name(f".{path.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    return retired


def remove(path: Path) -> None:
    """A checkpoint that loses its name first is never seen half removed."""
    path.rename(_retired(path))
    shutil.rmtree(_retired(path), ignore_errors=True)


def damage(path: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, or None. Of several ranks each looks at its share of them."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        if not {pieces.INDEX, "state.json"} <= sums.keys():
            return f"{SUMS} is cut off"
        for place, name in enumerate(sorted(sums)):
            if place % ranks == rank and digest_file(path / name) != sums[name]:
                return f"{name}: its checksum differs"
        entries = json.loads((path / pieces.INDEX).read_text(encoding="utf-8"))["tensors"].values()
        lost = {piece["file"] for entry in entries for piece in entry["pieces"]} - sums.keys()
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read: {error}"  # not UTF-8, not JSON, or not what was written
    return f"{SUMS} lacks {min(lost)}" if lost else None


def good(path: Path) -> bool:
    """Whether a checkpoint's files are what was written."""
    return damage(path) is None


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def listed(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir()) if folder.is_dir() else []


def _score(path: Path) -> float | None:
    try:
        return json.loads((path / "state.json").read_text(encoding="utf-8")).get("score")
    except (OSError, ValueError):
        return None


# --- tensors ---------------------------------------------------------------------------------------------------------


def gathered(network: nn.Module, layout: Layout | None = None) -> dict[str, Tensor]:
    """The whole weights of a network of which each rank holds a part. Every rank must call it."""
    return (layout or Layout()).together({name: whole(tensor) for name, tensor in network.state_dict().items()})


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: parameters that take a gradient, a tied one under its first name, and buffers that are
    kept."""
    every = dict(network.named_parameters(remove_duplicate=False))
    once = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in network.state_dict().items() if name in once or name not in every}


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
