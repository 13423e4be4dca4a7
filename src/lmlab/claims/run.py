"""Run a claim: its recipe as any other, then its measures, and the verdict. What is finished is skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmlab import __version__, recipe
from lmlab.claims import texts
from lmlab.claims.claim import HERE, Claim, Comparison, Scale, recipe_of
from lmlab.claims.equal import equalise
from lmlab.claims.measures import MEASURES, Runs, Values
from lmlab.claims.verdict import judge, paired, smallest_visible, together
from lmlab.errors import Refused
from lmlab.progress import say
from lmlab.ranks import rank
from lmlab.recipe import ArmsFailed, Recipe
from lmlab.report.collect import load as load_json
from lmlab.report.grid import runs_of
from lmlab.run import machine, write_json

RESULT = "claim.json"


def make_recipe(claim: Claim, scale: Scale, seeds: int, place: Path) -> Recipe:
    """The checked recipe of a claim, arms equal where it asks for that. Raises Refused before any work."""
    if seeds < 3:
        raise Refused(f"claims: {seeds} seeds: expected at least 3, since an interval needs a spread")
    document = recipe_of(claim, scale, seeds, place / "texts")
    if claim.equal is not None:
        equalise(document, claim.equal)
    return recipe.check(document, "claim")


def run(name: str, claim: Claim, scale: Scale, seeds: int, place: Path) -> dict[str, Any]:
    """Run into `place`, which keeps every run; write and return the result (claim.json there)."""
    place = place.resolve()
    read = make_recipe(claim, scale, seeds, place)
    for text, made in claim.made(scale).items() if rank() == 0 else ():
        path = place / "texts" / f"{text}.jsonl"
        if not path.is_file():
            texts.write(made.kind, made.documents, path)
    try:
        recipe.run(read, place)
    except ArmsFailed as error:  # a run that diverged is a finding
        say(str(error))
    if rank() > 0:
        return {}
    found = judged(name, claim, scale, seeds, place)
    write_json(place / RESULT, found)
    return found


def judged(name: str, claim: Claim, scale: Scale, seeds: int, place: Path) -> dict[str, Any]:
    """The result of finished runs."""
    runs = runs_of(place)
    known: dict[tuple[str, str, str], Values] = {}
    for each in claim.compare:
        key = (each.measure, each.stage, each.path)
        if key not in known:
            known[key] = MEASURES[each.measure].read(runs, each.stage, each.path)
    compared = [compare(each, known[each.measure, each.stage, each.path], range(seeds)) for each in claim.compare]
    return {
        "claim": name,
        "scale": scale,
        "identity": claim.identity(scale),
        "seeds": seeds,
        "verdict": together([each["verdict"] for each in compared]),
        "comparisons": compared,
        "values": {
            "/".join(filter(None, key)): {arm: list(by_seed.values()) for arm, by_seed in values.items()}
            for key, values in known.items()
        },
        "failed": load_json(place / "arms.json", []).get("failed") or {},
        "runs": _about(runs, claim.compare[0].stage),
        "seconds": round(sum(_seconds(path) for by_seed in runs.values() for path in by_seed.values()), 1),
        "machine": {"cores": machine().get("cores"), "torch": machine()["packages"].get("torch")},
        "lmlab": __version__,
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def compare(each: Comparison, values: Values, seeds: range) -> dict[str, Any]:
    """One comparison: advantage of the second arm with its interval, what could have been seen, verdict."""
    measure = MEASURES[each.measure]
    ours, theirs = values.get(each.first, {}), values.get(each.second, {})
    pairs = [(ours[s], theirs[s + each.shift]) for s in seeds if s in ours and s + each.shift in theirs]
    head = each.model_dump(mode="json", exclude_defaults=True) | {
        "claimed": each.claimed, "unit": measure.unit, "matters": measure.matters,
    }  # fmt: skip
    if not pairs:
        return {**head, "verdict": "undecided", "advantage": None, "smallest_visible": None}
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    advantage = paired(first, second, measure.higher_is_better)
    return {
        **head,
        "means": [sum(first) / len(first), sum(second) / len(second)],
        "advantage": advantage.to_json(),
        "smallest_visible": smallest_visible([b - a for a, b in pairs]),
        "verdict": judge(advantage, each.claimed, measure.matters),
    }


def _about(runs: Runs, stage: str) -> dict[str, Any]:
    """Of each arm's first finished run: parameters, tokens, steps, FLOPs of the stage, or of `pretrain` where it trains nothing."""
    found = {}
    for arm, by_seed in runs.items():
        for path in by_seed.values():
            both = [load_json(path / name / "results.json", []) for name in (stage, "pretrain")]
            results = next((each for each in both if each and "parameters" in each), None)
            if results:
                kept = {key: results.get(key) for key in ("parameters", "tokens", "flops")}
                found[arm] = kept | {"steps": (results.get("plan") or {}).get("steps")}
                break
    return found


def _seconds(place: Path) -> float:
    """Seconds of a run's own stages; those that it shares are another's."""
    stages: Mapping[str, Any] = load_json(place / "run.json", []).get("stages") or {}
    return sum(each.get("seconds") or 0.0 for name, each in stages.items() if not (place / name).is_symlink())


def kept_result(name: str) -> dict[str, Any] | None:
    """The result that the package ships for a claim, None where it was not run yet."""
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def describe(claim: Claim, found: Mapping[str, Any]) -> str:
    """A result as lines for people."""
    lines = [f"{found['claim']}: {claim.sentence}", *(f"  {told(each)}" for each in found["comparisons"])]
    lines += [f"  failed: {place}: {why}" for place, why in found["failed"].items()]
    return "\n".join([*lines, f"verdict: {found['verdict']} (scale {found['scale']}, {found['seeds']} seeds)"])


def told(each: Mapping[str, Any]) -> str:
    """A comparison in a line."""
    head = f"{each['second']} beside {each['first']}, {MEASURES[each['measure']].title}: "
    if each["advantage"] is None:
        return f"{head}no pair of runs was finished; {each['verdict']}"
    it, (first, second) = each["advantage"], each["means"]
    bounds = "no interval" if it["low"] is None else f"[{it['low']:+.3f}, {it['high']:+.3f}]"
    return (
        f"{head}{first:.3f} -> {second:.3f}, {it['value']:+.3f} better {bounds} (n = {it['n']}), could have seen "
        f"{each['smallest_visible']:.3f}; claimed {each['claimed']}: {each['verdict']}"
    )
