"""Conversations: demonstrations are training items of the family, never the item itself, and answer as it asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import Failed
from lmlab.instruct import formatting
from lmlab.instruct.families import draw, make
from lmlab.instruct.formatting import conversation, demonstrations, messages, shares

MADE = make()


@given(
    family=st.sampled_from(list(MADE.values())),
    split=st.sampled_from(["train", "test"]),
    seed=st.integers(0, 9),
    index=st.integers(0, 10_000),
    count=st.integers(0, 4),
)
def test_what_is_shown(family, split, seed, index, count) -> None:
    item = draw(family, split, seed, index)
    shown = demonstrations(family, item, count, seed, index)
    assert shown == demonstrations(family, item, count, seed, index)
    assert len({each.key for each in [item, *shown]}) == count + 1
    assert all(each.split == "train" and each.family == item.family for each in shown)
    assert all(each.show_steps == item.show_steps for each in shown if each.steps is not None)


def test_the_two_styles() -> None:
    family = MADE["arithmetic"]
    item = draw(family, "test", 0, 0, show_steps=True)
    one, two = demonstrations(family, item, 2, 0, 0)
    assert messages(item) == messages(item, style="inline") == [{"role": "user", "content": item.prompt}]
    assert messages(item, [one, two]) == [
        {"role": "user", "content": one.prompt},
        {"role": "assistant", "content": one.target},
        {"role": "user", "content": two.prompt},
        {"role": "assistant", "content": two.target},
        {"role": "user", "content": item.prompt},
    ]
    inline = f"{one.prompt}\n{one.target}\n\n{two.prompt}\n{two.target}\n\n{item.prompt}"
    assert messages(item, [one, two], "inline") == [{"role": "user", "content": inline}]
    for style in formatting.STYLES:
        whole = conversation(item, [one, two], style)
        assert whole[:-1] == messages(item, [one, two], style)
        assert whole[-1] == {"role": "assistant", "content": item.target}


def test_too_few_items_to_show_say_so(monkeypatch) -> None:
    family = MADE["copy"]
    item = draw(family, "train", 0, 0)
    monkeypatch.setattr(formatting, "ATTEMPTS", 3)
    monkeypatch.setattr(formatting, "draw", lambda *_, **__: item)
    with pytest.raises(Failed, match="no 2 different items to show"):
        demonstrations(family, item, 2, 0, 0)


def test_shares_are_the_weights_over_their_sum() -> None:
    assert shares({"a": 2.0, "c": 0.0}, ["a", "b", "c"]).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
