"""A compiled step is the step: on one process the whole of it, on several each block, in every kind of layout."""

import pytest
import torch
from toys import MODELS, apart, curve, train

from lmlab.train.fastest import can_compile
from lmlab.train.parallel import ParallelConfig

pytestmark = pytest.mark.timeout(1200)
LONG = pytest.mark.long
SETTINGS = {"dtype": torch.float32, "steps": 4}
LAYOUTS = {
    "zero": {"zero": 3},
    "tensor": {"tensor": 2},
    "replicated": {"tensor": 2, "sequence": False},
    "context": {"context": 2},
    "pipeline": {"pipeline": 2},
}


@pytest.fixture(autouse=True)
def one_thread():
    """No pool of compiling processes, which a forked rank would take over half alive."""
    from torch._inductor import config

    if not can_compile():
        pytest.skip("no C++ compiler here")
    torch._dynamo.reset()
    with config.patch(compile_threads=1):
        yield


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "dense" else LONG) for kind in MODELS]
)
def test_on_one_process(tmp_path, kind):
    for name, compiled in (("eager", False), ("compiled", True)):
        train(kind, tmp_path / name, compile=compiled, **SETTINGS)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0, "something was compiled"
    found = apart(curve(tmp_path / "compiled"), curve(tmp_path / "eager"))
    print(kind, found)
    assert found < 1e-4


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("zero", "tensor") else LONG) for name in LAYOUTS]
)
def test_on_two_ranks(ranks, tmp_path, name):
    train("dense", tmp_path / "one", **SETTINGS)

    def work(world):
        train("dense", tmp_path / name, ParallelConfig(**LAYOUTS[name]), world, compile=True, **SETTINGS)
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    assert min(ranks(work, 2)) > 0
    found = apart(curve(tmp_path / name), curve(tmp_path / "one"))
    print(name, found)
    assert found < 1e-4


@LONG
def test_experts_on_two_ranks(ranks, tmp_path):
    train("experts", tmp_path / "one", **SETTINGS)
    config = ParallelConfig(expert=2, zero=3)
    ranks(lambda world: train("experts", tmp_path / "two", config, world, compile=True, **SETTINGS) and None, 2)
    assert apart(curve(tmp_path / "two"), curve(tmp_path / "one")) < 1e-4
