"""The page: well formed, self-contained, escaped, the same each time, and there whatever is missing."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from html_check import check
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from synthetic_run import ORDER, make_grid, make_run, results, write_json

from lmlab.errors import Refused
from lmlab.report import page as pages
from lmlab.report import write_report
from lmlab.report.collect import collect

HOSTILE = (
    "</pre></div><script>alert('1')</script><img src=http://evil.example/x onerror=alert(1)> {{ 7*7 }} \x00\x1b \u202e"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return write_report(run)[0].read_text(encoding="utf-8")


def test_the_page_is_whole_and_fetches_nothing(html: str) -> None:
    page = check(html)
    assert {"svg", "table", "nav", "main", "details", "pre"} <= page.tags
    for words in ("What happened", "Claims", "Provenance", "Talk to the model", "lmlab chat runs/demo", *ORDER):
        assert words in page.text
    assert {f"stage-{name}" for name in ORDER} <= set(page.ids)
    assert "http" not in html


def test_numbers_stand_with_interval_and_n(html: str, run: Path) -> None:
    after = results()["pretrain"]["bits_per_byte"]["after"]
    assert f"<td>{after['value']:.3f}<small>{after['low']:.3f} to {after['high']:.3f}</small></td>" in html
    assert "(xz -9e 1.512, a 5-gram model 1.433)" in html
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    holds = [claim["holds"] for claim in report["claims"]]
    assert f"Of {len(holds)} claims, {holds.count(True)} held, {holds.count(False)} did not" in html


def test_every_stage_has_the_plots_its_curves_allow(html: str) -> None:
    page = check(html)
    titles = (
        "Learning to compress",
        "Training loss",
        "Learning rate",
        "Exact match by family",
        "Ranking loss",
        "Reward",
    )
    for title in (*titles, "Rule score", "KL to the fine-tuned model", "Entropy of the policy"):
        assert f"<title>{title}" in html, title
    assert "Exact match by way of asking" in page.text


def test_the_table_of_stages_by_tasks_is_complete(html: str) -> None:
    for task in results()["evaluate"]["stages"]["ppo"]:
        assert f'<th scope="row">{task}</th>' in html


def test_writing_again_gives_the_same_bytes(run: Path, html: str) -> None:
    before = (run / "report.json").read_bytes()
    assert write_report(run)[0].read_text(encoding="utf-8") == html
    assert (run / "report.json").read_bytes() == before


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bad", stages=("sft", "evaluate"))
    data = results()["sft"]
    data["samples"] = [
        {"family": HOSTILE, "prompt": HOSTILE, "before": {"text": HOSTILE}, "after": HOSTILE, HOSTILE: HOSTILE}
    ]
    data["exact_match"]["families"] = {HOSTILE: data["exact_match"]["seen"]}
    data[HOSTILE] = {HOSTILE: HOSTILE}
    write_json(run / "sft" / "results.json", data)
    scored = {HOSTILE: {f"exact_match/{HOSTILE}": data["exact_match"]["seen"]["after"]}}
    write_json(run / "evaluate" / "results.json", {"stages": scored, "tasks": {HOSTILE: HOSTILE}})
    write_json(run / HOSTILE.replace("/", "").replace("\x00", "") / "provenance.json", {"kind": HOSTILE})
    page = check(write_report(run)[0].read_text(encoding="utf-8"))
    assert page.text.count("<script>alert('1')</script>") >= 4
    assert "{{ 7*7 }}" in page.text
    assert "\x00" not in page.text and "␀" in page.text


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bad", stages=("pretrain",))
    (run / "pretrain" / "results.json").write_text('{"samples": [{"prompt": "a\\ud800b", "text": "\\udfff"}]}')
    html, data = write_report(run)
    assert "a?b" in html.read_text(encoding="utf-8")
    json.loads(data.read_text(encoding="utf-8"))


def test_an_unfinished_run_has_a_page(tmp_path: Path) -> None:
    page = check(write_report(make_run(tmp_path / "half", stages=("corpus",)))[0].read_text(encoding="utf-8"))
    assert page.text.count("This stage has not run.") == len(ORDER) - 1
    assert "Not all is there." in page.text


def test_without_matplotlib_there_is_a_page_without_plots(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "can_draw", lambda: False)
    page = check(pages.page(collect(run)))
    assert "svg" not in page.tags
    assert "matplotlib is not installed" in page.text


def test_two_rounds_of_a_kind_have_a_section_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "can_draw", lambda: False)
    run = make_run(tmp_path / "rounds", recipe=False, stages=("ppo",))
    for name in ("ppo 2", "ppo-2"):
        write_json(run / name / "provenance.json", {"kind": "ppo", "seconds": 1.0})
        write_json(run / name / "results.json", results(1)["ppo"])
    page = check(pages.page(collect(run)))
    assert {"stage-ppo", "stage-ppo-2", "stage-ppo-2-2"} <= set(page.ids)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += paths(item, (*path, key))
    return found


WHOLE = {name: value if name != "evaluate" else {**value, "unparsed": {}} for name, value in results().items()}
PATHS = [path for path in paths(WHOLE) if len(path) < 5]
OTHERS: list[Any] = [
    None, [], {}, "text", 3, -1.5, True, [1, "a"], [{"text": None}], {"value": 1, "low": None, "high": 2, "n": 0},
]  # fmt: skip
OTHER = st.sampled_from(OTHERS)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    gone=st.lists(st.sampled_from(PATHS), max_size=8),
    changed=st.lists(st.tuples(st.sampled_from(PATHS), OTHER), max_size=4),
    files=st.lists(st.tuples(st.sampled_from(ORDER), st.sampled_from(["provenance", "results"])), max_size=3),
    stages=st.sets(st.sampled_from(ORDER), min_size=1),
)
@example(gone=[], changed=[(("corpus",), OTHERS[-1])], files=[], stages={"corpus"})  # results that are one bare score
def test_whatever_is_missing_there_is_a_page(
    gone: list[tuple[Any, ...]],
    changed: list[tuple[tuple[Any, ...], Any]],
    files: list[tuple[str, str]],
    stages: set[str],
) -> None:
    data = copy.deepcopy(WHOLE)
    for path, value in [*((path, KeyError) for path in gone), *changed]:
        tree: Any = data
        for key in path[:-1]:
            tree = tree.get(key) if isinstance(tree, dict) else None
        if isinstance(tree, dict) and path[-1] in tree:
            if value is KeyError:
                del tree[path[-1]]
            else:
                tree[path[-1]] = copy.deepcopy(value)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "can_draw", lambda: False)  # drawing what is left is the next test's
        run = make_run(Path(folder) / "run", stages=tuple(name for name in ORDER if name in stages))
        for name in stages:
            write_json(run / name / "results.json", data.get(name))
        for name, file in files:
            (run / name / f"{file}.json").unlink(missing_ok=True)
        html, data_path = write_report(run)
        check(html.read_text(encoding="utf-8"))
        report = json.loads(data_path.read_text(encoding="utf-8"))
        assert set(report["stages"]) == set(ORDER)
        assert {claim["holds"] for claim in report["claims"]} <= {True, False, None}


@settings(max_examples=3, deadline=None)
@given(gone=st.lists(st.sampled_from(PATHS), min_size=3, max_size=12), alone=st.sampled_from(ORDER[2:]))
def test_whatever_is_missing_the_rest_is_drawn(gone: list[tuple[Any, ...]], alone: str) -> None:
    data = copy.deepcopy(WHOLE)
    for path in gone:
        tree: Any = data
        for key in path[:-1]:
            tree = tree.get(key, {})
        tree.pop(path[-1], None)
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", stages=(alone,))
        write_json(run / alone / "results.json", data.get(alone, {}))
        check(write_report(run)[0].read_text(encoding="utf-8"))


def test_a_grid_has_a_page_of_its_own(tmp_path: Path) -> None:
    html, data = write_report(make_grid(tmp_path / "grid", arms=2, seeds=2))
    page = check(html.read_text(encoding="utf-8"))
    for words in (
        "pretrain.layers=2",
        "pretrain.layers=4",
        "difference from pretrain.layers=2",
        "-0.200",
        "n = 2",
        "lower",
    ):
        assert words in page.text
    assert "svg" in page.tags
    assert set(json.loads(data.read_text(encoding="utf-8"))["arms"]) == {"pretrain.layers=2", "pretrain.layers=4"}


def test_lengths_of_a_grid_are_drawn_and_failures_told(tmp_path: Path) -> None:
    grid = make_grid(tmp_path / "grid", arms=2, seeds=2)
    for place in grid.glob("*/seed-*/pretrain/results.json"):
        data = json.loads(place.read_text(encoding="utf-8"))
        value = data["bits_per_byte"]["after"]["value"]
        lengths = {str(64 * k): {"value": value + 0.1 * k, "low": None, "high": None, "n": 1} for k in (1, 2, 4)}
        data["bits_per_byte"]["by_length"] = {**lengths, "512": "cannot: a learned table"}
        write_json(place, data)
    write_json(
        grid / "arms.json",
        {"arms": ["pretrain.layers=4", "pretrain.layers=2"], "seeds": [0, 1], "failed": {"x/seed-0": "nan"}},
    )
    html, data = write_report(grid)
    report = json.loads(data.read_text(encoding="utf-8"))
    assert (report["first"], report["main"]) == ("pretrain.layers=4", "pretrain.bits_per_byte.after")
    assert report["failed"] == {"x/seed-0": "nan"} and list(report["arms"]) == [
        "pretrain.layers=4",
        "pretrain.layers=2",
    ]
    page = check(html.read_text(encoding="utf-8"))
    assert "The same text in longer windows" in page.text and "x/seed-0" in page.text


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
