"""Where a stage's numbers go beside `metrics.jsonl`, which stays their source: TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator

from lmlab.errors import Failed

Name = Literal["tensorboard", "wandb"]
FOLDERS = ("tensorboard", "wandb")
"""Folders in a stage's own that trackers write: no part of what it made."""


def missing(name: str) -> str | None:
    """The command that installs what a tracker needs, where it is not installed."""
    return None if importlib.util.find_spec(name) else f"pip install 'lmlab[{name}]'"


def _installed(names: tuple[Name, ...] | None) -> tuple[Name, ...] | None:
    for name in names or ():
        command = missing(name)
        if command is not None:
            raise ValueError(f"{name} is not installed: {command}")
    return names


LogTo = Annotated[tuple[Name, ...] | None, AfterValidator(_installed)]
"""Names of trackers; null: TensorBoard where it is installed. One that is not is refused when the recipe is read."""


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def log(self, step: int, values: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in STAGE/tensorboard; of a run that was resumed what it writes again replaces what it wrote."""

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, files in STAGE/wandb; a stage that is resumed goes on with its own run.

    WANDB_PROJECT (default lmlab), WANDB_MODE (offline: files only) and the others of its variables count. Its history only
    grows: of a step that is taken again, after a kill or a spike, it keeps what it was told first. Raises Failed where no run
    can be opened.
    """

    def __init__(self, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        import wandb

        where = folder.resolve()
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "lmlab"),
                id=hashlib.sha256(json.dumps([str(where), _begun(where)]).encode()).hexdigest()[:16],
                name=f"{where.parent.name}/{where.name}",
                resume="allow",
                dir=str(where),
                config=dict(settings),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # its client raises many kinds; each means that there is no run
            raise Failed(
                f"log_to: wandb: no run could be opened: {type(error).__name__}: {error}; log in with `wandb login`, or set "
                "WANDB_MODE=offline, which writes files only (`wandb sync` sends them later)"
            ) from None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _begun(folder: Path) -> str:
    """What the stage is: a stage that is made anew in the same place gets a run of its own."""
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


_TRACKERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def open_trackers(names: Sequence[str] | None, folder: Path, step: int, settings: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a stage that logs from `step` on. None: TensorBoard where it is installed."""
    if names is None:
        names = () if missing("tensorboard") else ("tensorboard",)
    return [_TRACKERS[name](folder, step, settings) for name in dict.fromkeys(names)]
