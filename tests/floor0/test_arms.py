"""Named arms beside a grid: settings that change together; what is wrong is told with its line; a run that fails is noted
and the others go on."""

import json

import pytest

from lmlab import recipe
from lmlab.errors import Failed, Refused
from lmlab.recipe import ArmsFailed
from tests.floor0 import toy

TEXT = "one: {use: make, number: 1}\ntwo: {use: make, number: 2}\nadd: {}\n"


@pytest.fixture
def toys(monkeypatch):
    kinds = {"make": toy.MAKE, "add": toy.ADD}
    monkeypatch.setattr(recipe, "KINDS", dict.fromkeys(kinds, "toy"))
    monkeypatch.setattr(recipe, "kind", kinds.__getitem__)


def totals(out):
    return {str(p.relative_to(out).parent.parent): p.read_text() for p in sorted(out.rglob("add/total"))}


def test_arms_change_settings_together_and_share_the_rest(toys, tmp_path):
    text = (
        TEXT + "arms:\n  base: {}\n  both: {one.number: 10, two.number: 20}\n  tail:\n    two: {use: make, number: 5}\n"
    )
    out = recipe.run(recipe.loads(text + "seeds: [0, 1]\n", "toy"), tmp_path / "run")
    found = {
        f"{arm}/seed-{seed}": str(n + 2 * seed)
        for arm, n in (("base", 3), ("both", 30), ("tail", 6))
        for seed in (0, 1)
    }
    assert totals(out) == found
    assert (out / "tail/seed-0/one").is_symlink() and not (out / "both/seed-0/one").is_symlink()
    assert json.loads((out / "arms.json").read_text()) == {
        "arms": ["base", "both", "tail"], "seeds": [0, 1], "failed": {},
    }  # fmt: skip


def test_the_resolved_recipe_makes_the_same_runs(toys, tmp_path):
    text = TEXT + "arms: {both: {one.number: 10, two.number: 20}, base: {}}\ngrid: {two.number: [7, 8]}\n"
    out = recipe.run(recipe.loads(text, "toy"), tmp_path / "run")
    assert totals(out) == {
        "base,two.number=7/seed-0": "8", "base,two.number=8/seed-0": "9",
        "both,two.number=7/seed-0": "17", "both,two.number=8/seed-0": "18",
    }  # fmt: skip
    again = recipe.run(recipe.load(str(out / "recipe.yaml")), tmp_path / "again")
    assert totals(again) == totals(out)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("arms: [a]", "x:4:1: arms: expected NAME: {setting: value, ...}"),
        ("arms: {}", "x:4:1: arms: expected NAME"),
        ("arms:\n  a/b: {}", "x:5:3: arms: 'a/b' is no name of an arm; expected letters"),
        ("arms:\n  a: 3", "x:5:3: arms.a: expected {setting: value, ...}"),
        ("arms:\n  a: {}\n  b:\n    tow.number: 3", "x:7:5: arms: no stage 'tow.number'; did you mean 'two'?"),
        ("arms:\n  a: {}\n  b:\n    two.nmber: 3", "x:7:5: two.nmber: unknown key; did you mean 'number'?"),
        (
            "arms:\n  a: {}\n  b:\n    two:\n      use: make\n      number: no",
            "x:9:7: two.number: Input should be a valid",
        ),
        ("grid:\n  two.number:\n    - 1\n    - x", "x:7:7: two.number: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(toys, arms, message):
    with pytest.raises(Refused) as caught:
        recipe.loads(TEXT + arms + "\n", "x")
    assert message in str(caught.value)


def test_an_override_of_the_arms_is_named(toys):
    with pytest.raises(Refused, match="override 'arms="):
        recipe.loads(TEXT, "x", ["arms={a: {two.nmber: 3}}"])
    assert list(recipe.loads(TEXT, "x", ["arms={a: {two.number: 3}}"]).arms) == ["a"]


def test_a_run_that_fails_lets_the_others_go_on(toys, tmp_path):
    text = TEXT + "arms: {bad: {two.fail: true}, good: {}}\nseeds: [0, 1]\n"
    with pytest.raises(ArmsFailed) as caught:
        recipe.run(recipe.loads(text, "toy"), tmp_path / "run")
    assert isinstance(caught.value, Failed) and caught.value.exit_status == 1
    assert "2 of 4 runs failed" in str(caught.value) and "bad/seed-1: two: the loss is nan at step 3" in str(
        caught.value
    )
    assert totals(tmp_path / "run") == {"good/seed-0": "3", "good/seed-1": "5"}
    run = json.loads((tmp_path / "run/bad/seed-0/run.json").read_text())
    assert run["stages"]["two"]["status"] == "failed" and "add" not in run["stages"]
    failed = json.loads((tmp_path / "run/arms.json").read_text())["failed"]
    assert failed == dict.fromkeys(("bad/seed-0", "bad/seed-1"), "two: the loss is nan at step 3")


def test_a_stage_that_arms_share_fails_once(toys, tmp_path):
    text = TEXT.replace("number: 1}", "number: 1, fail: true}") + "arms: {a: {}, b: {two.number: 3}}\n"
    with pytest.raises(ArmsFailed, match="2 of 2 runs failed"):
        recipe.run(recipe.loads(text, "toy"), tmp_path / "run")
    assert (tmp_path / "run/a/seed-0/log").read_text() == "one\n" and not (tmp_path / "run/b/seed-0/log").exists()


def test_a_lone_run_raises_what_failed(toys, tmp_path):
    with pytest.raises(Failed, match="^one: the loss"):
        recipe.run(recipe.loads(TEXT.replace("number: 1}", "number: 1, fail: true}"), "toy"), tmp_path / "run")


ABLATIONS = (
    *("norm-kind", "norm-placement", "embedding-norm", "activation", "position", "bias", "attention-pattern"),
    "architecture-objective",
)


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_shipped_ablation_resolves_and_compares_like_with_like(name):
    found = recipe.load(f"ablations/{name}")
    assert found.seeds == (0, 1, 2) and len(found.arms) > 1
    settings = [steps[-1].config for steps in found.arms.values()]
    assert {(s.steps, s.batch_tokens, s.precision, s.kernel, s.minutes) for s in settings} == {
        (100, 2048, "float32", "sdpa", None)
    }
    assert all(s.model.qk_norm and s.compile is False for s in settings)
    assert len({s.model_dump_json() for s in settings}) == len(found.arms)
    corpora = {(steps[0].config.model_dump_json(), steps[1].config.model_dump_json()) for steps in found.arms.values()}
    assert len(corpora) == 1


def test_gated_activations_are_compared_at_equal_parameters():
    from lmlab.train.plan import shape_of_width

    arms = recipe.load("ablations/activation").arms.values()
    shapes = [shape_of_width(steps[-1].config.model, 96, 2048) for steps in arms]
    assert len({shape.parameters()["total"] for shape in shapes}) == 1 and len({s.activation for s in shapes}) == 8
