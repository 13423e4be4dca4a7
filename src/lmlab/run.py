"""A run directory: all the state there is. Atomic writes, provenance, fingerprints, one writer.

    runs/NAME/
      recipe.yaml  run.json  .lock
      STAGE/       state.json while it works; provenance.json once it is finished

A stage is finished when its provenance.json is there, which is written last. Its identity is its fingerprint (kind,
version of the stage's code, settings, seed, identities of its inputs) together with the hashes of what it made, so that
whatever was built on an earlier result is built again when that result changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab import __version__
from lmlab.address import is_address
from lmlab.config import Config
from lmlab.errors import Failed, Refused, Stopped
from lmlab.progress import Metrics, say
from lmlab.provenance import changed, digest, finished, identity, machine, outputs
from lmlab.ranks import Board, rank


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: a temporary name beside it, fsync, rename."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise Failed(f"{path}: could not be written: {error.strerror}; nothing that was there is lost") from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, floats as they are, no infinities (they would not be JSON)."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if path.exists():
        retired = path.with_name(f".{path.name}.old")
        shutil.rmtree(retired, ignore_errors=True)
        path.rename(retired)
        temporary.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        temporary.rename(path)


@dataclass(frozen=True)
class Input:
    """What a stage takes: a role, the kinds of stage that can fill it, and whether it may be absent or several. `model`: any
    MODEL fills it (a run, hf:OWNER/NAME, preset:NAME). `named`: only what `from` names fills it, no stage by itself.
    `addresses`: so does a model behind an address (`api:NAME@URL`); it comes as that text.
    """

    role: str
    kinds: tuple[str, ...]
    required: bool = True
    several: bool = False
    model: bool = False
    named: bool = False
    addresses: bool = False


@dataclass(frozen=True)
class StageKind:
    """A kind of stage. `run` gets a `Context` and returns its headline numbers; it leaves its results in `context.out`.

    `version` changes whenever the code would make something else of the same settings. `sources` lists files or folders
    outside the run whose names, sizes and times belong to the fingerprint. `check` is asked when the recipe is read: given
    the settings and, for each role that is filled, those of the stage that fills it (or the path, or MODEL, as the recipe
    has it), it says what cannot be, or None. `here` is asked before a recipe is run, and not where it is only planned or a
    script is written: what this machine lacks for the settings, or None. Of several processes all run a stage that is
    `distributed`, and rank 0 alone any other. `logs`: names of files that say how the work went and are no part of what was made.
    """

    config: type[Config]
    run: Callable[[Context], Mapping[str, Any]]
    version: int = 1
    inputs: tuple[Input, ...] = ()
    seeded: bool = True
    sources: Callable[[Any], list[Path]] = field(default=lambda config: [])
    check: Callable[[Any, Mapping[str, Any]], str | None] = field(default=lambda config, fillers: None)
    here: Callable[[Any], str | None] = field(default=lambda config: None)
    distributed: bool = False
    logs: frozenset[str] = frozenset()


@dataclass
class Context:
    """What a stage works with. `inputs` maps a role to a directory, or to {name: directory} where several fit. `board` is
    there where several processes run the stage."""

    name: str
    kind: str
    config: Any
    inputs: dict[str, Any]
    out: Path
    seed: int
    metrics: Metrics
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0
    board: Board | None = None

    def plan(self, decide: Callable[[], Mapping[str, Any]], name: str = "plan.json") -> dict[str, Any]:
        """What the clock or the machine decides, decided once: written down before it is used, reused on resume."""
        path = self.out / name

        def make() -> dict[str, Any]:
            if not path.exists():
                write_json(path, dict(decide()))
            return json.loads(path.read_text(encoding="utf-8"))

        return self.first(make)

    @property
    def leads(self) -> bool:
        """Whether this process writes what the stage leaves: rank 0."""
        return rank() == 0

    def first(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes while the others wait, plain JSON values, given to all; one process just makes it."""
        return make() if self.board is None else self.board.first(make)

    def shared(self) -> contextlib.AbstractContextManager[None]:
        """Around what all ranks do: where another is gone, it is named."""
        return contextlib.nullcontext() if self.board is None else self.board.shared()

    @property
    def seconds(self) -> float:
        """Seconds of work so far, all attempts together (as far as the last `tick` of an attempt that was killed)."""
        return self.seconds_before + time.monotonic() - self.started

    def tick(self, **known: Any) -> None:
        """Note the seconds so far, so that a killed attempt's time is counted too; and what is `known` of the work."""
        if not self.leads:
            return
        state = json.loads((self.out / "state.json").read_text(encoding="utf-8"))
        write_json(self.out / "state.json", {**state, **known, "seconds": round(self.seconds, 3)})


def fingerprint(kind: str, spec: StageKind, config: Config, seed: int, inputs: Mapping[str, Any]) -> str:
    """Identity of the work to be done. `inputs` maps a role to the identity (or {name: identity}) of what fills it."""
    listed = []
    for source in spec.sources(config):
        files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        listed += [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if "__pycache__" not in p.parts]
    return digest(
        {
            "kind": kind,
            "version": spec.version,
            "config": config.essence(),
            "seed": seed if spec.seeded else None,
            "inputs": dict(inputs),
            "sources": listed,
        }
    )


class TogetherFailed(Failed):
    """A stage that several processes worked on failed: which of them stands where in it is not known."""


class RunDirectory:
    """One run's directory, held by one writer at a time: the lock is the kernel's, so a killed owner frees it."""

    def __init__(self, path: Path, board: Board | None = None) -> None:
        self.path, self.board = path, board
        self._lock: Any = None

    def __enter__(self) -> RunDirectory:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            self._lock.close()
            raise Refused(f"{self.path}: is being written by {owner}; one run directory has one writer") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}")
        self._lock.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.truncate(0)
        self._lock.close()

    def record(self, name: str, entry: Mapping[str, Any]) -> None:
        """Update one stage's entry of run.json: kind, status, seconds, fingerprint, headline numbers."""
        path = self.path / "run.json"
        run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"lmlab": __version__, "stages": {}}
        run["stages"][name] = dict(entry)
        write_json(path, run)

    def execute(
        self, name: str, kind: str, spec: StageKind, config: Config, seed: int, inputs: dict[str, Any], *, fresh: bool
    ) -> str:
        """Run one stage, or skip it if it is finished, or resume it if it was cut off. Returns what was done.

        Raises Refused where a finished stage was made with other settings and `fresh` was not asked for.
        """
        out = self.path / name
        identities = {
            role: {k: identity(v) for k, v in place.items()} if isinstance(place, dict) else identity(place)
            for role, place in inputs.items()
        }
        wanted = fingerprint(kind, spec, config, seed, identities)
        done = finished(out)
        if done and not fresh:
            if done["fingerprint"] == wanted:
                self.record(name, _entry(kind, "done", done["seconds"], wanted, done["headline"]))
                return "skipped"
            raise Refused(
                f"{out}: is finished with other settings or inputs ({changed(done, config, seed)}); "
                "a finished stage is not overwritten: choose another --out, or pass --fresh to make it again"
            )
        state = _read_state(out)
        resumed = not fresh and not done and state.get("fingerprint") == wanted
        if not resumed:
            if out.is_symlink():
                out.unlink()
            shutil.rmtree(out, ignore_errors=True)
            state = {}
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "state.json", {"fingerprint": wanted, "seconds": state.get("seconds", 0.0)})
        context = Context(
            name, kind, config, inputs, out, seed, Metrics(out), seconds_before=float(state.get("seconds", 0.0))
        )
        self.record(name, _entry(kind, "running", context.seconds_before, wanted, {}))
        say(f"{name}: {'resuming' if resumed else 'starting'}")
        if self.board is not None and spec.distributed:
            context.board = self.board
            self.board.tell(_call(context))
        try:
            with context.shared():
                headline = dict(spec.run(context))
        except BaseException as error:
            context.tick()
            status = "interrupted" if isinstance(error, (KeyboardInterrupt, Stopped)) else "failed"
            self.record(name, _entry(kind, status, round(context.seconds, 3), wanted, {"error": str(error)[:500]}))
            if context.board is not None and isinstance(error, Failed) and not isinstance(error, Stopped):
                raise TogetherFailed(str(error)) from error
            raise
        finally:
            context.metrics.close()
        seconds = round(context.seconds, 3)
        write_json(
            out / "provenance.json",
            {
                "name": name,
                "kind": kind,
                "fingerprint": wanted,
                "config": config.model_dump(mode="json"),
                "seed": seed,
                "inputs": {role: _places(place, self.path) for role, place in inputs.items()},
                "identities": identities,
                "outputs": outputs(out, spec.logs),
                "machine": machine(),
                "finished": time.strftime("%FT%T%z"),
                "seconds": seconds,
                "headline": headline,
            },
        )
        (out / "state.json").unlink()
        self.record(name, _entry(kind, "done", seconds, wanted, headline))
        say(f"{name}: done in {seconds:,.1f} s")
        return "resumed" if resumed else "ran"


def _call(context: Context) -> dict[str, Any]:
    """What another process needs to run the same stage, see `follow`."""
    inputs = {
        r: {k: str(v) for k, v in p.items()} if isinstance(p, dict) else str(p) for r, p in context.inputs.items()
    }
    return {
        "stage": context.kind,
        "name": context.name,
        "config": context.config.model_dump(mode="json"),
        "inputs": inputs,
        "out": str(context.out),
        "seed": context.seed,
        "seconds": context.seconds_before,
    }


def follow(board: Board, kind: Callable[[str], StageKind]) -> None:
    """Ranks other than 0: run the distributed stages that rank 0 runs, until it says that the run is over."""
    while "stage" in (call := board.hear()):
        spec, out = kind(call["stage"]), Path(call["out"])
        inputs = {
            role: {name: _filler(each) for name, each in place.items()} if isinstance(place, dict) else _filler(place)
            for role, place in call["inputs"].items()
        }
        config = spec.config.model_validate(call["config"])
        made = (call["name"], call["stage"], config, inputs, out, call["seed"], Metrics(out))
        with board.shared():
            spec.run(Context(*made, seconds_before=call["seconds"], board=board))


def _filler(text: str) -> Path | str:
    return text if is_address(text) else Path(text)


def _entry(kind: str, status: str, seconds: float, wanted: str, headline: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "status": status, "seconds": seconds, "fingerprint": wanted, "headline": dict(headline)}


def _places(place: Any, root: Path) -> Any:
    if isinstance(place, dict):
        return {name: _places(each, root) for name, each in place.items()}
    return str(place) if str(place).startswith("preset:") or isinstance(place, str) else os.path.relpath(place, root)


def _read_state(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
