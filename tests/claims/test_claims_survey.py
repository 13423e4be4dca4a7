"""Every claim's file loads at every scale, differs in one switch only, is equal where it says so; the page is fresh."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmlab.claims import page
from lmlab.claims.claim import SCALES, chosen, load, read_claim, shipped
from lmlab.claims.equal import cost
from lmlab.claims.run import kept_result, make_recipe
from lmlab.claims.verdict import judge, together
from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.measure import Score

CLAIMS = shipped()


def flat(tree, prefix=""):
    """{dotted path: value} of nested mappings."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        path: value for key, each in tree.items() for path, value in flat(each, f"{prefix}.{key}".strip(".")).items()
    }


def settings(steps):
    tree = {step.name: {**step.config.model_dump(mode="json"), "from": step.sources} for step in steps}
    return flat(json.loads(json.dumps(tree)))


def test_there_are_the_fifteen_and_both_controls():
    found = {name: read_claim(path) for name, path in CLAIMS.items()}
    assert sum(claim.control is None for claim in found.values()) >= 15
    assert {claim.control for claim in found.values()} == {None, "positive", "negative"}
    assert [name for name in CLAIMS if kept_result(name) is None] == [], "every claim is shipped with what came out"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_small_and_differs_in_its_switch_alone(name):
    assert len(CLAIMS[name].read_text(encoding="utf-8").splitlines()) <= 80
    claim = read_claim(CLAIMS[name])
    assert claim.seeds >= 3
    for scale in SCALES:
        made = make_recipe(claim, scale, claim.seeds, Path("/nowhere"))
        assert len(made.seeds) >= 3
        first, *others = [settings(steps) for steps in made.arms.values()]
        for other in others:
            differ = {path for path in first.keys() | other.keys() if first.get(path) != other.get(path)}
            allowed = (*claim.switch, *(["pretrain.steps"] if claim.equal else []))
            assert all(path.startswith(allowed) for path in differ), (scale, differ)
            assert differ or claim.control == "negative"
        if claim.equal:
            asked, of = cost(next(iter(made.arms.values())), claim.equal)
            for steps in made.arms.values():
                n, mine = cost(steps, claim.equal)
                assert abs(mine(n) - of(asked)) <= (mine(n + 1) - mine(n)) / 2


@pytest.mark.parametrize("name", [name for name in CLAIMS if kept_result(name) is not None])
def test_a_kept_result_is_of_this_design_and_its_verdict_follows_from_its_numbers(name):
    claim, kept = read_claim(CLAIMS[name]), kept_result(name)
    assert kept["identity"] == claim.identity("small"), "the claim was changed after it was run: run it again"
    assert kept["scale"] == "small" and kept["seeds"] >= claim.seeds
    for each in kept["comparisons"]:
        advantage = Score(*(each["advantage"][key] for key in ("value", "low", "high", "n")))
        assert each["verdict"] == judge(advantage, each["claimed"], each["matters"])
    assert kept["verdict"] == together([each["verdict"] for each in kept["comparisons"]])


def test_the_harness_sees_what_is_there_and_not_what_is_not():
    for name, path in CLAIMS.items():
        control, kept = read_claim(path).control, kept_result(name)
        if control is not None and kept is not None:
            assert (kept["verdict"] == "supported") == (control == "positive"), name


def test_the_page_is_fresh():
    root = Path(__file__).parents[2]
    assert (root / "docs" / "claims.md").read_text(encoding="utf-8") == page.text(), "run: make docs"


BASE = """\
sentence: s
section: "1"
design: d
switch: [pretrain.clip]
arms: {a: {pretrain.clip: 1}, b: {pretrain.clip: 0}}
compare: [{measure: bits, first: a, second: b}]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 5", "seeds: 2", "seeds"),
        ("second: b", "second: c", "there is no arm 'c'"),
        ("measure: bits", "measure: bit", "did you mean 'bits'?"),
        ("b: {pretrain.clip: 0}", "b: {pretrain.steps: 3}", "arms differ in pretrain.steps"),
        ("switch: [pretrain.clip]", "switch: [pretrain.clip, pretrain.steps]", "say because of what"),
        ("section:", "secton:", "did you mean 'section'?"),
    ],
)
def test_a_claim_that_is_none_is_refused_with_its_line(tmp_path, old, new, message):
    text = BASE + "seeds: 5\n"
    assert old in text
    place = tmp_path / "mine.yaml"
    place.write_text(text.replace(old, new, 1))
    with pytest.raises(Refused, match="mine.yaml") as refused:
        load(str(place))
    assert message in str(refused.value)


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(Refused, match="did you mean 'rmsnorm'"):
        load("rms-norm")


def test_scale_and_seeds_are_taken_as_recipes_take_settings():
    assert chosen([], "small", None) == ("small", None)
    assert chosen(["scale=medium", "seeds=8"], "small", None) == ("medium", 8)
    for wrong, message in (
        ("scale=medum", "did you mean 'medium'"),
        ("pretrain.steps=3", "expected scale=SCALE or seeds=COUNT"),
        ("seeds=many", "expected a whole number"),
    ):
        with pytest.raises(Refused, match=message):
            chosen([wrong], "small", None)
    outcome = CliRunner().invoke(app, ["claims", "run", "glu", "seeds=2"])
    assert isinstance(outcome.exception, Refused) and "2 seeds" in str(outcome.exception)


def test_results_are_taken_over_only_where_they_are_of_this_design(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("generate_claims", Path(__file__).parents[2] / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "kept" / "results").mkdir(parents=True)
    monkeypatch.setattr(module, "HERE", tmp_path / "kept")
    for name, identity in (("glu", read_claim(CLAIMS["glu"]).identity("small")), ("bias", "another")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "claim.json").write_text(
            json.dumps({"identity": identity, "seeds": 5, "verdict": "undecided"})
        )
    module.take_over(tmp_path)
    assert [path.name for path in (tmp_path / "kept" / "results").iterdir()] == ["glu.json"]
    assert "bias: of another design" in capsys.readouterr().out
