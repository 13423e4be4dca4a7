"""Training in float8: which layers do, how far from bfloat16 it ends, and that layouts, recomputation, compiling and checkpoints
are as with every precision. On CPUs, which only tests may."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from toys import (
    VOCABULARY,
    WIDE,
    Cut,
    apart,
    curve,
    furthest,
    model_of,
    network_of,
    objective_of,
    source_of,
    train,
    until,
)  # fmt: skip

from lmlab import recipe
from lmlab.device import hardware
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.settings import MoEConfig
from lmlab.model.transformer import Transformer
from lmlab.train import float8, pieces
from lmlab.train.checkpoint import listed
from lmlab.train.parallel import Layout, ParallelConfig
from lmlab.train.parallel.apply import parallelize
from lmlab.train.parallel.eight_bits import Float8Experts, Float8Linear, from_float8, to_float8
from lmlab.train.planner.plan import make
from lmlab.train.sharded import whole
from lmlab.train.step import autocast, make_step

EIGHT = {"dtype": torch.float32, "precision": "float8"}
HALF = {"dtype": torch.float32, "precision": "bfloat16"}
SHAPE = {"layers": 2, "d_model": 64, "heads": 4, "d_ff": 96, "vocab_size": VOCABULARY, "context_length": 16}


@pytest.fixture
def allowed(monkeypatch):
    """float8 on CPUs. Ranks are forked, and have it too."""
    monkeypatch.setattr(float8, "lacking", lambda precision, device: None)


def eights(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, (Float8Linear, Float8Experts))}


def test_the_matrices_of_blocks_and_no_others():
    network = Transformer(ModelConfig(**SHAPE, moe=MoEConfig(experts=4, top_k=2, shared_experts=1, every=2)))
    names, types = list(network.state_dict()), {p.dtype for p in network.parameters()}
    said = to_float8(network)
    attention = {f"blocks.{n}.attention.{name}" for n in (0, 1) for name in ("q", "k", "v", "out")}
    forward = {f"blocks.0.feed_forward.{name}" for name in ("gate", "up", "down")}
    shared = {f"blocks.1.feed_forward.shared.{name}" for name in ("gate", "up", "down")}
    assert eights(network) == attention | forward | shared | {"blocks.1.feed_forward.experts"}
    assert said == "float8: 17 matrices of blocks"
    assert list(network.state_dict()) == names and {p.dtype for p in network.parameters()} == types
    from_float8(network)
    assert not eights(network)


def test_sizes_that_the_hardware_does_not_take_stay_and_are_named():
    network = Transformer(ModelConfig(**{**SHAPE, "d_ff": 100, "kv_heads": 2, "head_dim": 12}))
    said = to_float8(network)
    assert eights(network) == {f"blocks.{n}.attention.{name}" for n in (0, 1) for name in ("q", "out")}
    assert "4 matrices" in said and "10 stay in bfloat16" in said
    assert "blocks.0.attention.k (24 x 64)" in said
    with pytest.raises(Refused, match=r"multiples of 16: expected bfloat16 \(found blocks.0.attention.q \(24 x 24\)\)"):
        to_float8(Transformer(ModelConfig(**{**SHAPE, "d_model": 24, "d_ff": 40})))


def test_evaluating_is_bfloat16s():
    network = network_of("dense", torch.float32, d_model=64, d_ff=96)
    tokens = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(network)
    to_float8(network)
    with torch.no_grad(), autocast("float8"):
        evaluated, wanted = network.eval()(tokens).hidden_BTD, plain.eval()(tokens).hidden_BTD
        trained = network.train()(tokens).hidden_BTD
    assert torch.equal(evaluated, wanted)
    off = float((trained - wanted).norm() / wanted.norm())
    assert 1e-3 < off < 0.15  # it does round


@pytest.mark.parametrize("kind", ["dense", "experts", "encoder-decoder"])
def test_it_learns_as_bfloat16_does(allowed, tmp_path, kind):
    train(kind, tmp_path / "half", steps=15, **HALF)
    network = train(kind, tmp_path / "eight", steps=15, **EIGHT)
    assert not eights(network)  # taken back when training ends
    half, eight = curve(tmp_path / "half"), curve(tmp_path / "eight")
    print(kind, apart(eight, half), half[0], half[-1], eight[-1])
    assert 1e-5 < apart(eight, half) < 0.02


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize("parallel", [{}, {"zero": 2}, {"zero": 3, "recompute": "full"}, {"tensor": 2}], ids=str)
def test_gradients_of_layouts_are_as_near_to_float32s_as_one_processs(allowed, ranks, kind, parallel):
    """The first step's. Layouts round to bfloat16 elsewhere, after which each rounding to float8 may fall the other way: they
    are as far from each other as from float32, and no farther from that. Rows divided alone change next to nothing."""

    def of(layout, precision="float8"):
        network, objective = network_of(kind, torch.float32).train(), objective_of(kind)
        parallelize(network, layout, False, precision)
        batches = [layout.cut(batch) for batch in source_of(kind, layout.share)(0)]
        found = make_step(network, objective, layout, precision)(batches)
        layout.finish(network)
        own = {name: whole(p.grad).float() for name, p in network.named_parameters() if p.grad is not None}
        return found["loss"], layout.together(own), len(eights(network))

    def work(world):
        exact_loss, exact, _ = of(Layout(), "float32")
        loss, one, count = of(Layout())
        found = {"one": (abs(loss - exact_loss) / exact_loss, furthest(one, exact), 0.0)}
        layouts = [{"sequence": False}, {"sequence": True}] if "tensor" in parallel else [{}]
        layouts += [{"expert": 2}] if kind == "wide-experts" and "tensor" not in parallel else []
        for more in layouts:
            loss, own, here = of(Layout(ParallelConfig(**parallel, **more), world, model_of(kind)))
            assert here == count
            found[str(more)] = (abs(loss - exact_loss) / exact_loss, furthest(own, exact), furthest(own, one))
        return found

    for found in ranks(work, 2):
        print(kind, parallel, found)
        _, own, _ = found.pop("one")
        assert 0.02 < own < 0.5  # experts: a router may choose another one
        for loss, gradient, between in found.values():
            assert loss < 1e-3 and gradient < 1.3 * own and between < (1.5 * own if parallel else 0.01)


def test_curves_of_layouts_stay_near_one_processs(allowed, ranks, tmp_path):
    layouts = {
        "data": ParallelConfig(),
        "zero": ParallelConfig(zero=3),
        "tensor": ParallelConfig(tensor=2),
        "pipeline": ParallelConfig(pipeline=2),
    }
    train("wide-dense", tmp_path / "one", steps=8, **EIGHT)
    train("wide-dense", tmp_path / "half", steps=8, **HALF)

    def work(world):
        for name, config in layouts.items():
            network = train("wide-dense", tmp_path / name, config, world, steps=8, **EIGHT)
            assert {p.dtype for p in network.parameters()} == {torch.float32}

    ranks(work, 2)
    one = curve(tmp_path / "one")
    found = {name: apart(curve(tmp_path / name), one) for name in ("half", *layouts)}
    print(found)
    assert max(found.values()) < 0.01


def test_recomputed_activations_change_no_bit(allowed, tmp_path):
    for what in ("none", "selective", "full"):
        train("dense", tmp_path / what, ParallelConfig(recompute=what), steps=4, **EIGHT)
    assert curve(tmp_path / "none") == curve(tmp_path / "selective") == curve(tmp_path / "full")


def test_checkpoints_are_those_of_every_precision(allowed, tmp_path):
    """Cut off and resumed it is the uninterrupted curve, bit for bit; what is saved has the names and types of bfloat16's."""
    for name, settings in {"one": EIGHT, "half": HALF}.items():
        train("experts", tmp_path / name, steps=6, **settings)
    with contextlib.suppress(Cut):
        train("experts", tmp_path / "two", steps=6, sources=until(3), checkpoint_steps=1, **EIGHT)
    assert len(curve(tmp_path / "two")) == 3
    train("experts", tmp_path / "two", steps=6, **EIGHT)
    assert curve(tmp_path / "two") == curve(tmp_path / "one")
    saved = [pieces.Saved(listed(tmp_path / name / "checkpoints")[-1]).tensors for name in ("one", "half")]
    assert saved[0].keys() == saved[1].keys()
    for name, entry in saved[0].items():
        assert (entry["shape"], entry["dtype"]) == (saved[1][name]["shape"], saved[1][name]["dtype"])


@pytest.mark.slow
def test_compiled_it_learns_the_same(allowed, tmp_path):
    for compiled in (False, True):
        train("dense", tmp_path / str(compiled), steps=4, compile=compiled, **EIGHT)
    found = apart(curve(tmp_path / "True"), curve(tmp_path / "False"))
    print(found)
    assert found < 2e-3


RECIPE = """
corpus: {sources: [{name: code, path: "python:stdlib", extract: code}]}
tokenizer: {vocab_size: 4096}
pretrain: {precision: float8, minutes: null, steps: 10, model: {layers: 2, d_model: 64, context_length: 64}}
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may have float8")
def test_without_the_hardware_it_is_refused_before_any_work_and_can_be_planned(tmp_path):
    read = recipe.loads(RECIPE, "eight")
    with pytest.raises(Refused, match=r"^eight: pretrain: precision float8: .* found no GPU; expected bfloat16$"):
        recipe.run(read, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(Refused, match="expected bfloat16"):
        parallelize(network_of("dense"), Layout(), False, "float8")
    found = make(read, hardware.find("h100"), 1)
    assert found["precision"] == "float8"
    seconds = found["flops"] / found["steps"] / found["step_seconds"]
    assert found["mfu"] == pytest.approx(seconds / hardware.find("h100").peak["float8"])
    half = make(recipe.loads(RECIPE.replace("float8", "bfloat16")), hardware.find("h100"), 1)
    assert half["step_seconds"] / 2 < found["step_seconds"] < half["step_seconds"]
    assert found["memory"]["activations"] < half["memory"]["activations"]
    with pytest.raises(Refused, match="A100.*float8 is not known, or it has none: expected one of bfloat16"):
        make(read, hardware.find("a100"), 1)


@pytest.mark.parametrize("stage", ["sft", "reward", "finetune", "ppo"])
def test_stages_that_train_on_the_cpu_refuse_it(stage):
    kind = recipe.kind(stage)
    assert "expected bfloat16" in kind.here(kind.config.model_validate({"train": {"precision": "float8"}}))
    assert kind.here(kind.config()) is None
