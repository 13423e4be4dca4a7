"""Writes the measured tables of docs/architectures.md out of the runs of the recipes `ablations/...`.

    for name in norm-kind position ...; do lmlab run ablations/$name; done
    python docs/ablations.py runs

A table stands between `<!-- ablation NAME -->` and `<!-- end -->`; one whose run is absent or not whole stays as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmlab import recipe
from lmlab.report.grid import collect_grid
from lmlab.report.scores import above, score

PAGE = Path(__file__).parent / "architectures.md"
BLOCK = re.compile(r"(<!-- ablation ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.S)


def table(report: Mapping[str, Any]) -> str:
    """One experiment: its arms with mean, spread and paired difference, what the intervals say, and the terms."""
    main, first, arms = report["main"], report["first"], report["arms"]
    parameters = {arm: _stage(found, "parameters") for arm, found in arms.items()}
    sizes = max(parameters.values()) > 1.02 * min(parameters.values())
    head = ["arm", *(["parameters"] if sizes else []), "bits per byte", f"less {first} [95% interval]"]
    rows = []
    for arm, found in arms.items():
        it, difference = found["scores"][main], score(found["difference"].get(main))
        change = "" if difference is None else f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        size = [f"{parameters[arm]:,}"] if sizes else []
        rows.append([arm, *size, f"{it['value']:.3f} ± {it['spread']:.3f}", change])
    return "\n".join([_markdown(head, rows), *_lengths(arms), _verdict(report), _terms(report)])


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _lengths(arms: Mapping[str, Any]) -> Iterator[str]:
    """The same text in longer windows, and by the place in the longest."""
    paths = list(dict.fromkeys(p for found in arms.values() for p in found["scores"] if ".bits_per_byte.by_" in p))
    if not paths:
        return
    kinds = {"by_length": "windows of", "by_position": "places"}
    head = ["arm", *(f"{kinds[p.split('.')[-2]]} {p.split('.')[-1]}" for p in paths)]
    rows = []
    for arm, found in arms.items():
        cells = [found["scores"].get(path) for path in paths]
        rows.append([arm, *("cannot" if it is None else f"{it['value']:.3f} ± {it['spread']:.3f}" for it in cells)])
    yield _markdown(head, rows)


def _verdict(report: Mapping[str, Any]) -> str:
    """Which arms' intervals lie on one side of the first arm."""
    said: dict[str, list[str]] = {"fewer bits": [], "more bits": [], "undecided": []}
    for arm, found in report["arms"].items():
        difference = score(found["difference"].get(report["main"]))
        if difference is not None:
            higher = above(difference, 0.0)
            said["undecided" if higher is None else "more bits" if higher else "fewer bits"].append(arm)
    parts = [f"{word}: {', '.join(names)}" for word, names in said.items() if names]
    return f"Beside {report['first']}, at this scale: {'; '.join(parts)}."


def _terms(report: Mapping[str, Any]) -> str:
    arms = report["arms"]
    tokens = sorted({_stage(found, "tokens") for found in arms.values()})
    days = sorted({str(_stage(found, "finished"))[:10] for found in arms.values()})
    counts = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    seeds = sorted({seed for found in arms.values() for seed in found["seeds"]})
    where = f"{report['machine'].get('cores')} CPU cores"
    return f"({len(seeds)} seeds, {counts} tokens each, float32, {where}, {' to '.join(dict.fromkeys((days[0], days[-1])))}.)\n"


def _stage(found: Mapping[str, Any], key: str) -> Any:
    return next(iter(found["runs"].values()))["stages"]["pretrain"][key]


def whole(report: Mapping[str, Any], name: str) -> bool:
    """Whether every arm was measured at every seed."""
    wanted = recipe.load(f"ablations/{name}")
    found = report["arms"]
    return list(found) == list(wanted.arms) and all(
        arm["scores"].get(report["main"], {}).get("n") == len(wanted.seeds) for arm in found.values()
    )


def main(runs: Path) -> None:
    """Rewrite the tables whose runs are whole."""

    def made(match: re.Match[str]) -> str:
        name = match[2]
        if not (runs / name).is_dir():
            print(f"{name}: no run")
            return match[0]
        report = collect_grid(runs / name)
        if not whole(report, name):
            print(f"{name}: not whole")
            return match[0]
        print(f"{name}: written")
        return f"{match[1]}{table(report)}{match[3]}"

    PAGE.write_text(BLOCK.sub(made, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
