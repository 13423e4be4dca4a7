"""The mixture's laws: shares after any number of rows, no window twice in an epoch, any step from one integer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmlab.corpus.mixture import SCALE, Mixture, MixtureConfig, Size, seats
from lmlab.corpus.mixtures import PRESETS
from lmlab.errors import Refused


def sizes(**tokens: int) -> dict[str, Size]:
    return {name: Size(each, max(1, each // 50), each // 10) for name, each in tokens.items()}


def mixture(config: dict, of: dict[str, Size], rows: int = 1000, a_step: int = 10) -> Mixture:
    return Mixture(MixtureConfig(**config), of, rows, rows // a_step, lambda step: step * a_step)


weights = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6).filter(lambda each: sum(each) > 1e-3)


@settings(max_examples=200, deadline=None)
@given(given_weights=weights, rows=st.integers(1, 400))
def test_each_source_has_its_share_after_any_number_of_rows(given_weights: list[float], rows: int) -> None:
    names = [f"s{i}" for i in range(len(given_weights))]
    mix = mixture({"weights": dict(zip(names, given_weights))}, sizes(**dict.fromkeys(names, 100_000)), 400)
    total, handed = sum(given_weights), np.array(mix.counts(rows))
    assert handed.sum() == rows
    shares = np.array(given_weights) / total
    assert (np.abs(handed - rows * shares) <= 0.5 + len(names) * shares / 2 + 1e-6).all()


@settings(max_examples=200, deadline=None)
@given(data=st.data(), count=st.integers(1, 7), rows=st.integers(0, 300))
def test_seats_are_those_of_handing_out_one_by_one(data, count: int, rows: int) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, SCALE), min_size=count - 1, max_size=count - 1)))
    shares = [b - a for a, b in itertools.pairwise([0, *cuts, SCALE])]
    one_by_one = [0] * count
    for _ in range(rows):
        due = [((2 * c + 1) * SCALE / w if w else float("inf")) for c, w in zip(one_by_one, shares)]
        one_by_one[due.index(min(due))] += 1
    assert sum(seats(rows, shares)) == rows
    assert (
        np.abs(np.array(seats(rows, shares)) - one_by_one).max() <= 1
    )  # floats here, whole numbers there: ties may differ


@settings(max_examples=50, deadline=None)
@given(given_weights=weights, start=st.integers(0, 300), step=st.integers(1, 40))
def test_any_step_follows_from_its_number(given_weights: list[float], start: int, step: int) -> None:
    names = [f"s{i}" for i in range(len(given_weights))]
    mix = mixture({"weights": dict(zip(names, given_weights))}, sizes(**dict.fromkeys(names, 100_000)))
    whole = mix.rows(np.arange(start + step))
    assert mix.rows(np.arange(start, start + step)) == whole[start:]
    picked = np.arange(start, start + step)[::3]
    assert mix.rows(picked) == whole[start::3], "a rank's part of a step"
    for source in range(len(names)):
        assert [row for which, row in whole if which == source] == list(range(mix.counts(start + step)[source]))


def test_by_tokens_by_documents_and_by_temperature() -> None:
    of = {"long": Size(80_000, 100, 8_000), "short": Size(20_000, 400, 2_000)}
    shares = {name: mixture(config, of).counts(1000) for name, config in {
        "natural": {},
        "tokens": {"weights": {"long": 1, "short": 1}},
        "documents": {"weights": {"long": 1, "short": 1}, "unit": "documents"},
        "temperature": {"temperature": 2.0},
        "hot": {"temperature": 1e9},
    }.items()}  # fmt: skip
    assert shares["natural"] == (800, 200) and shares["tokens"] == (500, 500)
    assert shares["documents"] == (941, 59), "800 tokens a document against 50"
    assert shares["temperature"] == (667, 333), "sqrt(4) to 1"
    assert shares["hot"] == (500, 500)


def test_epochs_are_kept_and_caps_pass_on_what_they_cut() -> None:
    of = sizes(big=100_000, small=1_000, tiny=500)  # 10,000, 100 and 50 windows
    twice = mixture({"epochs": {"small": 2.0}, "weights": {"big": 3, "tiny": 1}}, of, 1000)
    assert twice.counts(1000) == (600, 200, 200)
    capped = mixture({"weights": {"big": 1, "small": 1, "tiny": 2}, "max_epochs": 2.0}, of, 1000)
    assert capped.counts(1000) == (700, 200, 100)
    with pytest.raises(Refused, match="max_epochs: allows 10,150 windows"):
        mixture({"weights": {"big": 1, "small": 1, "tiny": 2}, "max_epochs": 1.0}, of, 20_000)
    with pytest.raises(Refused, match="ask for 120.0% of the run's rows"):
        mixture({"epochs": {"small": 12.0}, "weights": {"big": 3, "tiny": 1}}, of, 1000)


def test_a_curriculum_changes_the_weights_at_its_steps() -> None:
    of = sizes(a=100_000, b=100_000)
    schedule = [{"at": 0.5, "weights": {"a": 0, "b": 1}}, {"at": 80, "weights": {"a": 1, "b": 1}}]
    mix = mixture({"weights": {"a": 1, "b": 0}, "schedule": schedule}, of)
    assert [mix.counts(rows) for rows in (500, 800, 1000)] == [(500, 0), (500, 300), (600, 400)]
    assert mix.rows(np.arange(499, 501)) == [(0, 499), (1, 0)]
    both = mixture({"weights": {"a": 1, "b": 0}, "schedule": schedule, "max_epochs": 0.055}, of, 1000)
    assert both.counts(1000) == (550, 450), "a's cap holds over both of its parts"
    with pytest.raises(Refused, match="expected changes in order"):
        mixture({"weights": {"a": 1, "b": 0}, "schedule": schedule[::-1]}, of)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_paper_s_shares(name: str) -> None:
    known = PRESETS[name]
    assert sum(known.values()) == pytest.approx(100, abs=1.01)
    names = {component: f"s{i}" for i, component in enumerate(known)}
    mix = mixture({"preset": name, "components": names}, sizes(**dict.fromkeys(names.values(), 10**6)), 100_000)
    share = np.array(mix.counts(100_000)) / 100_000
    assert share == pytest.approx(np.array(list(known.values())) / sum(known.values()), abs=2e-4)


def test_components_are_mapped_one_by_one() -> None:
    of = sizes(web=30_000, more=10_000, wiki=5_000)
    given = {"CommonCrawl": ["web", "more"], "WebText2": None, "Books1": None, "Books2": None, "Wikipedia": "wiki"}
    mix = mixture({"preset": "gpt-3", "components": given}, of, 6300)
    assert mix.counts(6300) == (4500, 1500, 300)
    with pytest.raises(ValidationError, match="gpt-3 also has WebText2, Books1, Books2, Wikipedia"):
        MixtureConfig(preset="gpt-3", components={"CommonCrawl": "web"})
    with pytest.raises(ValidationError, match="did you mean 'Books1'"):
        MixtureConfig(preset="gpt-3", components={**given, "Book1": "web"})
    with pytest.raises(ValidationError, match="did you mean 'gpt-3'"):
        MixtureConfig(preset="gpt3", components=given)
    with pytest.raises(Refused, match="no source 'wik'; did you mean 'wiki'"):
        mixture({"preset": "gpt-3", "components": {**given, "Wikipedia": "wik"}}, of)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": {"a": -1}}, "at least 0"),
        ({"weights": {"a": 0}}, "all are 0"),
        ({"epochs": {"a": 1}, "schedule": [{"at": 0.5, "weights": {"a": 1}}]}, "exclude a schedule"),
        ({"schedule": [{"at": 1.5, "weights": {"a": 1}}]}, "whole step"),
        ({"components": {"Books1": "a"}}, "name the preset"),
        ({"preset": "palm", "weights": {"a": 1}}, "exclude each other"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_recipe(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixtureConfig(**wrong)


def test_sources_and_weights_must_be_of_each_other() -> None:
    of = sizes(code=1000, docs=1000)
    with pytest.raises(Refused, match="no source 'doc'; did you mean 'docs'"):
        mixture({"weights": {"code": 1, "doc": 1}}, of)
    with pytest.raises(Refused, match="no weight for docs"):
        mixture({"weights": {"code": 1}}, of)
    with pytest.raises(Refused, match="'docs' has 5 tokens, fewer than one window"):
        mixture({}, sizes(code=1000, docs=5))
