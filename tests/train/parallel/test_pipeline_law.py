"""The law of test_law.py for pipelines: alone, over data, over tensor, and over both."""

import json
import shutil

import pytest
import torch
from test_law import hold_curves, hold_gradients, hold_law, in_both_types
from toys import DEEP, MODELS, TRAINED, apart, curve, train

from lmlab.progress import read_jsonl
from lmlab.train.checkpoint import gathered
from lmlab.train.parallel import Layout, ParallelConfig
from lmlab.train.stability import SpikeConfig

GPIPE, ALTERNATING = (ParallelConfig(pipeline=2, schedule=name) for name in ("gpipe", "1f1b"))
INTERLEAVED = ParallelConfig(pipeline=2, schedule="interleaved-1f1b")


def changed(config: ParallelConfig, **settings) -> ParallelConfig:
    return config.model_copy(update=settings)


@pytest.mark.parametrize("kind", MODELS)
def test_two_stages_have_one_process_s_gradients(ranks, kind):
    hold_gradients(ranks, kind, torch.float32, [GPIPE, ALTERNATING], 2, 1e-5)


@pytest.mark.parametrize("kind", ["deep-experts", "biased"])
def test_interleaved_stages_have_one_process_s_gradients(ranks, kind):
    """Routers' statistics of four stages; tables of relative positions that several stages use, a stage with both stacks."""
    hold_gradients(ranks, kind, torch.float64, [INTERLEAVED, ALTERNATING], 2, 1e-8)


@pytest.mark.parametrize("kind", ["deep-experts", "biased"])
def test_interleaved_stages_in_parts_have_one_process_s_gradients(ranks, kind):
    """Two stages a rank of one network, by two ranks that each keep a part of its gradients, and of its weights."""
    layouts = [changed(INTERLEAVED, zero=stage) for stage in (2, 3)]
    hold_gradients(ranks, kind, torch.float64, layouts, 4, 1e-8, micro_batches=3)


def test_two_stages_learn_what_one_process_does(ranks, tmp_path):
    hold_curves(ranks, tmp_path, "dense", [ALTERNATING], 2, 1e-8, steps=5)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("kind", ["experts", "encoder-decoder"])
def test_micro_batches_that_are_ragged_or_too_few(ranks, kind, micro_batches):
    """Three of 3, 3 and 2 rows; one, where the schedule wants two. What is filled up counts for nothing."""
    layouts = [GPIPE, ALTERNATING] if kind == "experts" else [ALTERNATING, INTERLEAVED]
    hold_gradients(ranks, kind, torch.float64, layouts, 2, 1e-8, micro_batches)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [*MODELS, "deep-dense", "deep-experts", "biased"])
@in_both_types
def test_every_schedule(ranks, tmp_path, kind, dtype):
    layouts = [GPIPE, ALTERNATING] if kind in ("dense", "experts") else [GPIPE, ALTERNATING, INTERLEAVED]
    hold_law(ranks, tmp_path, kind, layouts, 2, dtype)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_pipeline_by_data(ranks, tmp_path, kind, dtype):
    """Four ranks, two by two, with every stage of ZeRO."""
    layouts = [changed(GPIPE if stage == 2 else ALTERNATING, zero=stage) for stage in (0, 1, 2, 3)]
    layouts += [changed(INTERLEAVED, zero=1)] if kind == "encoder-decoder" else []
    hold_law(ranks, tmp_path, kind, layouts, 4, dtype)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float64, marks=pytest.mark.slow), pytest.param(torch.float32, marks=pytest.mark.long)],
    ids=["float64", "float32"],
)
def test_interleaved_by_data(ranks, tmp_path, kind, dtype):
    """Every stage of ZeRO that leaves something in parts; experts divided too; blocks gathered to be computed again."""
    layouts = [changed(INTERLEAVED, zero=stage) for stage in (1, 2, 3)]
    more = {"expert": 2} if kind == "deep-experts" else {"recompute": "full"}
    hold_law(ranks, tmp_path, kind, [*layouts, changed(INTERLEAVED, zero=3, **more)], 4, dtype)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["deep-dense", "deep-experts"])
@in_both_types
def test_interleaved_by_data_by_tensor(ranks, tmp_path, kind, dtype):
    """Eight ranks."""
    hold_law(ranks, tmp_path, kind, [changed(INTERLEAVED, tensor=2, zero=3)], 8, dtype)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_pipeline_by_tensor(ranks, tmp_path, kind, dtype):
    layouts = [changed(ALTERNATING, tensor=2), changed(GPIPE, tensor=2, sequence=False)]
    layouts += [changed(INTERLEAVED, tensor=2)] if kind == "encoder-decoder" else []
    hold_law(ranks, tmp_path, kind, layouts, 4, dtype)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_pipeline_by_data_by_tensor(ranks, tmp_path, kind, dtype):
    """Eight ranks."""
    for stage in (1, 3):
        layouts = [changed(ALTERNATING, tensor=2, zero=stage)]
        hold_law(ranks, tmp_path, kind, layouts, 8, dtype)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", TRAINED)
def test_every_objective(ranks, tmp_path, kind):
    """Batches that grow, so that micro-batches are ragged and their shapes change."""
    layouts = [ALTERNATING] if kind == "blanks" else [ALTERNATING, INTERLEAVED]
    hold_curves(ranks, tmp_path, kind, layouts, 2, 1e-8, steps=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", ["adafactor", "lion", "muon"])
def test_every_optimizer(ranks, tmp_path, optimizer):
    layouts = [changed(ALTERNATING, zero=stage) for stage in (0, 1, 3)]
    hold_curves(ranks, tmp_path, "dense", layouts, 4, 1e-8, optimizer=optimizer, steps=6, ema=0.9)
    layouts = [changed(INTERLEAVED, zero=3)]
    hold_curves(ranks, tmp_path / "deep", "deep-dense", layouts, 4, 1e-8, optimizer=optimizer, steps=6, ema=0.9)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", MODELS)
def test_recomputed_activations(ranks, tmp_path, kind):
    layouts = [changed(ALTERNATING, recompute=what) for what in ("full", "selective")]
    hold_curves(ranks, tmp_path, kind, layouts, 2, 1e-8, steps=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_in_another_layout(ranks, tmp_path, optimizer):
    """Begun on two stages and gone on with on one process; begun so and gone on with on four ranks, two stages by two of
    the optimizer's state."""
    train("dense", tmp_path / "one", steps=6, optimizer=optimizer)
    settings = {"optimizer": optimizer, "checkpoint_steps": 2, "ema": 0.9}
    first, second, four = tmp_path / "two-then-one", tmp_path / "two-then-four", changed(ALTERNATING, zero=1)
    ranks(lambda world: train("dense", first, ALTERNATING, world, steps=3, **settings) and None, 2)
    shutil.copytree(first, second)
    train("dense", first, steps=6, **settings)
    ranks(lambda world: train("dense", second, four, world, steps=6, **settings) and None, 4)
    for out in (first, second):
        assert apart(curve(out), curve(tmp_path / "one")) < 1e-8


def test_the_whole_network_is_given_back(ranks, tmp_path):
    """All weights under their own names, the running mean of them, on every rank."""

    def work(world):
        network = train("dense", tmp_path / "two", ALTERNATING, world, steps=2, ema=0.8)
        layout = Layout(ALTERNATING, world)
        return {name: tensor.flatten().tolist() for name, tensor in gathered(network, layout).items()}

    first, second = ranks(work, 2)
    assert first == second
    one = train("dense", tmp_path / "one", steps=2, ema=0.8).state_dict()
    assert first.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(torch.tensor(first[name]).double(), tensor.flatten(), atol=1e-6, rtol=0)


def test_what_is_measured_beside_training(ranks, tmp_path):
    """Norms by layer over all stages, the gradient's norm with a tied embedding counted once, a smaller gradient of it."""
    settings = {"steps": 4, "layer_norms_every": 2, "embedding_gradient": 0.3}
    for kind in ("dense", "experts"):
        train(kind, tmp_path / kind / "one", **settings)

    def work(world):
        for kind in ("dense", "experts"):
            train(kind, tmp_path / kind / "two", ALTERNATING, world, **settings)

    ranks(work, 2)
    for kind in ("dense", "experts"):
        found, wanted = (read_jsonl(tmp_path / kind / name / "metrics.jsonl") for name in ("two", "one"))
        for row, one in zip(found, wanted, strict=True):
            assert row.keys() == one.keys()
            for key in set(one) - {"seconds", "tokens_per_second", "input_wait"}:
                assert row[key] == pytest.approx(one[key], rel=1e-6), key


@pytest.mark.slow
def test_a_spike_is_answered_by_all_stages(ranks, tmp_path):
    from test_parallel_features import poisoned

    spikes = SpikeConfig(policy="rewind", window=8, back=4, skip=3, loss_deviations=5.0)
    settings = {"steps": 30, "sources": poisoned, "spikes": spikes}
    train("dense", tmp_path / "one", **settings)
    done = json.loads((tmp_path / "one" / "interventions.json").read_text())
    ranks(lambda world: train("dense", tmp_path / "two", ALTERNATING, world, **settings) and None, 2)
    same = json.loads((tmp_path / "two" / "interventions.json").read_text())
    assert [each["step"] for each in same] == [each["step"] for each in done] != []
    assert apart(curve(tmp_path / "two"), curve(tmp_path / "one")) < 1e-8
