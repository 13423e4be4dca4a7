"""Experts divided among ranks: tokens go to where theirs are, and the law holds."""

import pytest
import torch
from test_law import hold_curves, hold_gradients, hold_law, in_both_types
from toys import MODELS, apart, curve, train

from lmlab.train.checkpoint import gathered
from lmlab.train.parallel import ParallelConfig, misfits

ALONE = [ParallelConfig(expert=2, zero=stage) for stage in (0, 1, 2, 3)]
FOUR = [
    *(ParallelConfig(expert=2, zero=stage) for stage in (0, 1, 2, 3)),  # each expert on two ranks
    ParallelConfig(expert=4, zero=3),
    ParallelConfig(expert=2, tensor=2),
    ParallelConfig(expert=2, tensor=2, sequence=False, zero=1),
    ParallelConfig(expert=2, tensor=2, zero=3),
    ParallelConfig(expert=2, context=2, zero=2),
    ParallelConfig(expert=2, data=1, context=4),
]
EIGHT = [
    ParallelConfig(expert=2, tensor=2, zero=3),
    ParallelConfig(expert=4, context=2, tensor=2, zero=1),
    ParallelConfig(expert=2, context=2, tensor=2, zero=2, recompute="full"),
]


def test_divided_experts_have_one_process_s_gradients(ranks):
    hold_gradients(ranks, "experts", torch.float32, [*ALONE, ParallelConfig(expert=2, context=2)], 2, 1e-5)


def test_divided_experts_learn_what_one_process_s_do(ranks, tmp_path):
    hold_curves(ranks, tmp_path, "experts", [ALONE[1], ALONE[3]], 2, 1e-8, steps=5, ema=0.9, layer_norms_every=2)


def test_the_whole_network_is_given_back(ranks, tmp_path):
    """Each rank holds half of the experts; a checkpoint and what is saved at the end hold all."""

    def work(world):
        found = {}
        for config in (ALONE[0], ALONE[3]):
            network = train("experts", tmp_path / str(config.zero), config, world, steps=2)
            held = network.blocks[0].feed_forward.experts.up.to_local()
            assert held.numel() * 2 == network.blocks[0].feed_forward.experts.up.numel()
            whole = gathered(network)
            found[str(config.zero)] = {name: tensor.flatten().tolist() for name, tensor in whole.items()}
        return found

    one = train("experts", tmp_path / "one", steps=2).state_dict()
    for found in ranks(work, 2):
        for weights in found.values():
            assert weights.keys() == one.keys()
            for name, values in weights.items():
                torch.testing.assert_close(torch.tensor(values).double(), one[name].flatten(), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("kind", "layout", "message"),
    [
        ("dense", {"expert": 2}, "this model has no experts"),
        ("experts", {"expert": 3, "data": 3}, "moe.experts 4 cannot be divided by it"),
        (
            "experts",
            {"expert": 4, "tensor": 2, "data": 2},
            "expert 4 does not divide the 2 processes of data x context",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(kind, layout, message):
    config = ParallelConfig(**layout)
    assert any(message in each for each in misfits(config, (config.data or 2) * config.tensor, MODELS[kind]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
@pytest.mark.parametrize("zero", [1, 3])
def test_saved_on_two_resumed_on_one_and_back(ranks, tmp_path, zero, optimizer):
    """Optimizers that need whole matrices; a checkpoint knows nothing of ranks."""
    config, settings = ParallelConfig(expert=2, zero=zero), {"optimizer": optimizer, "checkpoint_steps": 2, "ema": 0.9}
    train("experts", tmp_path / "one", steps=6, optimizer=optimizer)
    wanted = curve(tmp_path / "one")
    first, second = tmp_path / "two-then-one", tmp_path / "one-then-two"
    ranks(lambda world: train("experts", first, config, world, steps=3, **settings) and None, 2)
    train("experts", first, steps=6, **settings)
    assert apart(curve(first), wanted) < 1e-8
    train("experts", second, steps=3, **settings)
    ranks(lambda world: train("experts", second, config, world, steps=6, **settings) and None, 2)
    assert apart(curve(second), wanted) < 1e-8


@pytest.mark.slow
@pytest.mark.timeout(1800)
@in_both_types
@pytest.mark.parametrize(("layouts", "size"), [(ALONE, 2), (FOUR[:5], 4), (FOUR[5:], 4), (EIGHT, 8)])
def test_expert_parallel(ranks, tmp_path, dtype, layouts, size):
    hold_law(ranks, tmp_path, "experts", layouts, size, dtype)
