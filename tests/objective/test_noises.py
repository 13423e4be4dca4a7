"""BART's noises, GLM's blanks, fill in the middle and mixtures: the papers' rates, and nothing is lost."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.objective import denoising as bart
from lmlab.objective.blanks import BlankTask, Marks
from lmlab.objective.build import label, needs, parts_of
from lmlab.objective.example import NOTHING, Example
from lmlab.objective.middle import SLACK, MiddleTask
from lmlab.objective.mixture import MixtureTask
from lmlab.objective.settings import (
    UL2,
    BlankInfilling,
    DocumentRotation,
    Mixture,
    SentencePermutation,
    TextInfilling,
)
from lmlab.objective.spans import place_spans, poisson_lengths
from lmlab.objective.tasks import CausalTask, PrefixTask

MASK, END, STOP = 1000, 0, 7
MARKS = Marks(1000, 1001, 1002, 1003, 1004)
texts = st.lists(st.integers(1, 99), min_size=2, max_size=120).map(np.array)
seeds = st.integers(0, 20).map(np.random.default_rng)


@given(total=st.integers(1, 200), mean=st.floats(1, 10), rng=seeds, shortest=st.integers(0, 1))
def test_span_lengths_sum_to_the_noise(total: int, mean: float, rng, shortest: int) -> None:
    lengths = poisson_lengths(total, mean, rng, shortest)
    assert sum(lengths) == total and min(lengths) >= shortest


def test_span_lengths_are_poisson_s() -> None:
    lengths = poisson_lengths(60_000, 3.0, np.random.default_rng(0))
    assert np.mean(lengths) == pytest.approx(3.0, abs=0.05)
    assert lengths.count(0) / len(lengths) == pytest.approx(np.exp(-3), abs=0.004)


@given(n=st.integers(2, 100), rng=seeds, lengths=st.lists(st.integers(1, 4), min_size=1, max_size=10))
def test_spans_are_apart_and_inside(n: int, rng, lengths: list[int]) -> None:
    n = max(n, sum(lengths))
    spans = place_spans(n, lengths, rng)
    assert Counter(end - start for start, end in spans) == Counter(lengths)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:])) and spans[0][0] >= 0 and spans[-1][1] <= n
    if len(lengths) <= n - sum(lengths) + 1:
        assert all(a[1] < b[0] for a, b in zip(spans, spans[1:]))


@settings(max_examples=100, deadline=None)
@given(ids=texts, rate=st.floats(0.05, 0.9), rng=seeds)
def test_each_noise_does_what_it_says(ids: np.ndarray, rate: float, rng) -> None:
    noise = min(max(round(len(ids) * rate), 1), len(ids))
    masked = bart.mask_tokens(ids, rate, MASK, rng)
    assert (
        len(masked) == len(ids)
        and (masked == MASK).sum() == noise
        and (masked[masked != MASK] == ids[masked != MASK]).all()
    )
    deleted = bart.delete_tokens(ids, rate, rng)
    assert len(deleted) == len(ids) - min(noise, len(ids) - 1) and is_subsequence(deleted, ids)
    infilled = bart.infill(ids, rate, 3.0, MASK, rng)
    kept = infilled[infilled != MASK]
    assert len(kept) == len(ids) - noise and is_subsequence(kept, ids) and (infilled == MASK).any()
    permuted = bart.permute_sentences(ids, np.array([STOP]), rng)
    pieces = [tuple(each) for each in bart.sentences(ids, np.array([STOP]))]
    assert sorted(permuted.tolist()) == sorted(ids.tolist())
    assert sum(map(len, pieces)) == len(ids) and all(STOP not in each[:-1] for each in pieces)
    turned = bart.rotate(ids, rng).tolist()
    assert any(turned == ids.tolist()[i:] + ids.tolist()[:i] for i in range(len(ids)))


def is_subsequence(short: np.ndarray, long: np.ndarray) -> bool:
    rest = iter(long.tolist())
    return all(token in rest for token in short.tolist())


def test_infilling_masks_a_third_as_often_as_tokens_go_and_puts_masks_between_tokens() -> None:
    """Each span, of whatever length, is one mask: noise / 3 of them, the empty spans counted (Poisson 3)."""
    ids, rng = np.arange(1, 501), np.random.default_rng(0)
    masks = [(bart.infill(ids, 0.3, 3.0, MASK, rng) == MASK).sum() for _ in range(200)]
    assert np.mean(masks) == pytest.approx(150 / 3, rel=0.03)


@settings(max_examples=60, deadline=None)
@given(ids=texts, rng=seeds)
def test_denoising_writes_the_whole_text_out(ids: np.ndarray, rng) -> None:
    for noises in ((SentencePermutation(), TextInfilling()), (DocumentRotation(),)):
        task = bart.DenoisingTask(noises, MASK, END, np.array([STOP]))
        example = task.example(ids, rng)
        assert example is not None and example.target.tolist() == [*ids.tolist(), END]
        assert len(example.source) <= task.room(len(ids)).source and example.source[-1] == END


def filled(example: Example, mark: int) -> list[int]:
    """The text: each blank put in the place that its first positions name."""
    assert example.inputs is not None and example.positions is not None and example.block_positions is not None
    blanks: dict[int, list[int]] = {}
    for token, place, inside in zip(
        example.target.tolist(), example.positions.tolist(), example.block_positions.tolist()
    ):
        if inside == 1:
            blanks[place] = []
        if token != MARKS.end:
            blanks[place].append(token)
    return [t for i, token in enumerate(example.source.tolist()) for t in (blanks[i] if token == mark else [token])]


@pytest.mark.parametrize(("kind", "mark"), [("token", 1000), ("sentence", 1001), ("document", 1002)])
@settings(max_examples=80, deadline=None)
@given(ids=texts, rng=seeds, rate=st.floats(0.05, 0.6))
def test_blanks_and_their_two_positions_give_the_text_back(
    kind: str, mark: int, ids: np.ndarray, rng, rate: float
) -> None:
    shares = dict.fromkeys(("token", "sentence", "document"), 0.0) | {kind: 1.0}
    task = BlankTask(BlankInfilling(rate=rate, **shares), MARKS, np.array([STOP]))
    example = task.example(ids, rng)
    assert example is not None and example.inputs is not None and example.block_positions is not None
    assert filled(example, mark) == ids.tolist() and example.source[0] == ids[0]
    starts, ends = example.inputs == MARKS.start, example.target == MARKS.end
    assert starts.sum() == ends.sum() == (example.source == mark).sum()
    assert (example.block_positions[starts] == 1).all()
    inner = ~starts
    assert (
        example.inputs[inner] == example.target[np.flatnonzero(inner) - 1]
    ).all()  # an input is the target before it
    room = task.room(len(ids))
    assert len(example.source) <= room.source and len(example.target) <= room.target
    assert len(example.source) + len(example.target) <= room.both


def test_glm_s_rates() -> None:
    """15% of the tokens in spans of Poisson(3) (above 0); whole endings of 50 to 100% of a text, uniformly."""
    ids, rng = np.arange(1, 401), np.random.default_rng(0)
    spans = BlankTask(BlankInfilling(), MARKS, NOTHING)
    drawn = [spans.example(ids, rng) for _ in range(100)]
    blanked = [len(e.target) - (e.source == 1000).sum() for e in drawn]
    assert set(blanked) == {60}
    assert np.mean([60 / (e.source == 1000).sum() for e in drawn]) == pytest.approx(3 / (1 - np.exp(-3)), rel=0.03)
    order = [e.positions[e.block_positions == 1].tolist() for e in drawn]
    assert any(each != sorted(each) for each in order)
    endings = BlankTask(BlankInfilling(token=0, document=1), MARKS, NOTHING)
    shares = [(len(endings.example(ids, rng).target) - 1) / 400 for _ in range(500)]
    assert 0.5 <= min(shares) < 0.52 and 0.97 < max(shares) < 1 and np.mean(shares) == pytest.approx(0.75, abs=0.03)


def letters(text: str) -> list[int]:
    return [ord(sign) for sign in text]


def text_of(ids) -> str:
    return "".join(map(chr, ids))


PRE, SUF, MID, EOT = 3000, 3001, 3002, 3003


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("abc .\n"), min_size=1, max_size=40), rng=seeds, spm=st.sampled_from([0.0, 1.0]))
def test_the_middle_comes_last_and_nothing_is_lost(text: str, rng, spm: float) -> None:
    task = MiddleTask(1.0, spm, (PRE, SUF, MID), EOT, letters, text_of)
    example = task.example(np.array([EOT, *letters(text)]), rng)
    assert example is not None and example.given == 0 and not len(example.source)
    ids = example.target.tolist()
    assert ids[0] == ids[-1] == EOT and len(ids) == len(text) + 5
    pre, suf, mid = (ids.index(mark) for mark in (PRE, SUF, MID))
    assert pre < suf < mid
    prefix, suffix, rest = (text_of(ids[a + 1 : b]) for a, b in ((pre, suf), (suf, mid), (mid, len(ids) - 1)))
    if spm:
        assert prefix == "" and rest + suffix == text
    else:
        assert prefix + rest + suffix == text


def test_the_rates_of_fill_in_the_middle() -> None:
    task, rng = MiddleTask(0.5, 0.5, (PRE, SUF, MID), EOT, letters, text_of), np.random.default_rng(0)
    ids = np.array([EOT, *letters("ab" * 20)])
    drawn = [task.example(ids, rng).target.tolist() for _ in range(2000)]
    turned = [each for each in drawn if PRE in each]
    spm = [each for each in turned if each[2] == SUF]
    assert len(turned) == pytest.approx(1000, abs=80) and len(spm) == pytest.approx(len(turned) / 2, abs=70)
    assert all(len(each) <= len(ids) + SLACK for each in turned)


def test_a_text_with_a_broken_character_stays_as_it_is() -> None:
    task = MiddleTask(1.0, 0.5, (PRE, SUF, MID), EOT, letters, lambda ids: "ab\ufffd")
    ids = np.array([5, 6, 7])
    assert task.example(ids, np.random.default_rng(0)).target.tolist() == [5, 6, 7]


def test_ul2_is_seven_denoisers_in_equal_shares_and_ul2r_four() -> None:
    seven = parts_of(UL2())
    assert [label(part) for part in seven] == [
        "span-corruption(0.15,3)",
        "span-corruption(0.15,8)",
        "prefix-lm",
        "span-corruption(0.5,3)",
        "span-corruption(0.5,8)",
        "span-corruption(0.15,64)",
        "span-corruption(0.5,64)",
    ]
    assert [part.objective.mode for part in seven] == ["[R]", "[R]", "[S]", *["[X]"] * 4]  # type: ignore[union-attr]
    assert len({part.weight for part in seven}) == 1 and seven[2].objective.target == 0.25  # type: ignore[union-attr]
    four = parts_of(UL2(recipe="ul2r", mode_tokens=False))
    shares = Counter()
    for part in four:
        shares[part.objective.name] += part.weight
    assert shares == {"prefix-lm": 0.5, "span-corruption": 0.5}
    assert all(part.objective.mode is None for part in four)  # type: ignore[union-attr]


def test_ul2_as_a_part_shares_its_weight_among_its_denoisers() -> None:
    mixed = Mixture.model_validate(
        {"parts": [{"objective": "ul2", "weight": 3}, {"objective": "causal-lm", "weight": 1}]}
    )
    parts = parts_of(mixed)
    shares = np.array([part.weight for part in parts]) / sum(part.weight for part in parts)
    assert [label(part) for part in parts] == [*(label(part) for part in parts_of(UL2())), "causal-lm"]
    assert shares == pytest.approx([0.75 / 7] * 7 + [0.25])
    assert needs(mixed, "causal-decoder", 256)[1] == ("[R]", "[S]", "[X]")


def test_a_mixture_draws_by_weight_and_says_which() -> None:
    task, rng = MixtureTask([CausalTask(), PrefixTask(mode=5)], [1.0, 3.0], 0), np.random.default_rng(0)
    drawn = [task.example(np.arange(10, 20), rng) for _ in range(2000)]
    assert sum(e.part == 1 for e in drawn) == pytest.approx(1500, abs=90)
    assert all((e.source[0] == 5) if e.part else not len(e.source) for e in drawn)
    assert task.plain and task.lengths(10) == pytest.approx((0.75 * 6, 0.25 * 10 + 0.75 * 5))
