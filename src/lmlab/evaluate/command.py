"""`lmlab eval MODEL --tasks a,b`: one model by its reference, and the results as a table for people."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.address import is_address, parse_address
from lmlab.evaluate.stage import EvaluateConfig, evaluate_model
from lmlab.evaluate.tasks import BITS_PER_BYTE
from lmlab.generate.handle import load
from lmlab.instruct import families as kinds
from lmlab.model.store import resolve


def evaluate_reference(
    reference: str, tasks: str = "all", out: Path | None = None, items: int | None = None
) -> dict[str, Any]:
    """Evaluate a MODEL on `tasks`: names with commas, each with a strategy of its own if wanted
    (`arithmetic/shots=4/steps/vote=8`), or `all`; `list` only says which there are. Bits per byte are measured on the
    held-out text of the run that the model stands in. Without `out` nothing is kept but what is returned."""
    if tasks.strip() == "list":
        return {"tasks": known_tasks()}
    names = [] if tasks.strip() == "all" else [name.strip() for name in tasks.split(",") if name.strip()]
    settings = EvaluateConfig() if items is None else EvaluateConfig(items=items)
    if is_address(reference):
        place: str | Path = str(parse_address(reference))
        corpus, name = None, parse_address(reference).name
    else:
        place = folder = resolve(reference)
        corpus, name = corpus_beside(folder), (folder.parent if folder.name == "model" else folder).name
    if out is not None:
        return evaluate_model(load(place), names, settings, out, corpus=corpus, name=name)
    with tempfile.TemporaryDirectory() as temporary:
        return evaluate_model(load(place), names, settings, Path(temporary), corpus=corpus, name=name)


def known_tasks() -> dict[str, str]:
    """Every task by name and what it is."""
    found = {BITS_PER_BYTE: "Bits per byte of held-out text of the model's run."}
    for name, family in kinds.FAMILIES.items():
        about = (family().__doc__ or "").split("\n\n")[0]
        found[name] = " ".join(about.split())
    return found


def corpus_beside(folder: Path) -> Path | None:
    """The finished corpus of the run in which a stage's model directory stands, if it stands in one."""
    run = folder.parent.parent
    try:
        listed = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError):
        return None
    found = [run / name for name, entry in listed.items() if entry.get("kind") == "corpus"]
    return next((place for place in reversed(found) if (place / "provenance.json").exists()), None)


def describe(found: Mapping[str, Any]) -> str:
    """Results (or the list of tasks) as lines for people."""
    if "stages" not in found:
        width = max(map(len, found["tasks"]))
        return "\n".join(f"{name:<{width}}  {about}" for name, about in found["tasks"].items())
    width = max((len(task) for task in found["tasks"]), default=4)
    lines = [f"{'':<{width}}  {'value':>7}  {'95% interval':^15}  {'n':>4}  unparsed  cut off"]
    for stage, scores in found["stages"].items():
        lines.append(stage)
        for task, score in {**scores, **found["pooled"].get(stage, {})}.items():
            ends = [f"{score[end]:.3f}" if score[end] is not None else "none" for end in ("low", "high")]
            line = f"{task:<{width}}  {score['value']:7.3f}  {ends[0]:>6} - {ends[1]:<6}  {score['n']:>4}"
            for kind, size in (("unparsed", 8), ("truncated", 7)):
                other = found[kind].get(stage, {}).get(task)
                line += f"  {other['value']:>{size}.0%}" if other else ""
            lines.append(line)
    return "\n".join(lines)
