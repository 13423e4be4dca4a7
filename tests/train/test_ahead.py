"""The following step's batches are made beside the step; what is given is what the source gives for the step asked."""

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.train.ahead import Ahead


class Numbers:
    """A source that says who asked for what."""

    ahead = True

    def __init__(self, broken: int | None = None) -> None:
        self.broken, self.asked, self.busy = broken, [], threading.Lock()

    def __call__(self, step: int) -> list[Any]:
        assert self.busy.acquire(blocking=False), "two threads at once"
        try:
            self.asked.append((step, threading.current_thread()))
            if step == self.broken:
                raise OSError(f"step {step} cannot be read")
            return [step, step * step]
        finally:
            self.busy.release()


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 5)), min_size=1, max_size=12))
def test_any_order_of_steps_gives_their_batches(steps: list[tuple[int, int | None]]) -> None:
    """As after going back, skipping, or a guess that was wrong."""
    source = Numbers()
    batches = Ahead(source, lambda found: [2 * each for each in found])
    for step, following in steps:
        assert batches(step, following) == [2 * step, 2 * step * step]
    batches.close()


def test_the_following_step_is_made_in_another_thread_and_once() -> None:
    source = Numbers()
    batches = Ahead(source)
    for step in range(4):
        batches(step, step + 1 if step < 3 else None)
    batches.close()
    assert [step for step, _ in source.asked] == [0, 1, 2, 3]
    others = {thread is not threading.current_thread() for _, thread in source.asked[1:]}
    assert others == {True} and source.asked[0][1] is threading.current_thread()


def test_what_fails_beforehand_fails_when_its_turn_comes() -> None:
    batches = Ahead(Numbers(broken=1))
    assert batches(0, 1) == [0, 0]
    with pytest.raises(OSError, match="step 1 cannot be read"):
        batches(1, 2)
    assert batches(2) == [2, 4]
    batches.close()


def test_a_source_that_does_not_say_so_is_asked_in_turn() -> None:
    source = Numbers()
    source.ahead = False
    batches = Ahead(source)
    for step in range(3):
        batches(step, step + 1)
    assert {thread for _, thread in source.asked} == {threading.current_thread()}
    batches.close()
