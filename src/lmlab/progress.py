"""What a stage shows while it works: a progress bar on a terminal, and `metrics.jsonl` always.

The JSON Lines file is the truth; trackers (TensorBoard, Weights & Biases) get the same numbers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab.ranks import rank


def say(message: str) -> None:
    """A line for people, on standard error: standard output belongs to results. Of several processes rank 0 speaks."""
    if rank() == 0:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def bar(title: str, total: int | None, done: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and time left; quiet when standard error is not a terminal.

    Yields `advance(n=1, note="")`.
    """
    if not sys.stderr.isatty() or rank() > 0:
        yield lambda n=1, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, completed=done, rate="", note="")
        started, count = time.monotonic(), 0

        def advance(n: int = 1, note: str = "") -> None:
            nonlocal count
            count += n
            rate = count / max(time.monotonic() - started, 1e-9)
            progress.update(task, advance=n, rate=f"{rate:,.1f}/s", note=note)

        yield advance


class Metrics:
    """Appends one JSON object a line to `metrics.jsonl`; after a resume, lines past the resumed step are cut off.

    So the file of a run that was killed and resumed holds the steps of an uninterrupted one (times aside). While a disk is
    full, lines wait in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._folder = folder
        self._file: Any = None
        self._waiting = bytearray()
        self._full = False
        self._trackers: list[Any] = []
        self._names: Sequence[str] | None = ()
        self._settings: Mapping[str, Any] = {}

    def track(self, names: Sequence[str] | None, settings: Mapping[str, Any]) -> None:
        """Which trackers get the numbers from here on (None: TensorBoard where it is installed), and the settings that
        they show. None before: a stage that does not train should not load what TensorBoard loads (torch, seconds)."""
        self.close()
        self._names, self._settings = names, settings

    def rewind(self, step: int) -> None:
        """Keep only whole lines of steps below `step`: those the resumed work does not write again."""
        self.close()
        if not self.path.exists() or rank() > 0:
            return
        kept = [line for line in read_jsonl(self.path) if line.get("step", -1) < step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Write one line {step, ...values}; numbers go to the trackers too. Of several processes rank 0 writes."""
        if rank() > 0:
            return
        self._waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
                from lmlab.trackers import open_trackers

                self._trackers = open_trackers(self._names, self._folder, step, self._settings)
            self._write()
            for tracker in self._trackers:
                tracker.log(step, numbers)
        except OSError as error:
            if not self._full:
                say(f"{self.path}: could not be written: {error.strerror}; what is logged waits in memory")
            self._full = True

    def _write(self) -> None:
        """All that waits. Of a line that is cut by a full disk the rest follows once there is room."""
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]
        self._full = False

    def close(self) -> None:
        if self._file is not None:
            try:
                self._write()
            except OSError as error:
                say(f"{self.path}: could not be written: {error.strerror}; its last lines are lost")
            self._waiting.clear()
            self._file.close()
            self._file = None
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; a half-written last line (a kill in mid-write) is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line) if line else None
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows
