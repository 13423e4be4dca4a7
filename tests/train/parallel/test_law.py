"""The law: however many ranks train, and however the work is laid out, the loss curve is that of one process.

float64: 20 steps within 1e-8. float32: the first step's loss and gradients within 1e-5, 20 steps within 1e-4.
"""

import pytest
import torch
from toys import MODELS, TRAINED, apart, curve, furthest, gradients, model_of, train

from lmlab.train.parallel import Layout, ParallelConfig

DATA = [ParallelConfig(zero=stage) for stage in (0, 1, 2, 3)]
RECOMPUTE = [
    ParallelConfig(recompute="full", zero=3),
    ParallelConfig(recompute="selective"),
    ParallelConfig(recompute="full", tensor=2),
    ParallelConfig(recompute="selective", tensor=2),
]
TENSOR = [ParallelConfig(tensor=2, sequence=sequence) for sequence in (True, False)]


def named(config: ParallelConfig) -> str:
    changed = config.model_dump(exclude_defaults=True)
    return ",".join(f"{key}={value}" for key, value in changed.items()) or "data"


def hold_gradients(
    ranks, kind: str, dtype: torch.dtype, layouts: list[ParallelConfig], size: int, bound: float, micro_batches: int = 2
):
    """The first step's loss and gradients of each layout are one process's."""

    def work(world):
        loss, whole = gradients(kind, dtype, Layout(), micro_batches)
        found = {}
        for config in layouts:
            own_loss, own = gradients(kind, dtype, Layout(config, world, model_of(kind)), micro_batches)
            found[named(config)] = (abs(own_loss - loss) / loss, furthest(own, whole))
        return found

    for found in ranks(work, size):
        print(kind, dtype, found)
        assert max(max(each) for each in found.values()) < bound, found


def hold_curves(ranks, out, kind: str, layouts: list[ParallelConfig], size: int, bound: float, **settings):
    """The losses of each layout are one process's."""
    train(kind, out / "one", **settings)
    wanted = curve(out / "one")
    assert wanted[-1] < wanted[0] if kind in TRAINED else wanted[3] < wanted[0]  # the same batch again

    def work(world):
        for config in layouts:
            train(kind, out / named(config), config, world, **settings)

    ranks(work, size)
    found = {named(config): apart(curve(out / named(config)), wanted) for config in layouts}
    print(kind, settings, found)
    assert max(found.values()) < bound, found


in_both_types = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def hold_law(ranks, out, kind: str, layouts: list[ParallelConfig], size: int, dtype: torch.dtype):
    """The whole law, in one type of numbers."""
    gradients_within, curves_within = (1e-8, 1e-8) if dtype == torch.float64 else (1e-5, 1e-4)
    hold_gradients(ranks, kind, dtype, layouts, size, gradients_within)
    hold_curves(ranks, out, kind, layouts, size, curves_within, dtype=dtype)


@pytest.mark.parametrize("kind", MODELS)
def test_two_ranks_have_one_process_s_gradients(ranks, kind):
    hold_gradients(ranks, kind, torch.float32, [*DATA[::2], *TENSOR, *RECOMPUTE[:3]], 2, 1e-5)


def test_two_ranks_learn_what_one_process_does(ranks, tmp_path):
    """A model with experts, weights in parts: the data-parallel layout with the most in it."""
    hold_curves(ranks, tmp_path, "experts", DATA[3:], 2, 1e-8, steps=5)


@pytest.mark.parametrize("kind", TRAINED)
def test_every_objective(ranks, tmp_path, kind):
    """Windows of text under an objective, packed by each rank for itself, in batches that grow while the rate follows."""
    hold_gradients(ranks, kind, torch.float64, [DATA[0], DATA[3], *TENSOR], 2, 1e-8)
    hold_curves(ranks, tmp_path, kind, [DATA[3], TENSOR[0]], 2, 1e-8, steps=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_every_stage_of_zero(ranks, tmp_path, kind, dtype):
    hold_law(ranks, tmp_path, kind, DATA, 2, dtype)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "lion", "muon"])
def test_every_optimizer(ranks, tmp_path, optimizer):
    """Muon and Adafactor need whole matrices: they gather what lies in parts. With a running mean of the weights."""
    hold_curves(ranks, tmp_path, "dense", DATA[1:], 2, 1e-8, optimizer=optimizer, steps=6, ema=0.9)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_tensor_parallel(ranks, tmp_path, kind, dtype):
    hold_law(ranks, tmp_path, kind, TENSOR, 2, dtype)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_data_by_tensor(ranks, tmp_path, kind, dtype):
    """Four ranks, two by two, with every stage of ZeRO."""
    layouts = [ParallelConfig(tensor=2, zero=stage, sequence=stage != 2) for stage in (0, 1, 2, 3)]
    hold_law(ranks, tmp_path, kind, layouts, 4, dtype)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", ["adafactor", "lion", "muon"])
def test_optimizers_over_data_by_tensor(ranks, tmp_path, optimizer):
    layouts = [ParallelConfig(tensor=2, zero=stage) for stage in (1, 3)]
    hold_curves(ranks, tmp_path, "dense", layouts, 4, 1e-8, optimizer=optimizer, steps=6, ema=0.9)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
def test_recomputed_activations(ranks, tmp_path, kind):
    hold_curves(ranks, tmp_path, kind, RECOMPUTE, 2, 1e-8)


@pytest.mark.parametrize("kind", [*MODELS, "biased"])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputing_on_one_process_changes_no_bit(kind, recompute):
    wanted = gradients(kind, torch.float32, Layout())
    found = gradients(kind, torch.float32, Layout(ParallelConfig(recompute=recompute)))
    assert found[0] == wanted[0]
    assert furthest(found[1], wanted[1]) == 0
