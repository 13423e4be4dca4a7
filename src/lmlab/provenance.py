"""What a stage was made of and what it made, as hashes: its identity, and what else its provenance says."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab import __version__
from lmlab.config import Config
from lmlab.trackers import FOLDERS


def digest(value: Any) -> str:
    """sha256 of a plain value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(stage: Path | str) -> str:
    """Identity of a finished stage (what was asked for and what came out of it), of a MODEL's directory (its files) or of a
    preset (its config: its weights are random, and drawn by whoever takes it). Of an address it is the address: nobody
    knows from here what stands behind it."""
    if isinstance(stage, str):
        return digest(stage)
    if str(stage).startswith("preset:"):
        config = importlib.import_module("lmlab.model.store").read_config(stage)
        return digest([str(stage), config.model_dump(mode="json")])
    path = stage / "provenance.json"
    if path.exists():
        provenance = json.loads(path.read_text(encoding="utf-8"))
        return digest([provenance["fingerprint"], provenance["outputs"]])
    files = sorted(p for p in stage.iterdir() if p.is_file() and not p.name.startswith("."))
    return digest([(p.name, digest_file(p)) for p in files])


def finished(stage: Path) -> dict[str, Any] | None:
    """The provenance of a finished stage, or None."""
    try:
        return json.loads((stage / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def machine() -> dict[str, Any]:
    """What ran the work, for provenance."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "lmlab": __version__,
        "packages": _versions(("torch", "numpy", "tokenizers", "pyarrow")),
    }


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


VOLATILE = {"state.json", "metrics.jsonl", "provenance.json", "plan.json"}


def outputs(out: Path, logs: frozenset[str] = frozenset()) -> dict[str, str]:
    """Hashes of what a stage made; checkpoints, logs (the stage's own are named) and hidden files are not results."""
    found = {}
    for path in sorted(out.rglob("*")):
        inside = path.relative_to(out)
        hidden = any(part.startswith(".") for part in inside.parts)
        apart = hidden or inside.parts[0] in ("checkpoints", *FOLDERS) or inside.name in VOLATILE | logs
        if path.is_file() and not apart:
            found[str(inside)] = digest_file(path)
    return found


def changed(done: Mapping[str, Any], config: Config, seed: int) -> str:
    """Which settings differ from those of a finished stage, in a few words."""
    now, before = config.essence(), config.essence_of(done.get("config", {}))
    keys = sorted(key for key in {*now, *before} if now.get(key) != before.get(key))
    if keys:
        return ", ".join(f"{key}: {_short(before.get(key))} then, {_short(now.get(key))} now" for key in keys[:3])
    return f"seed {done['seed']} then, {seed} now" if done.get("seed") != seed else "an input or the code changed"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
