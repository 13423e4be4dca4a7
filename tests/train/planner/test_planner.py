"""Plans: layouts that share the work, memory that follows rows and depth, times by hand, refusals with a way out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lmlab import recipe
from lmlab.cli import app
from lmlab.device import hardware
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.count import expert_parameters, flops_in_blocks
from lmlab.model.settings import MoEConfig
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel.schedules import bubble_share
from lmlab.train.planner import choose
from lmlab.train.planner.choose import ROOM, Work, consider
from lmlab.train.planner.memory import Degrees, Memory, cut, memory_of, states
from lmlab.train.planner.plan import describe, make
from lmlab.train.planner.time import peak_of, ring, step_of
from lmlab.train.planner.traced import _traced, activations

RECIPE = """
corpus: {sources: [{name: code, path: "python:stdlib", extract: code}]}
tokenizer: {vocab_size: 32000}
pretrain:
  minutes: null
  steps: 1000
  batch_tokens: 65536
  optimizer: {name: adamw, learning_rate: 3e-4}
  model: {layers: 24, d_model: 2048, heads: 16, d_ff: 5504, context_length: 1024, tie_embeddings: false}
"""
SMALL = ModelConfig(layers=5, d_model=64, heads=4, vocab_size=256, context_length=128)
H100 = hardware.find("h100")


def test_depth_and_rows_follow_from_few():
    direct = _traced(SMALL, rows=6, length=128, precision="float32", recompute="none", kernel="sdpa")
    derived = activations(SMALL, 6, 128, "float32", "none", "sdpa").total
    for name in direct._fields:
        assert getattr(derived, name) == pytest.approx(getattr(direct, name), rel=0.02), name
    many = _traced(SMALL, rows=24, length=128, precision="float32", recompute="none", kernel="sdpa")
    derived = activations(SMALL, 24, 128, "float32", "none", "sdpa").total
    assert derived.forward == pytest.approx(many.forward, rel=0.02)


def test_what_is_computed_again_is_not_held():
    """Of each further block: all of its activations; all but its attention's; its input alone (2205.05198)."""
    held = {r: activations(SMALL, 6, 128, "float32", r, "math").block.forward for r in ("none", "selective", "full")}
    stream, scores = 4 * 6 * 128 * 64, 4 * 6 * 4 * 128 * 128
    assert held["full"] == pytest.approx(stream, rel=0.1)
    assert held["none"] - held["selective"] > scores and held["selective"] > 3 * stream


def test_states_by_optimizer():
    numbers = {
        name: states(OptimizerConfig(name=name), 100, 10) for name in ("adamw", "adam", "lion", "muon", "adafactor")
    }
    assert numbers == {"adamw": 220, "adam": 220, "lion": 110, "muon": 120, "adafactor": 110}
    assert states(OptimizerConfig(name="adafactor", betas=(0.0, 0.95)), 100, 10) == 0


@given(st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 2, 3]))
@settings(deadline=None, max_examples=12)
def test_a_stage_of_zero_never_needs_more_between_steps(data, zero):
    less = memory_of(SMALL, Degrees(data=data, zero=zero), OptimizerConfig(), 2, 128, "float32")
    none = memory_of(SMALL, Degrees(data=data), OptimizerConfig(), 2, 128, "float32")
    assert less.weights + less.gradients + less.optimizer <= none.weights + none.gradients + none.optimizer
    assert less.total >= less.weights + less.optimizer


def test_a_cut_shape_has_its_share():
    whole, half = SMALL.parameters(), cut(SMALL, 2).parameters()
    assert half["attention"] * 2 == whole["attention"]
    assert half["feed_forward"] * 2 == whole["feed_forward"]
    assert half["norms"] == whole["norms"]


def test_times_by_hand():
    assert ring(800.0, 4, 100.0) == 6.0
    one = step_of(SMALL, Degrees(), H100, flops=989.4e12, rows=1, length=128, precision="bfloat16", utilisation=0.5)
    assert one.seconds == one.compute == pytest.approx(2.0)
    two = step_of(
        SMALL, Degrees(data=2), H100, flops=989.4e12, rows=1, length=128, precision="bfloat16", utilisation=0.5
    )
    gradients = 4 * SMALL.parameters()["total"]
    assert two.compute == pytest.approx(1.0)
    assert two.communication == pytest.approx(2 * gradients / 2 / 450e9)
    again = step_of(
        SMALL,
        Degrees(recompute="full"),
        H100,
        flops=989.4e12,
        rows=1,
        length=128,
        precision="bfloat16",
        utilisation=0.5,
    )
    assert again.seconds == pytest.approx(2.0 * 4 / 3)


def test_float8s_peak_is_that_of_blocks_matrices():
    """By hand: their share of the FLOPs at its peak, the head and attention at bfloat16's."""
    whole, blocks = SMALL.flops(0, 100, 128), flops_in_blocks(SMALL, 0, 100)
    head, scores = 6 * 64 * 256, 12 * 5 * 64 * 128
    assert whole == blocks + 100 * (head + scores)
    seconds = blocks / 1978.9e12 + 100 * (head + scores) / 989.4e12
    assert peak_of(SMALL, 128, H100, "float8") == pytest.approx(whole / seconds)
    assert peak_of(SMALL, 128, H100, "bfloat16") == H100.peak["bfloat16"]
    both = ModelConfig(**SMALL.model_dump() | {"architecture": "encoder-decoder"})
    assert H100.peak["bfloat16"] < peak_of(both, 128, H100, "float8") < H100.peak["float8"]


def test_activations_of_float8_are_smaller_than_those_of_bfloat16():
    """Inputs of matrices are kept in one byte instead of two, and no copy of a weight is. What goes into `out` is kept by
    attention in two anyway. A scale is four bytes."""
    sizes = {"layers": 5, "d_model": 64, "heads": 4, "vocab_size": 256, "context_length": 128, "d_ff": 192}
    shape, rows = ModelConfig(**sizes), 8
    eight, half = (activations(shape, rows, 128, name, "none", "sdpa").block for name in ("float8", "bfloat16"))
    tokens, weights = rows * 128, 4 * 64 * 64 + 3 * 64 * 192
    inputs = 5 * 64 + 192 - 64  # of q, k, v, gate, up; of down; of out
    assert half.forward - eight.forward == tokens * inputs + 2 * weights - 7 * 4


def test_messages_within_blocks_by_hand():
    given = {"flops": 1e12, "rows": 2, "length": 128, "precision": "bfloat16", "utilisation": 0.5}
    keys = 2 * 2 * 4 * 16 * 256  # of 256 tokens, in 16 bits
    gradients = 2 * ring(4 * SMALL.parameters()["total"], 4, H100.near)
    gathered = step_of(SMALL, Degrees(context=4), H100, **given)
    assert gathered.communication == pytest.approx(5 * 2 * ring(keys, 4, H100.near) + gradients)
    exchanged = step_of(SMALL, Degrees(context=4, context_method="ulysses"), H100, **given)
    assert exchanged.communication == pytest.approx(5 * 2 * ring(2 * keys / 4, 4, H100.near) + gradients)
    experts = ModelConfig(**{**SMALL.model_dump(), "moe": MoEConfig(experts=8, top_k=2)})
    rows = (4 + 2) * 2 * 64 * 256
    numbers = experts.parameters()["total"], expert_parameters(experts)
    sums = 2 * (ring(4 * (numbers[0] - numbers[1]), 8, H100.near) + ring(4 * numbers[1] / 4, 2, H100.near))
    sent = step_of(experts, Degrees(data=8, expert=4), H100, **given)
    assert sent.communication == pytest.approx(5 * 2 * ring(rows, 4, H100.near) + sums)
    deep = ModelConfig(**{**SMALL.model_dump(), "layers": 8})
    waits = step_of(deep, Degrees(pipeline=2, micro_batches=4, stages_per_rank=2), H100, **given)
    assert waits.shares()["bubble"] == pytest.approx(bubble_share(2, 4, 2))


def best(shape: ModelConfig, rows: int, length: int, ranks: int, memory: float, precision: str = "bfloat16"):
    work = Work(shape, rows, length, rows * shape.flops(0, length, length), precision, OptimizerConfig())
    device = hardware.Device("some", H100.peak, memory * 2.0**30, H100.near, H100.far)
    return consider(work, device, ranks, 0.5)


def test_rows_are_cut_where_there_are_fewer_than_devices():
    shape = ModelConfig(layers=4, d_model=512, heads=8, vocab_size=1024, context_length=4096)
    found = best(shape, 2, 4096, 8, 80)
    assert found[0].degrees.context * found[0].degrees.tensor >= 4 and found[0].fits
    assert {each.degrees.context for each in found} >= {1, 4}


def test_experts_are_divided_where_they_do_not_fit():
    shape = ModelConfig(
        layers=4,
        d_model=512,
        heads=8,
        kv_heads=1,
        vocab_size=1024,
        context_length=512,
        moe=MoEConfig(experts=16, top_k=1),
    )
    found = best(shape, 64, 512, 8, 0.9)
    alone = [each for each in found if each.degrees.expert == 1 and each.degrees.zero == 0]
    assert not any(each.fits for each in alone if each.degrees.tensor == 1)
    divided = [each for each in found if each.degrees.expert == 8]
    assert any(each.fits for each in divided)
    assert min(each.memory.weights for each in divided) < min(each.memory.weights for each in alone)


def test_interleaved_stages_wait_less_and_say_so():
    found = best(ModelConfig(layers=8, d_model=256, heads=8, vocab_size=1024, context_length=256), 16, 256, 4, 80)
    by = {(e.degrees.pipeline, e.degrees.stages_per_rank, e.degrees.data): e for e in found if e.degrees.zero == 0}
    plain, interleaved = by[4, 1, 1], by[4, 2, 1]
    assert interleaved.degrees.settings()["parallel.schedule"] == "interleaved-1f1b"
    assert interleaved.step.shares()["bubble"] < plain.step.shares()["bubble"]


def test_what_is_chosen_fits_and_is_the_fastest():
    shape = ModelConfig(layers=12, d_model=1024, heads=16, vocab_size=8192, context_length=512)
    work = Work(shape, 64, 512, 64 * shape.flops(0, 512, 512), "bfloat16", OptimizerConfig())
    small = hardware.Device("small", H100.peak, 3 * 2.0**30, H100.near, H100.far)
    found = consider(work, small, 8, 0.5)
    best = found[0]
    assert best.fits and best.memory.total <= ROOM * small.memory
    for each in found:
        assert each.degrees.ranks == 8
        assert each.rows * each.degrees.micro_batches * each.degrees.data == work.rows
        assert not each.fits or each.step.seconds >= 0.999 * best.step.seconds


def test_the_smallest_that_does_not_fit_is_found_without_counting_all(monkeypatch):
    shape = ModelConfig(layers=4, d_model=128, heads=4, vocab_size=512, context_length=128)
    quick = best(shape, 4, 128, 2, 1e-4)
    assert quick[0].traced and not any(each.fits for each in quick)
    assert any(not each.traced for each in quick)
    for each in quick:
        if not each.traced:
            more = {"rows": each.rows, "length": 128, "precision": "bfloat16", "kernel": "sdpa"}
            assert each.memory.total <= memory_of(shape, each.degrees, OptimizerConfig(), **more).total
    nothing = Memory(0, 0, 0, 0, 0, 0, 0, 0)
    monkeypatch.setattr(choose, "least_of", lambda *given, **named: nothing)
    every = best(shape, 4, 128, 2, 1e-4)
    assert all(each.traced for each in every) and every[0].memory == quick[0].memory


def test_a_plan_says_everything(tmp_path):
    found = make(recipe.loads(RECIPE), H100, 8)
    assert found["steps"] == 1000 and found["tokens"] == 65_536_000
    assert found["tokens_per_second"] * found["step_seconds"] == pytest.approx(65_536)
    assert found["flops"] == pytest.approx(found["mfu"] * 8 * H100.peak["bfloat16"] * found["seconds"])
    assert found["memory"]["total"] < found["memory_available"]
    layout = found["layout"]
    assert layout["pipeline"] * layout["data"] * layout["context"] * layout["tensor"] == 8 and layout["why"]
    # What it says to set is taken by the recipe, and trains on so many processes.
    changes = [f"{name}={value}" for name, value in layout["settings"].items()]
    again = recipe.loads(RECIPE, overrides=changes)
    parallel = next(iter(again.arms.values()))[-1].config.parallel
    assert parallel.tensor == layout["tensor"] and parallel.zero == layout["zero"]
    text = describe(found)
    for word in ("memory", "layout", "tokens a second", "MFU", "days" if found["seconds"] > 86_400 else "time"):
        assert word in text


def test_the_dial_chooses_a_width_for_the_hardware():
    demo, slow = recipe.load("demo"), hardware.Device("slow", {"bfloat16": 1e12}, 2.0**34, 1e9, 1e9)
    assert make(demo, H100, 8)["parameters"]["total"] > 10 * make(demo, slow, 1)["parameters"]["total"]


@pytest.mark.parametrize(
    ("device", "ranks", "said"),
    [
        (hardware.Device("tiny", H100.peak, 2.0**28, 1e9, 1e9), 8, "the smallest layout needs"),
        (H100, 29, "cannot be shared among so many"),
        (H100, 0, "expected 1 or more"),
    ],
)
def test_refusals(device, ranks, said):
    with pytest.raises(Refused, match=said):
        make(recipe.loads(RECIPE, overrides=["pretrain.batch_tokens=8192"]), device, ranks)


def test_an_unknown_gpu_and_a_recipe_without_pretraining_are_refused():
    with pytest.raises(Refused, match="did you mean 'h100'"):
        hardware.find("h10")
    with pytest.raises(Refused, match="no stage of kind pretrain"):
        make(recipe.loads('corpus: {sources: [{name: c, path: "python:stdlib", extract: code}]}'), H100, 1)


def test_the_verb(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text(RECIPE)
    found = CliRunner().invoke(app, ["plan", str(path), "--gpus", "8", "--gpu", "h100", "--json"])
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert said["devices"] == 8 and set(said["memory"]) >= {"weights", "gradients", "optimizer", "activations", "total"}


def test_a_layout_for_more_processes_is_planned_here_and_refused_only_where_it_would_run(tmp_path):
    path, out = tmp_path / "big.yaml", tmp_path / "run"
    path.write_text(RECIPE)
    divided = ["pretrain.parallel.tensor=2", "pretrain.parallel.data=4"]
    plan = CliRunner().invoke(app, ["plan", str(path), *divided, "--gpus", "8", "--gpu", "h100", "--json"])
    assert plan.exit_code == 0, plan.output
    run = CliRunner().invoke(app, ["run", str(path), *divided, "--out", str(out)])
    assert run.exit_code != 0 and "data 4 x tensor 2 makes 8 processes, but 1 run" in str(run.exception)
    assert not (out / "corpus").exists()
    never = CliRunner().invoke(app, ["plan", str(path), "pretrain.parallel.tensor=3", "--gpus", "6", "--gpu", "h100"])
    assert never.exit_code != 0 and "tensor 3" in str(never.exception)  # sixteen heads among three, on any machine
