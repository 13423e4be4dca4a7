"""The stage `report` in a run, and that it writes what `lmlab report` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_run import ORDER, make_run

from lmlab import recipe
from lmlab.report import page as pages
from lmlab.report import write_report
from lmlab.report.stage import STAGE, ReportConfig
from lmlab.run import RunDirectory


def test_the_stage_takes_every_kind_before_it() -> None:
    (role,) = STAGE.inputs
    assert (role.role, role.several, role.required) == ("stages", True, False)
    assert set(role.kinds) == set(recipe.KINDS) - {"report"}


def test_the_stage_writes_the_report_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "can_draw", lambda: False)
    run = make_run(tmp_path / "demo")
    inputs = {"stages": {name: run / name for name in ORDER}}
    with RunDirectory(run) as directory:
        assert directory.execute("report", "report", STAGE, ReportConfig(), 0, inputs, fresh=False) == "ran"
        assert directory.execute("report", "report", STAGE, ReportConfig(), 0, inputs, fresh=False) == "skipped"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    own = json.loads((run / "report" / "results.json").read_text(encoding="utf-8"))
    assert sum(own["claims"].values()) == len(report["claims"])
    assert own["missing"] == []
    written = [(run / name).read_bytes() for name in ("report.html", "report.json")]
    assert tuple(write_report(run)) == (run / "report.html", run / "report.json")
    assert [(run / name).read_bytes() for name in ("report.html", "report.json")] == written
