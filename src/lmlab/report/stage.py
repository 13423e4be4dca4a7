"""The last stage: report.html and report.json out of what the other stages wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.config import Config
from lmlab.report.collect import collect
from lmlab.report.grid import collect_grid, runs_of
from lmlab.report.page import grid_page, page
from lmlab.run import Context, Input, StageKind, write_atomic, write_json


class ReportConfig(Config):
    """Settings of the report: none, since it shows all that there is."""


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Write RUN/report.html and RUN/report.json of a run or of a grid, finished or not. Returns their paths.

    The same files in the run directory give the same bytes. Raises Refused where there is no run directory.
    """
    html, _ = _write(run_dir)
    return html, run_dir / "report.json"


def _write(run_dir: Path) -> tuple[Path, dict[str, Any]]:
    grid = bool(runs_of(run_dir))
    report = collect_grid(run_dir) if grid else collect(run_dir)
    text = grid_page(report) if grid else page(report)
    write_json(run_dir / "report.json", report)
    write_atomic(run_dir / "report.html", text)
    return run_dir / "report.html", report


def run(context: Context) -> Mapping[str, Any]:
    """Report on the run that this stage belongs to. Headline: how many claims held, failed and stayed undecided."""
    _, report = _write(context.out.parent)
    holds = [claim["holds"] for claim in report["claims"]]
    counts = {"held": holds.count(True), "failed": holds.count(False), "undecided": holds.count(None)}
    write_json(context.out / "results.json", {"claims": counts, "missing": report["missing"]})
    return counts


STAGE = StageKind(
    config=ReportConfig,
    run=run,
    inputs=(
        Input(
            "stages",
            ("corpus", "tokenizer", "pretrain", "sft", "finetune", "reward", "ppo", "evaluate", "abilities"),
            required=False,
            several=True,
        ),
    ),
    seeded=False,
)
