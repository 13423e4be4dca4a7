"""The drawings: same numbers, same bytes; no colour of their own; nothing that breaks out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.measure import Score
from lmlab.report.plots import VARIABLES, Line, curve, dots

LINE = Line("loss", list(range(50)), [5 / (1 + s) for s in range(50)], [0.0] * 50, [6.0] * 50)
ROWS = [
    ("copy", {"before": Score(0.1, 0.0, 0.2, 9), "after": Score(0.8, 0.7, 0.9, 9)}),
    ("count", {"after": Score(0, 0, 0, 9)}),
]


def test_the_same_numbers_give_the_same_bytes() -> None:
    first = curve("a", "Loss", [LINE], references={"xz": 1.5}), dots("b", "Match", ROWS, percent=True)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        again = curve("a", "Loss", [LINE], references={"xz": 1.5}), dots("b", "Match", ROWS, percent=True)
    assert first == again


@pytest.mark.parametrize("drawn", [curve("a", "Loss", [LINE], references={"xz": 1.5}), dots("b", "Match", ROWS)])
def test_a_drawing_is_xml_whose_colours_are_the_pages(drawn: str) -> None:
    ET.fromstring(drawn)
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    assert set(re.findall(r"var\((--\w+)\)", drawn)) <= set(VARIABLES.values())
    assert {"--ink", "--muted", "--s1"} <= set(re.findall(r"var\((--\w+)\)", drawn))
    assert "font-family" not in drawn and "<style" not in drawn and "xmlns" not in drawn
    assert re.match(r'<svg class="plot" viewBox="0 0 [\d.]+ [\d.]+" role="img" aria-label="', drawn)


def test_ids_are_named_after_the_plot() -> None:
    one, two = curve("one", "Loss", [LINE]), curve("two", "Loss", [LINE])
    ids = [re.findall(r' id="([^"]+)"', drawn) for drawn in (one, two)]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    for drawn, found in zip((one, two), ids):
        assert set(re.findall(r"""(?:url\(#|href="#)([^")]+)""", drawn)) == set(found)


@settings(max_examples=12, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_a_label(text: str) -> None:
    hostile = f"{text}<script>&\"'$x_1$"
    drawn = dots("a", hostile, [(hostile, {hostile: Score(0.5, 0.4, 0.6, 9), "other": Score(0.5, 0.4, 0.6, 9)})])
    assert "<script" not in drawn
    assert drawn.count("<svg") == drawn.count("</svg>") == 1


def test_nothing_to_draw_draws_nothing() -> None:
    assert curve("a", "Loss", []) == curve("a", "Loss", [Line("x", [], [])]) == ""
    assert dots("a", "Match", []) == dots("a", "Match", [("copy", {})]) == ""


def test_one_point_and_one_unbounded_interval_can_be_drawn() -> None:
    ET.fromstring(curve("a", "Loss", [Line("x", [3], [2.0])]))
    ET.fromstring(dots("a", "Match", [("arm", {"mean": Score(0.5, float("-inf"), float("inf"), 1)})]))
