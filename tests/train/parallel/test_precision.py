"""16 bits: float16 with a loss scale that all ranks share, bfloat16 over float32 weights in parts."""

import itertools
import json
import math

import pytest
import torch
from toys import MODELS, apart, curve, model_of, network_of, train

from lmlab.objective.language_model import RegularisedLanguageModel
from lmlab.progress import read_jsonl
from lmlab.train.checkpoint import listed
from lmlab.train.parallel import Layout, ParallelConfig, misfits
from lmlab.train.parallel.apply import parallelize

SINGLE, HALF = {"dtype": torch.float32}, {"dtype": torch.float32, "precision": "float16"}
ZERO = ParallelConfig(zero=3)
LAYOUTS = {
    "data": ParallelConfig(),
    "zero": ZERO,
    "tensor": ParallelConfig(tensor=2),
    "context": ParallelConfig(context=2),
}


@pytest.mark.parametrize("kind", MODELS)
def test_float16_learns_as_float32_does(tmp_path, kind):
    train(kind, tmp_path / "single", steps=10, **SINGLE)
    train(kind, tmp_path / "half", steps=10, **HALF)
    found = apart(curve(tmp_path / "half"), curve(tmp_path / "single"))
    print(kind, found)
    assert 0 < found < 5e-3


def test_without_a_scale_small_gradients_are_lost(tmp_path):
    """What the scale is for: a loss of a millionth of its size leaves nothing in float16, and all of it when it is scaled."""
    norms = {}
    known = RegularisedLanguageModel.loss_and_report

    def small(self, output, batch):
        terms, report = known(self, output, batch)
        return {"lm": terms["lm"] * 1e-6}, report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RegularisedLanguageModel, "loss_and_report", small)
        for name, settings in {"single": SINGLE, "unscaled": HALF | {"loss_scale": 1.0}, "scaled": HALF}.items():
            train("dense", tmp_path / name, steps=1, layer_norms_every=1, **settings)
            norms[name] = read_jsonl(tmp_path / name / "metrics.jsonl")[0]["grad_norm/blocks.0"]
    assert norms["scaled"] == pytest.approx(norms["single"], rel=1e-2)
    assert abs(norms["unscaled"] / norms["single"] - 1) > 0.05


def test_an_overflow_is_left_out_and_the_scale_follows(tmp_path):
    """A scale that is far too large: steps are skipped, the weights stay, until gradients fit. Then a kill and a resumption."""
    train("dense", tmp_path / "one", steps=30, loss_scale=2.0**40, **HALF)
    rows = read_jsonl(tmp_path / "one" / "metrics.jsonl")
    skipped = [row for row in rows if row.get("skipped")]
    assert 0 < len(skipped) < 25
    assert [row["step"] for row in skipped] == list(range(len(skipped)))  # none later
    assert [row["loss_scale"] for row in rows[: len(skipped) + 1]] == [2.0 ** (40 - n) for n in range(len(skipped) + 1)]
    assert rows[0]["loss"] == rows[3]["loss"]  # the third batch again, and the same weights
    assert "spike" not in rows[0]
    train("dense", tmp_path / "two", steps=8, loss_scale=2.0**40, **HALF)
    state = json.loads((listed(tmp_path / "two" / "checkpoints")[-1] / "state.json").read_text())
    assert state["loss_scale"]["scale"] == rows[8]["loss_scale"]
    train("dense", tmp_path / "two", steps=30, loss_scale=2.0**40, **HALF)
    assert curve(tmp_path / "two") == curve(tmp_path / "one")


def test_an_overflow_of_one_rank_is_left_out_by_all(ranks, tmp_path):
    """Gradients of rank 1 are infinite in the third step. In every layout all ranks leave it out, and agree on the scale."""
    train("dense", tmp_path / "one", steps=8, **HALF)
    wanted = read_jsonl(tmp_path / "one" / "metrics.jsonl")

    def work(world):
        known, found = RegularisedLanguageModel.loss_and_report, {}
        for name, config in LAYOUTS.items():
            passes = itertools.count()

            def spoilt(self, output, batch, passes=passes):
                terms, report = known(self, output, batch)
                if next(passes) == 4 and world.rank == 1:  # two micro-batches a step
                    terms["lm"].register_hook(lambda gradient: gradient * math.inf)
                return terms, report

            RegularisedLanguageModel.loss_and_report = spoilt  # this process ends with the work
            network = train("dense", tmp_path / name, config, world, steps=8, **HALF)
            found[name] = float(
                sum(
                    p.detach().to(torch.float64).sum()
                    for p in network.state_dict().values()
                    if not hasattr(p, "placements")
                )
            )
        return found

    first, second = ranks(work, 2)
    for name in LAYOUTS:
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        assert [row["step"] for row in rows if row.get("skipped")] == [2], name
        assert [row["loss_scale"] for row in rows] == [2.0**16] * 3 + [2.0**15] * 5
        for row, one in zip(rows[:3], wanted):
            assert row["loss"] == pytest.approx(one["loss"], rel=1e-2)
        assert all(math.isfinite(row["loss"]) for row in rows)
        assert rows[-1]["loss"] < rows[1]["loss"]
        if name in ("data", "context"):
            assert first[name] == second[name]  # copies of the weights stay copies


@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_over_weights_in_parts(ranks, tmp_path, kind):
    """Each rank's part of the weights is float32, what is gathered of them bfloat16; the curve is near one process's."""
    for name in ("float32", "bfloat16"):
        train(kind, tmp_path / name, steps=8, precision=name, **SINGLE)

    def work(world):
        seen = set()
        for zero in (2, 3):
            config = ParallelConfig(zero=zero)
            network = train(kind, tmp_path / f"zero-{zero}", config, world, steps=8, precision="bfloat16", **SINGLE)
            assert {p.dtype for p in network.parameters()} == {torch.float32}
        network = parallelize(network_of(kind, torch.float32), Layout(ZERO, world, model_of(kind)), False, "bfloat16")
        attention = network.blocks[0].attention
        attention.q.register_forward_hook(lambda module, given, out: seen.add(str(module.weight.dtype)))
        network(**{"tokens_BT": torch.zeros(1, 4, dtype=torch.long)} | encoder(kind))
        return sorted(seen)

    def encoder(kind):
        return {"encoder_tokens_BS": torch.zeros(1, 4, dtype=torch.long)} if kind == "encoder-decoder" else {}

    assert ranks(work, 2) == [["torch.bfloat16"]] * 2
    single, own = curve(tmp_path / "float32"), apart(curve(tmp_path / "bfloat16"), curve(tmp_path / "float32"))
    for zero in (2, 3):
        found = apart(curve(tmp_path / f"zero-{zero}"), single)
        print(kind, zero, found, own)
        assert found < 5e-3


def test_offloaded_parts_learn_the_same(ranks, tmp_path):
    """torch's offloading, on a CPU, where it moves nothing: that all else takes weights which lie there."""
    train("dense", tmp_path / "one", steps=4)

    def work(world):
        import torch.distributed.fsdp as fsdp

        torch.cuda.is_available = lambda: True  # this process ends with the work
        torch.accelerator.current_accelerator = lambda check_available=False: None  # optimizers need not believe it
        known, asked = fsdp.CPUOffloadPolicy, []

        def policy():
            asked.append(True)
            return known(pin_memory=False)

        fsdp.CPUOffloadPolicy = policy
        train("dense", tmp_path / "two", ParallelConfig(zero=3, cpu_offload=True), world, steps=4)
        return len(asked)

    assert ranks(work, 2) == [1, 1], "it was asked for"
    assert apart(curve(tmp_path / "two"), curve(tmp_path / "one")) < 1e-8


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to offload from")
def test_offloading_to_the_cpu_is_refused_where_all_is_there():
    assert "there is none here" in next(misfits(ParallelConfig(zero=3, cpu_offload=True), 2))
    assert "goes with zero 2 or 3" in next(misfits(ParallelConfig(zero=1, cpu_offload=True), 2))
    assert "goes with zero 2 or 3" in next(misfits(ParallelConfig(zero=3, cpu_offload=True), 1))
