"""What cannot be laid out is refused in one message; sources divide every step's rows among ranks."""

import numpy as np
import pytest
import torch

from lmlab.corpus.shards import write_shards
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.layout import Layout as Rows
from lmlab.objective.tasks import PrefixTask
from lmlab.train.data import ExampleWindows, PackedWindows
from lmlab.train.parallel import Layout, ParallelConfig, World, misfits
from lmlab.train.parallel.apply import parallelize
from lmlab.train.step import on_device


def test_a_product_that_is_not_the_world_is_refused():
    with pytest.raises(ValueError, match="data 4 x tensor 1 makes 4 processes, but 1"):
        Layout(ParallelConfig(data=4))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 6, "d_model": 24}, "heads 6 cannot be divided by it"),
        ({"kv_heads": 2}, "kv_heads 2 cannot be divided by it"),
        ({"vocab_size": 50}, "vocab_size 50 cannot be divided by it"),
        ({"context_length": 18}, "context_length 18 cannot be divided by it; or set sequence: false"),
        ({"dropout": 0.1}, "it goes with sequence: false"),
        ({"position": "relative-bias"}, "tables by head that are not cut yet"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(changed, message):
    shape = {"layers": 1, "d_model": 32, "heads": 4, "vocab_size": 48, "context_length": 16} | changed
    assert any(message in each for each in misfits(ParallelConfig(tensor=4), 4, ModelConfig(**shape)))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    def encode(batch):
        return [[2 + (int(text) + i) % 15 for i in range(5 + int(text) % 40)] for text in batch]

    documents = ((str(n), "toy", str(n)) for n in range(60))
    return write_shards(tmp_path_factory.mktemp("shard") / "tokens", documents, encode, end_of_text=0, vocabulary=40)


@pytest.mark.parametrize(("rows", "micro_batches", "size"), [(8, 2, 2), (7, 2, 3), (3, 1, 4), (5, 3, 2)])
def test_the_union_of_all_shares_is_one_process_s_step(shard, rows, micro_batches, size):
    made = {"batches": rows, "micro_batches": micro_batches, "seed": 3, "separate": True}
    for step in (0, 5):
        wanted = PackedWindows(shard, 16, **made)(step)
        parts = [PackedWindows(shard, 16, **made, share=(rank, size))(step) for rank in range(size)]
        assert {len(part) for part in parts} == {len(wanted)}  # each rank takes part in every micro-batch
        for place, batch in enumerate(wanted):
            real = [part[place] for part in parts if part[place].size]
            assert torch.equal(torch.cat([each.tokens_BT for each in real]), batch.tokens_BT)
            assert sum(int(part[place].mask_BT.sum()) for part in parts) == int(batch.mask_BT.sum())


@pytest.mark.parametrize(("rows", "size"), [(8, 2), (3, 4)])
def test_examples_are_divided_too(shard, rows, size):
    def texts(batches):
        return sorted(
            tuple(b.targets_BT[r][b.mask_BT[r] & (b.segments_BT[r] == s)].tolist())
            for b in batches
            for r in range(len(b.tokens_BT))
            for s in np.unique(b.segments_BT[r].numpy())
            if bool((b.mask_BT[r] & (b.segments_BT[r] == s)).any())
        )

    made = (shard, PrefixTask(), Rows("prefix-decoder", 32, 0, 1, 1), 24, rows, 1, 3, True)
    parts = [ExampleWindows(*made, share=(rank, size))(0)[0] for rank in range(size)]
    assert texts(parts) == texts(ExampleWindows(*made)(0))


def test_one_process_with_a_device_of_its_own_puts_network_and_batches_there() -> None:
    """What one GPU needs, on torch's device without values."""
    layout = Layout(world=World(device=torch.device("meta")))
    network = parallelize(
        Transformer(ModelConfig(layers=1, d_model=8, heads=2, vocab_size=16, context_length=8)), layout
    )
    assert {p.device.type for p in network.parameters()} == {"meta"}
    ids_BT = torch.zeros(2, 4, dtype=torch.long)
    (batch,) = on_device([Batch(ids_BT, ids_BT, ids_BT.bool())], layout)
    assert {batch.tokens_BT.device.type, batch.targets_BT.device.type} == {"meta"}
