"""Grids, ARM/seed-N/STAGE: a table of arms with mean, spread over seeds and n, and how each differs from the first.

Differences are paired by seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab import __version__
from lmlab.errors import Refused
from lmlab.measure import Score
from lmlab.report.collect import clean, collect, load
from lmlab.report.scores import at, find, over_seeds, spread
from lmlab.report.words import HEADLINES

LEFT_OUT = ("curves", "samples", "machine", "settings", "plan")
"""What a run inside a grid's report leaves to its own report: it would be said once a seed."""


def runs_of(run_dir: Path) -> dict[str, dict[int, Path]]:
    """The runs of a grid: arm -> seed -> folder, arms in the recipe's order (without one by name) and seeds in order; {}
    where this is no grid."""
    found: dict[str, dict[int, Path]] = {}
    if not run_dir.is_dir():
        return found
    for folder in sorted(run_dir.glob("*/seed-*")):
        match = re.fullmatch(r"seed-(\d+)", folder.name)
        if match and folder.is_dir() and any(folder.iterdir()):
            found.setdefault(folder.parent.name, {})[int(match[1])] = folder
    order = {arm: place for place, arm in enumerate(_arms_file(run_dir).get("arms") or ())}
    listed = sorted(found.items(), key=lambda entry: order.get(entry[0], len(order)))
    return {arm: dict(sorted(seeds.items())) for arm, seeds in listed}


def _arms_file(run_dir: Path) -> dict[str, Any]:
    return load(run_dir / "arms.json", [])


def collect_grid(run_dir: Path) -> dict[str, Any]:
    """The report of a grid.

    {run, lmlab, machine, seconds, missing, notes, main, first, failed: {ARM/seed-N: reason},
     arms: {ARM: {seeds, scores: {PATH: {value, low, high, n, spread, values}}, difference: {PATH: score}, claims, runs}}}

    A score's path is `STAGE.key.key`; `main` is the path that the arms are compared by. Over seeds: `value` is the mean,
    `spread` the standard deviation, the interval Student's t over seeds, `n` the number of seeds, `values` each seed's.
    `difference` is against the arm `first`, paired by seed.
    """
    grid = runs_of(run_dir)
    if not grid:
        raise Refused(f"{run_dir}: is no grid: expected folders ARM/seed-N in it")
    reports: dict[str, dict[int, dict[str, Any]]] = {}
    missing, notes = [], []
    for arm, seeds in grid.items():
        for seed, folder in seeds.items():
            place = f"{arm}/seed-{seed}"
            try:
                report = collect(folder)
            except Refused:
                notes.append(f"{place}: holds no stage yet")
                continue
            reports.setdefault(arm, {})[seed] = report
            missing += [f"{place}/{name}" for name in report["missing"]]
            notes += [f"{place}: {note}" for note in report["notes"]]
    failed = _arms_file(run_dir).get("failed") or {}
    notes += [f"{place}: failed: {why}" for place, why in failed.items() if not any(n.startswith(place) for n in notes)]
    numbers = {arm: {s: _numbers(r) for s, r in seeds.items()} for arm, seeds in reports.items()}
    first = next(iter(numbers), None)
    arms = {}
    for arm, seeds in reports.items():
        arms[arm] = {
            "seeds": list(seeds),
            "scores": _over(numbers[arm]),
            "difference": _difference(numbers[arm], numbers[first]) if first is not None and arm != first else {},
            "claims": _claims(seeds),
            "runs": {f"seed-{seed}": _short(report) for seed, report in seeds.items()},
        }
    everything = [report for seeds in reports.values() for report in seeds.values()]
    return clean(
        {
            "run": run_dir.resolve().name,
            "lmlab": __version__,
            "machine": next((r["machine"] for r in reversed(everything) if r["machine"]), {}),
            "seconds": round(sum(r["seconds"] for r in everything), 3),
            "missing": missing,
            "notes": notes,
            "main": _main(arms, _compare_as_trained(everything)),
            "first": first,
            "failed": failed,
            "arms": arms,
        }
    )


def headline_paths(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The paths of the headline numbers that any arm has, `after` of those with a before and after."""
    wanted = [".".join(path) for _, path in HEADLINES if path[-1] not in ("xz", "xz_primed", "ngram")]
    ends = {suffix for path in wanted for suffix in (path, f"{path}.after")}
    return [path for path in all_paths(arms) if path.partition(".")[2] in ends]


def all_paths(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The paths of every score of any arm, in the order written."""
    return list(dict.fromkeys(path for arm in arms.values() for path in arm["scores"]))


def varies(arms: Mapping[str, Mapping[str, Any]], path: str) -> bool:
    """Whether a score is not the same in all runs."""
    return len({value for arm in arms.values() for value in at(arm, "scores", path, "values") or ()}) > 1


def _main(arms: Mapping[str, Mapping[str, Any]], as_trained: bool) -> str | None:
    """The headline number that most arms have, of those that are not the same in all runs."""
    if as_trained:
        found = [path for path in all_paths(arms) if path.endswith("bits_per_byte.continuation")]
        if found:
            return found[-1]
    paths = headline_paths(arms)
    tuned = [path for path in paths if path.endswith(".accuracy.after") and varies(arms, path)]
    if tuned:  # what a model was fine-tuned for
        return tuned[-1]
    return max(
        [path for path in paths if varies(arms, path)] or paths,
        key=lambda path: sum(path in arm["scores"] for arm in arms.values()),
        default=None,
    )


def _compare_as_trained(reports: Sequence[Mapping[str, Any]]) -> bool:
    """Whether architectures or objectives differ, so that bits per byte compare in the format of each alone."""
    stages = [stage for report in reports for stage in report["stages"].values() if stage["kind"] == "pretrain"]
    asked = {(at(s, "settings", "objective", "name"), at(s, "settings", "model", "architecture")) for s in stages}
    return len(asked) > 1


def _numbers(report: Mapping[str, Any]) -> dict[str, float]:
    """The value of each score of a run, by path."""
    return {
        ".".join((name, *path)): it.value
        for name, stage in report["stages"].items()
        for path, it in find({k: v for k, v in stage.items() if k != "headline"})
    }


def _over(seeds: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    paths = dict.fromkeys(path for numbers in seeds.values() for path in numbers)
    found = {}
    for path in paths:
        values = [numbers[path] for numbers in seeds.values() if path in numbers]
        found[path] = {**over_seeds(values).to_json(), "spread": spread(values), "values": values}
    return found


def _difference(ours: Mapping[int, Mapping[str, float]], first: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """This arm minus the first, seed by seed: what the seeds share cancels."""
    found: dict[str, Any] = {}
    for path in dict.fromkeys(path for numbers in ours.values() for path in numbers):
        gaps = [ours[s][path] - first[s][path] for s in ours if path in ours[s] and path in first.get(s, {})]
        if gaps:
            score: Score = over_seeds(gaps)
            found[path] = score.to_json()
    return found


def _claims(seeds: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each claim with the seeds in which it held, failed, or stayed undecided."""
    counts: dict[tuple[str, str], dict[str, Any]] = {}
    for report in seeds.values():
        for each in report["claims"]:
            key = each["stage"], each["claim"]
            row = counts.setdefault(key, {"stage": key[0], "claim": key[1], "held": 0, "failed": 0, "undecided": 0})
            row["held" if each["holds"] else "undecided" if each["holds"] is None else "failed"] += 1
    return list(counts.values())


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    stages = {n: {k: v for k, v in s.items() if k not in LEFT_OUT} for n, s in report["stages"].items()}
    return {"seconds": report["seconds"], "stages": stages, "claims": report["claims"]}
