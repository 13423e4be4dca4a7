"""The published laws against the values computed from the papers."""

from __future__ import annotations

import pytest

from lmlab.errors import Refused
from lmlab.scaling.laws import CHINCHILLA, Chinchilla, Kaplan
from lmlab.scaling.plan import plan
from lmlab.scaling.table import number


def test_kaplans_values():
    assert Kaplan.of_params.loss(1.5e9) == pytest.approx(2.304, abs=5e-4)
    assert Kaplan.of_tokens.loss(22e9) == pytest.approx(2.099, abs=5e-4)
    assert Kaplan.of_compute.loss(1.0) == pytest.approx(2.658, abs=5e-4)
    assert Kaplan.critical_batch(3.0) == pytest.approx(1.12e6, rel=5e-3)


def test_the_joint_law_and_its_penalty_agree():
    n, d = 1e9, 2e9
    ratio = Kaplan.joint(n, d) / Kaplan.joint(n, 1e30) - 1
    assert Kaplan.overfit(n, d) == pytest.approx(ratio, rel=1e-6)
    assert Kaplan.overfit(1e9, 5e3 * 1e9**0.74) == pytest.approx(0.02, abs=0.005)


@pytest.mark.parametrize("name, ratio", [("hoffmann", 93), ("hoffmann-unrounded", 59), ("besiroglu", 18.4)])
def test_tokens_a_parameter_at_gophers_budget(name, ratio):
    params, tokens = CHINCHILLA[name].allocation(5.76e23)
    assert tokens / params == pytest.approx(ratio, rel=0.01)


def test_the_exponent_of_params_is_that_of_beta():
    assert CHINCHILLA["besiroglu"].exponents[0] == pytest.approx(0.5126, abs=5e-5)
    law = Chinchilla(1.7, 400, 2000, 0.3, 0.4)
    a, b = law.exponents
    assert (a, b) == pytest.approx((0.4 / 0.7, 0.3 / 0.7)), "the survey prints them the other way round"
    small, large = law.allocation(1e20), law.allocation(1e22)
    assert large[0] / small[0] == pytest.approx(100**a) and large[1] / small[1] == pytest.approx(100**b)
    best = law.loss(*small)
    assert all(law.loss(small[0] * k, small[1] / k) > best for k in (0.8, 1.25)), "a minimum"


@pytest.mark.parametrize("given", ["compute", "params", "tokens", "loss"])
def test_a_plan_from_any_quantity_is_the_same_plan(given):
    start = plan({"compute": 1e21}, price=2.5)
    for row in start["rows"]:
        if row["law"] == "kaplan" and given in ("params", "tokens"):
            continue  # rounded exponents; its inverse is exact in that quantity alone
        again = next(each for each in plan({given: row[given]})["rows"] if each["law"] == row["law"])
        assert again["compute"] == pytest.approx(1e21, rel=1e-6)
        assert row["dollars"] == pytest.approx(1e21 / (0.4 * 989.4e12) / 3600 * 2.5)


def test_numbers_as_people_write_them():
    assert [number(x, "x") for x in ("7B", "1T", "300M", "1e21", "1.5t", "70,000")] == [
        7e9,
        1e12,
        3e8,
        1e21,
        1.5e12,
        7e4,
    ]
    for bad in ("", "-3", "7Q", "0", "nan", "1e400"):
        with pytest.raises(Refused, match="--params"):
            number(bad, "--params")


def test_plans_that_make_no_sense_are_refused():
    with pytest.raises(Refused, match="exactly one"):
        plan({"compute": 1e21, "loss": 2.0})
    with pytest.raises(Refused, match="did you mean 'h100'"):
        plan({"compute": 1e21}, gpu="h10")
    rows = plan({"loss": 1.75})["rows"]
    assert "note" in next(row for row in rows if "besiroglu" in row["law"]), "below its E"
