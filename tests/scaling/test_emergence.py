"""Verdicts on curves whose truth is known, gains, bad tables, the published Pythia scores."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.scaling.emergence import Table, emergence, gains, read, sharpness

SCALES = np.geomspace(1e5, 1e11, 13)


def critique(length: int, items: int, seed: int) -> Table:
    """2304.15004's model: per-token success p = exp(-CE), CE a power law; exact match needs all `length` tokens."""
    generator = np.random.default_rng(seed)
    success = np.exp(-((SCALES / 3e7) ** -0.35))
    hits_SIK = generator.random((len(SCALES), items, length)) < success[:, None, None]
    logp_SI = np.log(success)[:, None] + 0.05 * generator.standard_normal((len(SCALES), items))
    columns = {"exact": hits_SIK.all(2).astype(float), "edit": hits_SIK.mean(2), "logp": logp_SI}
    units = [str(item) for _ in SCALES for item in range(items)]
    return Table(np.repeat(SCALES, items), units, {name: each.ravel() for name, each in columns.items()})


def step(seed: int) -> Table:
    """An ability that is not there below 3e8 in any metric, over seeds."""
    generator = np.random.default_rng(seed)
    there = np.clip(np.log10(SCALES / 3e8), 0, 2) / 2
    noise = lambda: 0.01 * generator.standard_normal((len(SCALES), 8))  # noqa: E731
    columns = {"exact": there[:, None] + noise(), "logp": 2 * there[:, None] - 3 + noise()}
    units = [str(each) for _ in SCALES for each in range(8)]
    return Table(np.repeat(SCALES, 8), units, {name: each.ravel() for name, each in columns.items()})


def test_exact_match_of_many_tokens_is_sharp_and_the_rest_is_smooth():
    found = [emergence(critique(5, 400, seed), "exact", ["edit", "logp"], bootstraps=300) for seed in range(4)]
    assert all(each["verdicts"]["logp"] == "sharp in the hard metric only" for each in found)
    assert all(each["metrics"]["edit"]["verdict"] == "smooth" for each in found)
    assert all(3e7 < each["metrics"]["exact"]["change_point"] < 1e9 for each in found)


def test_of_one_token_the_hard_metric_is_never_sharp():
    verdicts = [sharpness(critique(1, 400, seed), "exact", bootstraps=300)["verdict"] for seed in range(6)]
    assert "sharp" not in verdicts and verdicts.count("smooth") >= 2, verdicts


def test_what_is_absent_and_then_there_is_sharp_in_both():
    for seed in range(3):
        found = emergence(step(seed), "exact", ["logp"], bootstraps=300)
        assert found["verdicts"] == {"logp": "sharp in both"}
        assert found["metrics"]["exact"]["change_point"] == pytest.approx(3e8, rel=0.5)


def test_noise_is_flat_and_decides_nothing():
    generator = np.random.default_rng(0)
    noise = Table(
        np.repeat(SCALES, 8),
        [str(each) for _ in SCALES for each in range(8)],
        {"exact": generator.random(104), "logp": generator.random(104)},
    )
    found = emergence(noise, "exact", ["logp"], bootstraps=300)
    assert found["metrics"]["exact"]["verdict"] == "flat" and found["verdicts"]["logp"] == "undecided"


def test_one_run_a_scale_is_resampled_by_its_residuals():
    mine = step(0)
    first = np.array([unit == "0" for unit in mine.unit])
    alone = Table(mine.scale[first], ["0"] * len(SCALES), {name: each[first] for name, each in mine.values.items()})
    found = sharpness(alone, "exact", bootstraps=300)
    assert found["resampled"] == "residuals" and found["units"] == 1 and found["verdict"] == "sharp"


def test_gains_are_paired_by_unit():
    generator = np.random.default_rng(1)
    before = np.repeat(np.linspace(0.2, 0.6, len(SCALES)), 50) + generator.standard_normal(len(SCALES) * 50)
    gain = np.repeat(np.linspace(-0.1, 0.3, len(SCALES)), 50)
    units = [str(item) for _ in SCALES for item in range(50)]
    mine = Table(np.repeat(SCALES, 50), units, {"zero": before, "few": before + gain})
    for row, truth in zip(gains(mine, "few", "zero"), gain[::50]):
        assert row["value"] == pytest.approx(truth, abs=1e-9) and row["n"] == 50
        assert row["low"] == pytest.approx(row["high"], abs=1e-9), "a paired difference without noise"


def write(path: Path, table: Table, **more: str) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["compute", "item", *table.values, *more])
        for place, scale in enumerate(table.scale):
            writer.writerow([scale, table.unit[place], *(c[place] for c in table.values.values()), *more.values()])
    return path


def test_the_command_and_what_it_refuses(tmp_path):
    path = write(tmp_path / "table.csv", step(0), task="sums", few="0.5")
    asked = ["scale", "emergence", str(path), "--hard", "exact", "--soft", "logp", "--unit", "item", "--task", "task"]
    result = CliRunner().invoke(app, [*asked, "--few-shot", "few", "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    assert found["task"] == "sums" and found["verdicts"]["logp"] == "sharp in both"
    assert len(found["gains"]["few-shot"]) == len(SCALES)
    shown = CliRunner().invoke(app, asked).stdout
    assert "with logp: sharp in both" in shown and "change at compute" in shown
    with pytest.raises(Refused, match="did you mean 'logp'"):
        read(path, "compute", ["exact", "logq"])
    text = path.read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(text[:9]))
    with pytest.raises(Refused, match="has 1 scales; expected at least 6"):
        read(tmp_path / "short.csv", "compute", ["exact"])
    (tmp_path / "hole.csv").write_text("\n".join([text[0], "1e5,0,,1,sums,0.5"]))
    with pytest.raises(Refused, match="hole.csv:2: exact: '' is no number"):
        read(tmp_path / "hole.csv", "compute", ["exact"])
    (tmp_path / "short.csv").write_text(f"{text[0]}\n1e5\n")
    with pytest.raises(Refused, match="short.csv:2: exact: '' is no number"):
        read(tmp_path / "short.csv", "compute", ["exact"])
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(Refused, match="is no CSV file in UTF-8"):
        read(tmp_path / "picture.csv", "compute", ["exact"])


def test_published_pythia_scores(tmp_path):
    """LAMBADA over training, five sizes, two data sets each (docs/scaling.md): from the first step on both metrics are flat and
    then change, the log-probability at less compute than the accuracy; from step 512 on both are smooth."""
    data = os.environ.get("LMLAB_DATA")
    if not data or not (Path(data) / "pythia_scores/scores.csv.gz").is_file():
        pytest.skip("LMLAB_DATA does not name a folder with pythia_scores/scores.csv.gz")
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from pythia_emergence import table, write

    source, path = Path(data) / "pythia_scores/scores.csv.gz", tmp_path / "pythia.csv"
    for first, verdict in ((1, "sharp in both"), (512, "smooth in both")):
        write(table(source, first=first), path)
        tables = read(path, "compute", ["acc", "logp"], unit="data", by=["size"])
        assert list(tables) == [("70m",), ("160m",), ("410m",), ("1b",), ("1.4b",)]
        for size, mine in tables.items():
            found = emergence(mine, "acc", ["logp"], bootstraps=200)
            assert found["verdicts"]["logp"] == verdict, (size, first)
            if first == 1:
                assert found["metrics"]["logp"]["change_point"] < found["metrics"]["acc"]["change_point"]
    write(table(source, first=3000), path)
    few = read(path, "compute", ["acc", "acc5"], unit="data", by=["size"])
    last = {size: gains(mine, "acc5", "acc")[-1]["value"] for (size,), mine in few.items()}
    assert all(value < 0 for value in last.values()), "five examples make LAMBADA worse at all of these sizes"
