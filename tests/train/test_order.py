"""Orders of windows: epochs visit each window once, mixtures stay within their sources, ranks add up to one process."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.corpus.mixture import MixtureConfig
from lmlab.corpus.shards import Shards, write_shards
from lmlab.errors import Refused
from lmlab.train.data import PackedWindows
from lmlab.train.order import EpochOrder, MixedOrder, seen_in
from lmlab.train.ramp import Batches, RampConfig

LENGTH = 8
SOURCES = {"a": (2, 30), "b": (40, 17), "c": (9, 90)}  # documents, tokens of each


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    documents = [(f"{s}{n}", s, str(length)) for s, (count, length) in SOURCES.items() for n in range(count)]

    def encode(batch: list[str]) -> list[list[int]]:
        return [list(range(1, int(text) + 1)) for text in batch]

    folder = tmp_path_factory.mktemp("order") / "tokens"
    return write_shards(folder, documents, encode, end_of_text=0, vocabulary=100, shard_tokens=200)


def mixed(shards: Shards, steps: int = 20, ramp: RampConfig | None = None, seed: int = 5, **settings) -> MixedOrder:
    return MixedOrder(shards, LENGTH, seed, 1, MixtureConfig(**settings), Batches(6, LENGTH, ramp), steps)


def source_at(shards: Shards, places: np.ndarray) -> list[str]:
    documents = np.searchsorted(shards.starts, places, side="right") - 1
    return [shards.documents["source"][int(each)].as_py() for each in documents]


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3), seed=st.integers(0, 2**60))
def test_a_window_lies_in_its_source_and_comes_once_an_epoch(shards: Shards, weights: list[float], seed: int) -> None:
    order = mixed(shards, weights=dict(zip("abc", weights)), seed=seed)
    places = order.places(np.arange(120))
    assert source_at(shards, places) == source_at(shards, places + LENGTH)
    counts = order.mixture.counts(120)
    for place, name in enumerate("abc"):
        own = [int(p) for p, s in zip(places, source_at(shards, places)) if s == name]
        windows = order.mixture.windows[name]
        assert len(own) == counts[place]
        for start in range(0, len(own), windows):
            epoch = own[start : start + windows]
            assert len(set(epoch)) == len(epoch)
        assert order.seen(120)[name] == {"tokens": len(own) * LENGTH, "epochs": len(own) / windows}


@settings(max_examples=40, deadline=None)
@given(world=st.integers(1, 7), step=st.integers(0, 19), seed=st.integers(0, 99))
def test_ranks_read_together_what_one_process_would(shards: Shards, world: int, step: int, seed: int) -> None:
    """Each rank makes its own order and asks it only for its own rows."""
    ramp = RampConfig(stages=((0, 2 * LENGTH), (7, 6 * LENGTH)))
    numbers = Batches(6, LENGTH, ramp).numbers(step)
    alone = mixed(shards, ramp=ramp, seed=seed, use=0.7, temperature=2.0).places(numbers)
    ranks = [
        mixed(shards, ramp=ramp, seed=seed, use=0.7, temperature=2.0).places(part)
        for part in np.array_split(numbers, world)
    ]
    assert np.concatenate(ranks).tolist() == alone.tolist()


def test_less_data_is_the_same_part_in_every_epoch(shards: Shards) -> None:
    order = mixed(shards, weights={"a": 0, "b": 0, "c": 1}, use=0.1)
    places = order.places(np.arange(100)).tolist()
    assert len(set(places)) == order.mixture.windows["c"] == round(0.1 * (9 * 91 - 1) // LENGTH)
    other = mixed(shards, weights={"a": 0, "b": 0, "c": 1}, use=0.1, seed=6).places(np.arange(100)).tolist()
    assert set(other) != set(places)
    assert order.seen(100)["c"]["epochs"] == 100 / len(set(places))


def test_repeated_windows_come_so_many_times_and_the_others_once(shards: Shards) -> None:
    order = mixed(shards, weights={"a": 0, "b": 0, "c": 1}, repeats={"share": 0.5, "times": 10}, steps=10)
    places = order.places(np.arange(60)).tolist()
    often = sorted((places.count(place) for place in set(places)), reverse=True)
    assert often == [10, 10, 10, *[1] * 30]
    assert order.seen(60)["c"]["repeated_windows"] == 3
    with pytest.raises(Refused, match="windows of the source 'a' would be repeated"):
        mixed(shards, weights={"a": 1, "b": 0, "c": 0}, repeats={"share": 0.9, "times": 2})


def test_what_was_read_is_counted_token_by_token(shards: Shards) -> None:
    order = EpochOrder(shards, LENGTH, 3, 1)
    for rows in (0, 5, order.windows, 2 * order.windows + 7):
        places = order.places(np.arange(rows))
        read = places[:, None] + np.arange(LENGTH)
        names = np.array(source_at(shards, read.ravel()))
        found = order.seen(rows)
        for name, (count, length) in SOURCES.items():
            tokens = int((names == name).sum())
            assert found[name] == {"tokens": tokens, "epochs": tokens / (count * (length + 1))}


@pytest.mark.parametrize("make", [lambda shards: EpochOrder(shards, LENGTH, 3, 1), mixed])
def test_what_a_spike_left_out_is_not_counted_as_read(shards: Shards, make) -> None:
    order, spans = make(shards), [(0, 31), (44, 60), (75, 140)]
    rows = np.concatenate([np.arange(first, end) for first, end in spans])
    read = (order.places(rows)[:, None] + np.arange(LENGTH)).ravel()
    names = np.array(source_at(shards, read))
    found = seen_in(order, spans)
    assert {name: found[name]["tokens"] for name in SOURCES} == {name: int((names == name).sum()) for name in SOURCES}
    for name in SOURCES:
        whole = order.seen(140)[name]
        assert found[name]["epochs"] == pytest.approx(whole["epochs"] * found[name]["tokens"] / whole["tokens"])
    assert seen_in(order, [(0, 140)]) == order.seen(140)


def test_without_a_mixture_nothing_has_changed(shards: Shards) -> None:
    """The order of the first version, written out."""
    source = PackedWindows(shards, LENGTH, 6, 2, 11, True)
    windows = (len(shards.tokens) - 1) // LENGTH
    numbers = np.arange(6 * 40, 6 * 41)
    orders = [np.random.Generator(np.random.Philox(key=[11, e])).permutation(windows) for e in range(4)]
    expected = [orders[n // windows][n % windows] for n in numbers]
    tokens = np.asarray(shards.tokens[:]).astype(np.int64)
    rows = torch.cat([batch.tokens_BT for batch in source(40)])
    assert rows.tolist() == [tokens[w * LENGTH : w * LENGTH + LENGTH].tolist() for w in expected]
