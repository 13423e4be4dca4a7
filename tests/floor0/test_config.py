"""Settings: what a person gets wrong is told with its place, what was found and what is near."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab import config, recipe
from lmlab.config import Config
from lmlab.errors import Refused


class Inner(Config):
    rate: float = 1.0
    layers: int = 2


class Outer(Config):
    inner: Inner = Inner()
    items: list[Inner] = []


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(Refused) as caught:
        document = config.parse(text, "x.yaml")
        document.override(overrides)
        config.validate(Outer, document.data, document)
    return str(caught.value)


def test_numbers_read_as_people_write_them():
    data = config.parse("a: 3e-4\nb: 1E5\non: no\nc: true", "x").data
    assert data == {"a": 3e-4, "b": 1e5, "on": "no", "c": True}


def test_duplicate_key_is_refused_with_its_line():
    assert "x.yaml:2:1: the key 'a' stands twice" in refused("a: 1\na: 2")


def test_unknown_key_names_the_nearest():
    assert refused("inner:\n  layrs: 3") == "x.yaml:2:3: inner.layrs: unknown key; did you mean 'layers'?"


def test_unknown_key_in_a_list_names_the_nearest():
    assert "items.0.rat: unknown key; did you mean 'rate'?" in refused("items:\n  - {rat: 1}")


def test_every_problem_is_told_at_once():
    message = refused("inner: {layers: many, rate: fast}")
    assert "inner.layers" in message and "inner.rate" in message and "'many'" in message


def test_an_override_is_named_in_the_error():
    assert refused("inner: {}", "inner.layrs=3").startswith("override 'inner.layrs=3': inner.layrs: unknown key")


def test_broken_yaml_has_a_line():
    assert "x.yaml:2" in refused("a: 1\nb: [1")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.integers(0, 3), st.integers())
def test_overrides_reach_any_depth(keys, index, value):
    document = config.parse("z: 1", "x")
    path = ".".join(keys)
    document.override([f"{path}={value}"])
    found = document.data
    for key in keys:
        found = found[key]
    assert found == value


def test_override_of_a_list_item():
    document = config.parse("items: [{rate: 1}, {rate: 2}]", "x")
    document.override(["items[1].rate=5", "items[2].rate=7"])
    assert [item["rate"] for item in document.data["items"]] == [1, 5, 7]
    with pytest.raises(Refused, match="no item"):
        document.override(["items[9].rate=1"])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("pretain: {}", "'pretain' is no kind of stage; did you mean 'pretrain'?"),
        ("pretrain: {stps: 3}", "pretrain.stps: unknown key; did you mean 'steps'?"),
        ("pretrain: {steps: -1}", "pretrain.steps"),
        ("pretrain: {}", "needs a 'corpus'"),
        ("corpus: 3", "expected settings, found 3"),
        ("corpus: {sources: []}\nseeds: [a]", "expected a list of whole numbers"),
        ("pretrain: {model: {d_model: 100, heads: 3}}", "no multiple of heads"),
        ("", "expected a mapping"),
    ],
)
def test_a_bad_recipe_is_refused_before_work(text, expected):
    with pytest.raises(Refused) as caught:
        recipe.loads(text)
    assert expected in str(caught.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(Refused, match="did you mean 'demo'"):
        recipe.load("dmo")
