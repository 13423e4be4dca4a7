"""The published laws against the values computed from the papers."""

from __future__ import annotations

import math

import pytest

from lmlab.errors import Refused
from lmlab.scaling.laws import CHINCHILLA, PF_DAY, Chinchilla, Joint, Kaplan, gpt4_loss
from lmlab.scaling.plan import plan
from lmlab.scaling.table import number


def test_kaplans_values():
    assert Kaplan.of_params.loss(1.5e9) == pytest.approx(2.304, abs=5e-4)
    assert Kaplan.of_tokens.loss(22e9) == pytest.approx(2.099, abs=5e-4)
    assert Kaplan.of_compute.loss(1.0) == pytest.approx(2.658, abs=5e-4)
    assert Kaplan.critical_batch(3.0) == pytest.approx(1.12e6, rel=5e-3)


def test_kaplans_fixed_batch_is_a_law_of_its_own():
    """T4: 0.057 and 1.6e7 PF-days at a batch of 2^19 tokens, 0.050 and 3.1e8 at a batch well below the critical one."""
    assert Kaplan.of_compute_fixed_batch.loss(1.0) == pytest.approx(1.6e7**0.057)
    assert Kaplan.of_compute_fixed_batch.loss(100.0) > Kaplan.of_compute.loss(100.0) * 0.9
    assert PF_DAY == 1e15 * 86400
    assert Kaplan.of_params.inverse(Kaplan.of_params.loss(1e9)) == pytest.approx(1e9)


def test_kaplans_law_of_steps_has_the_law_of_params_as_its_end():
    """Constants of its own (T5): N_c = 6.5e13, a_N = 0.077, S_c = 2.1e3, a_S = 0.76."""
    assert Kaplan.of_steps(1e9, 1e30) == pytest.approx((6.5e13 / 1e9) ** 0.077, rel=1e-6)
    assert Kaplan.of_steps(6.5e13, 2.1e3) == pytest.approx(2.0), "each term is 1 at its scale"
    assert Kaplan.of_steps(1e9, 1e3) > Kaplan.of_steps(1e9, 1e4)


def test_at_the_critical_batch_steps_and_compute_are_twice_the_least():
    batch = Kaplan.critical_batch(2.5)
    assert Kaplan.fewest_steps(1000.0, batch, 2.5) == pytest.approx(500)
    assert Kaplan.least_compute(1.0, batch, 2.5) == pytest.approx(0.5)
    steps, examples = 1000.0, 1000.0 * 3 * batch
    least = Kaplan.fewest_steps(steps, 3 * batch, 2.5)
    fewest_examples = least * batch
    assert (steps / least - 1) * (examples / fewest_examples - 1) == pytest.approx(1), (
        "(S / S_min - 1)(E / E_min - 1) = 1"
    )


def test_kaplans_allocation():
    day, thousand = Kaplan.allocation(1.0), Kaplan.allocation(1000.0)
    assert day == {"params": 1.3e9, "batch": 2.0e6, "steps": 5.4e3, "tokens": 2.0e10}
    grown = {name: thousand[name] / day[name] for name in day}
    assert grown["params"] == pytest.approx(1000**0.73) and grown["tokens"] == pytest.approx(1000**0.27)
    assert grown["steps"] * grown["batch"] == pytest.approx(grown["tokens"]), "E = B S"


def test_gpt4s_law():
    assert gpt4_loss(1e20, 100.0, -0.1, 1.5) == pytest.approx(2.5)


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


def test_the_best_size_of_kaplans_joint_law():
    law = Joint.of(Kaplan.N_c, Kaplan.D_c, Kaplan.a_N, Kaplan.a_D)
    assert law.loss(1e9, 2e10) == pytest.approx(Kaplan.joint(1e9, 2e10))
    params, tokens = law.allocation(1e21)
    assert 6 * params * tokens == pytest.approx(1e21)
    assert all(law.loss(params * k, tokens / k) > law.loss(params, tokens) for k in (0.8, 1.25)), "a minimum"
    assert law.loss(*law.allocation(law.compute_of_loss(2.5))) == pytest.approx(2.5)


def law_file(law: str, *thetas: list[float]) -> dict:
    return {"law": law, "groups": {"all": {"theta": thetas[0], "bootstrap": list(thetas)}}}


WHOLE = {
    "chinchilla": [math.log(482.0), math.log(2085.0), math.log(1.8), 0.35, 0.37],
    "overtraining": [math.log(482.0), math.log(2085.0), math.log(1.8), 0.36],
    "kaplan": [math.log(6.4e13), math.log(1.8e13), 0.076, 0.103],
    "isoflop": [-1.0, 0.5],
    "envelope": [-1.0, 0.5],
    "power-compute": [math.log(2.7e28), 0.05],
    "gpt4": [math.log(300.0), 0.12, math.log(1.5)],
    "power-params": [math.log(8.8e13), 0.076],
    "power-tokens": [math.log(5.4e13), 0.095],
}


@pytest.mark.parametrize("law", WHOLE)
@pytest.mark.parametrize("given", ["compute", "params", "tokens", "loss"])
def test_a_law_file_of_every_law_answers_what_it_knows_and_back(law, given):
    value = {"compute": 1e21, "params": 1e9, "tokens": 1e11, "loss": 2.4}[given]
    row = plan({given: value}, law_file(law, WHOLE[law]))["rows"][-1]
    knows = {"isoflop": {"compute", "params", "tokens"}, "envelope": {"compute", "params", "tokens"}}
    of_one = {"power-compute": "compute", "gpt4": "compute", "power-params": "params", "power-tokens": "tokens"}
    known = knows.get(law) or ({of_one[law], "loss"} if law in of_one else {"compute", "params", "tokens", "loss"})
    if given not in known:
        assert "gives no answer" in row["note"] and row["days"] is None
        return
    assert {name for name in ("compute", "params", "tokens", "loss") if row[name] is not None} == known
    assert (row["days"] is not None) == ("compute" in known)
    for back in known - {given}:
        again = plan({back: row[back]}, law_file(law, WHOLE[law]))["rows"][-1]
        assert again[given] == pytest.approx(value, rel=1e-6)


def test_a_loss_that_some_resampled_laws_never_reach_has_no_upper_end():
    def theta(low: float) -> list[float]:
        return [math.log(482.0), math.log(2085.0), math.log(low), 0.35, 0.37]

    reach, never = [theta(1.7 + 0.01 * i) for i in range(20)], [theta(2.1)] * 5
    row = plan({"loss": 2.0}, law_file("chinchilla", *reach, *never))["rows"][-1]
    assert 1 < row["low"]["compute"] / row["compute"] < 1.5
    assert row["high"] == dict.fromkeys(("compute", "params", "tokens"))
    bad = [*WHOLE["chinchilla"][:3], -0.1, 0.3]
    row = plan({"compute": 1e21}, law_file("chinchilla", *[WHOLE["chinchilla"]] * 20, bad))["rows"][-1]
    assert row["draws_without"] == 1 and row["low"]["params"] == pytest.approx(row["params"])
    with pytest.raises(Refused, match="law of steps"):
        plan({"compute": 1e21}, law_file("kaplan-steps", [30.0, 7.0, 0.1, 0.7]))


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
