"""The S-curve against published values and against simulation."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.corpus.dedup.curve import asked, best, curve, drawn, meets, shown, verified
from lmlab.errors import Refused


@pytest.mark.parametrize(
    ("similarity", "chance"), [(0.5, 0.053), (0.7, 0.565), (0.75, 0.772), (0.8, 0.924), (0.85, 0.988)]
)
def test_finewebs_curve(similarity: float, chance: float) -> None:
    """FineWeb's 14 buckets of 8 hashes, as its authors give them."""
    assert meets(similarity, 14, 8) == pytest.approx(chance, abs=5e-4)


@pytest.mark.parametrize(("hashes", "threshold", "shape"), [(256, 0.7, (25, 10)), (128, 0.85, (8, 16))])
def test_best_bands_and_rows_are_datasketchs(hashes: int, threshold: float, shape: tuple[int, int]) -> None:
    assert best(hashes, threshold) == shape


def test_verification_is_a_binomial_tail() -> None:
    draw = np.random.default_rng(0)
    for s in (0.6, 0.7, 0.8):
        simulated = (draw.random((20_000, 128)) < s).mean(axis=1) >= 0.7
        assert verified(s, 128, 0.7) == pytest.approx(simulated.mean(), abs=0.015)
    assert verified(0.5, 128, 0.0) == verified(1.0, 128, 0.7) == 1.0 and verified(0.0, 128, 0.1) == 0.0


def test_it_is_drawn_and_shown(tmp_path: Path) -> None:
    found = curve(16, 8, threshold=0.7)
    assert found["meets"] == sorted(found["meets"]) and found["middle"] == pytest.approx(0.707, abs=1e-3)
    assert all(j <= m for j, m in zip(found["joined"], found["meets"], strict=True))
    root = ElementTree.fromstring(drawn(found))
    lines = [each for each in root.iter() if each.tag.endswith("polyline")]
    assert [len(each.attrib["points"].split()) for each in lines] == [101, 101]
    assert "16 bands of 8 rows" in shown(found)
    assert (asked(None, None, 256, 0.7)["bands"], asked(20, None, None, 0.7)["bands"]) == (25, 20)
    with pytest.raises(Refused, match="100 is less than bands x rows"):
        asked(16, 8, 100, 0.7)
    result = CliRunner().invoke(app, ["corpus", "curve", "--json", "--svg", str(tmp_path / "curve.svg")])
    assert json.loads(result.stdout)["rows"] == 8 and (tmp_path / "curve.svg").read_text().startswith("<svg")
