"""Tasks give back what they took: corrupted source and target together are the text; counts are the papers'."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.objective.example import Example, largest_text
from lmlab.objective.spans import noise_counts, noise_spans, segmentation
from lmlab.objective.tasks import CausalTask, PrefixTask, SpanTask

END, FIRST = 0, 1000
SENTINELS = range(FIRST, FIRST + 400)
t5 = SpanTask(0.15, 3.0, SENTINELS, END)
texts = st.lists(st.integers(1, 99), min_size=2, max_size=200).map(np.array)


def restored(example: Example) -> list[int]:
    """The text: each sentinel of the source replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in example.target[:-1].tolist():
        if token >= FIRST:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [t for token in example.source[:-1].tolist() for t in (spans[token] if token >= FIRST else [token])]


def test_t5_s_lengths_512_inputs_are_568_tokens_of_text_and_114_targets() -> None:
    assert largest_text(t5, 512, encoder=True) == 568
    assert t5.lengths(568) == (512, 114)
    example = t5.example(np.arange(1, 569), np.random.default_rng(0))
    assert example is not None and (len(example.source), len(example.target)) == (512, 114)


@settings(max_examples=200, deadline=None)
@given(ids=texts, rate=st.floats(0.01, 0.95), span=st.floats(1, 20), seed=st.integers(0, 9))
def test_span_corruption_gives_the_text_back(ids: np.ndarray, rate: float, span: float, seed: int) -> None:
    task = SpanTask(rate, span, SENTINELS, END)
    example = task.example(ids, np.random.default_rng(seed))
    assert example is not None
    assert restored(example) == ids.tolist()
    assert (len(example.source), len(example.target)) == task.lengths(len(ids))
    noise, spans = noise_counts(len(ids), rate, span)
    marks = [token for token in example.source.tolist() if token >= FIRST]
    assert marks == list(SENTINELS[:spans]) == [token for token in example.target.tolist() if token >= FIRST]
    assert len(example.target) - spans - 1 == noise
    assert example.source[-1] == example.target[-1] == END and example.source[-2] >= FIRST


@given(items=st.integers(1, 60), parts=st.integers(1, 60), seed=st.integers(0, 9))
def test_segmentation_cuts_into_non_empty_parts(items: int, parts: int, seed: int) -> None:
    parts = min(items, parts)
    lengths = segmentation(items, parts, np.random.default_rng(seed))
    assert len(lengths) == parts and lengths.sum() == items and (lengths > 0).all()


def test_every_segmentation_is_as_likely_as_another() -> None:
    rng = np.random.default_rng(0)
    drawn = [tuple(segmentation(5, 3, rng).tolist()) for _ in range(6000)]
    counts = [drawn.count(each) for each in set(drawn)]
    assert len(counts) == 6  # 4 choose 2
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5  # chi-square, 5 degrees, p = 0.001


def test_every_token_after_the_first_part_is_as_likely_noise() -> None:
    rng = np.random.default_rng(0)
    hit = np.zeros(40)
    for _ in range(2000):
        for start, end in noise_spans(40, 0.15, 3.0, rng):
            hit[start:end] += 1
    assert hit.sum() == 2000 * 6 and hit[0] == 0 and hit[5:].min() > 0


@given(ids=texts, seed=st.integers(0, 9))
def test_a_prefix_and_what_follows_are_the_text(ids: np.ndarray, seed: int) -> None:
    example = PrefixTask().example(ids, np.random.default_rng(seed))
    assert example is not None and len(example.source) >= 1 and len(example.target) >= 1
    assert np.concatenate((example.source, example.target)).tolist() == ids.tolist()


def test_a_prefix_s_length_is_uniform() -> None:
    rng = np.random.default_rng(0)
    lengths = [len(PrefixTask().example(np.arange(5), rng).source) for _ in range(4000)]  # type: ignore[union-attr]
    counts = np.bincount(lengths, minlength=5)[1:]
    assert counts.tolist() == pytest.approx([1000] * 4, abs=120) and counts.sum() == 4000


@pytest.mark.parametrize("task", [CausalTask(), PrefixTask(), t5], ids=lambda task: type(task).__name__)
def test_a_continuation_s_loss_is_on_what_follows_alone(task) -> None:
    before, after = np.array([5, 6, 7]), np.array([8, 9])
    example = task.continuation(before, after)
    learnt = example.target[example.given :].tolist()
    assert learnt == [8, 9]
    shown = [*example.source.tolist(), *example.target[: example.given].tolist()]
    assert [token for token in shown if 0 < token < FIRST] == [5, 6, 7]


def test_a_piece_of_one_token_holds_no_example() -> None:
    for task in (CausalTask(), PrefixTask(), t5):
        assert task.example(np.array([3]), np.random.default_rng(0)) is None
