"""The distribution that is drawn from is the one that the settings name, and a draw depends on (seed, place) alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.generate.sampling import Chooser, Sampling, invert, uniforms

CPU = torch.device("cpu")
rows = st.integers(2, 700).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 8.0]))
)


def logits_of(size: int, seed: int, spread: float) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (1, size)).astype(np.float32))


@given(row=rows, uniform=st.floats(0, 1, exclude_max=True))
def test_the_inverse_is_the_textbook_one(row: tuple[int, int, float], uniform: float) -> None:
    probabilities = logits_of(*row).softmax(-1).numpy()
    sums = probabilities[0].astype(np.float64).cumsum()
    found = int(invert(probabilities, np.array([uniform]))[0])
    before = sums[found - 1] if found else 0.0
    assert before - 1e-12 <= uniform * sums[-1] <= sums[found] + 1e-12
    assert probabilities[0, found] > 0


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1, 0)])
def test_tokens_of_probability_zero_are_never_drawn(uniform: float) -> None:
    probabilities = np.zeros((1, 200), np.float32)
    probabilities[0, [70, 130]] = [0.25, 0.75]
    assert invert(probabilities, np.array([uniform]))[0] in (70, 130)


def test_frequencies_are_the_probabilities() -> None:
    logits = logits_of(7, 3, 1.0)
    n = 4000
    chooser = Chooser([Sampling(temperature=0.7)] * n, CPU)
    ids, logprobs = chooser.choose(logits.expand(n, 7), uniforms(0, n).tolist())
    wanted = (logits / 0.7).softmax(-1)[0].numpy()
    shares = np.bincount(ids, minlength=7) / n
    assert np.abs(shares - wanted).max() < 4 * math.sqrt(0.25 / n)
    assert logprobs == pytest.approx(np.log(wanted)[ids].tolist(), abs=1e-5)


@settings(deadline=None)
@given(
    row=rows,
    top_k=st.integers(0, 800),
    top_p=st.floats(0.01, 1),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_truncation_keeps_the_likeliest_and_the_one_that_reaches_p(
    row: tuple[int, int, float], top_k: int, top_p: float, uniform: float
) -> None:
    logits = logits_of(*row)
    sampling = Sampling(temperature=1.3, top_k=top_k, top_p=top_p)
    (token,), (logprob,) = Chooser([sampling], CPU).choose(logits, [uniform])
    probabilities = (logits / 1.3).softmax(-1)[0].double()
    likelier = probabilities[probabilities > probabilities[token]]
    if top_k:
        assert len(likelier) < top_k
    kept = probabilities.sort(descending=True).values[: top_k or None]
    assert float(likelier.sum()) < top_p * float(kept.sum()) + 1e-6
    assert logprob == pytest.approx(float(probabilities[token].log()), abs=1e-4)


def test_all_of_the_kept_tokens_can_be_drawn() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0]])
    places = np.linspace(0, 1, 200, endpoint=False).tolist()

    def drawn(**limits: float) -> set[int]:
        chooser = Chooser([Sampling(temperature=1.0, **limits)] * 200, CPU)  # type: ignore[arg-type]
        return set(chooser.choose(logits.expand(200, 5), places)[0])

    assert drawn(top_k=2) == {0, 2}
    assert drawn(top_k=1) == {0}
    assert drawn(top_p=0.6) == {0}  # 0.64 alone reaches it
    assert drawn(top_p=0.7) == {0, 2}  # 0.64 + 0.23
    assert drawn(top_k=3, top_p=0.99) == {0, 1, 2}
    assert drawn() == {0, 1, 2, 3, 4}


@given(seed=st.integers(0, 2**128 - 1), short=st.integers(0, 20), long=st.integers(20, 60))
def test_draws_depend_on_seed_and_place_only(seed: int, short: int, long: int) -> None:
    assert uniforms(seed, short).tolist() == uniforms(seed, long)[:short].tolist()


@given(kinds=st.lists(st.sampled_from(["greedy", "plain", "k", "p", "wide"]), min_size=1, max_size=8))
def test_a_row_is_chosen_alike_alone_and_in_company(kinds: list[str]) -> None:
    made = {
        "greedy": Sampling(),
        "plain": Sampling(temperature=0.8),
        "k": Sampling(temperature=1.0, top_k=9),
        "p": Sampling(temperature=2.0, top_p=0.8),
        "wide": Sampling(temperature=1.0, top_k=300, top_p=0.99),
    }
    picked = [made[kind] for kind in kinds]
    logits = torch.cat([logits_of(500, seed, 2.0) for seed in range(len(kinds))])
    draws = uniforms(5, len(kinds)).tolist()
    ids, logprobs = Chooser(picked, CPU).choose(logits, draws)
    for row, sampling in enumerate(picked):
        alone = Chooser([sampling], CPU).choose(logits[row : row + 1], draws[row : row + 1])
        assert alone == ([ids[row]], [logprobs[row]])


def test_greedy_log_probability_is_at_temperature_one_and_nan_is_nan() -> None:
    logits = torch.tensor([[1.0, 3.0], [math.nan, 0.0], [math.inf, 0.0]])
    ids, logprobs = Chooser([Sampling()] * 3, CPU).choose(logits, [0.0] * 3)
    assert ids[0] == 1
    assert logprobs[0] == pytest.approx(-math.log(1 + math.exp(-2)), abs=1e-6)
    assert math.isnan(logprobs[1]) and math.isnan(logprobs[2])
    _, sampled = Chooser([Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=1)], CPU).choose(
        torch.full((2, 5), math.nan), [0.3, 0.3]
    )
    assert all(math.isnan(each) for each in sampled)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected 0 .greedy. or a positive number"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; expected above 0, at most 1"),
        ({"top_k": -3}, "top_k is -3"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": "text"}, "expected a tuple"),
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict, message: str) -> None:
    with pytest.raises(Refused, match=message):
        Sampling(**wrong)
