"""A checkpoint knows nothing of ranks: saved on some, resumed on others, the curve goes on."""

import json
import os

import pytest
import torch
from toys import apart, curve, network_of, train

from lmlab.train.checkpoint import gathered, listed
from lmlab.train.parallel import ParallelConfig


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("zero", [1, 3])
def test_saved_on_two_resumed_on_one_and_back(ranks, tmp_path, zero, optimizer):
    config = ParallelConfig(zero=zero)
    train("dense", tmp_path / "one", steps=6, optimizer=optimizer)
    wanted = curve(tmp_path / "one")
    settings = {"optimizer": optimizer, "checkpoint_steps": 2, "ema": 0.9}
    first = tmp_path / "two-then-one"
    ranks(lambda world: train("dense", first, config, world, steps=3, **settings) and None, 2)
    train("dense", first, steps=6, **settings)
    assert apart(curve(first), wanted) < 1e-8
    second = tmp_path / "one-then-two"
    train("dense", second, steps=3, **settings)
    ranks(lambda world: train("dense", second, config, world, steps=6, **settings) and None, 2)
    assert apart(curve(second), wanted) < 1e-8


def test_the_whole_network_is_given_back(ranks, tmp_path):
    """What rank 0 saves at the end: all weights, under their own names."""

    def work(world):
        network = train("dense", tmp_path / "two", ParallelConfig(zero=3), world, steps=1)
        return {name: tensor.flatten().tolist() for name, tensor in gathered(network).items()}

    first, second = ranks(work, 2)
    assert first == second
    one = train("dense", tmp_path / "one", steps=1)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(torch.tensor(first[name]).double(), tensor.flatten(), atol=1e-7, rtol=0)
    assert first.keys() == network_of("dense").state_dict().keys()
    newest = listed(tmp_path / "two" / "checkpoints")[-1]
    assert json.loads((newest / "state.json").read_text())["step"] == 1
    assert "RANK" not in os.environ
