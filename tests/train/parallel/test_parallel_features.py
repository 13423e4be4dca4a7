"""What the trainer does beside its steps, on two ranks: the same as one process, and decided alike on both."""

import dataclasses
import itertools
import json
import math
import os
import signal

import pytest
import torch
from toys import ROWS, apart, batch_of, curve, rows_of, source_of, train

from lmlab.errors import Failed, Stopped
from lmlab.objective.language_model import RegularisedLanguageModel
from lmlab.progress import read_jsonl
from lmlab.train.checkpoint import gathered, listed
from lmlab.train.measures import NoiseScale
from lmlab.train.parallel import Layout, ParallelConfig
from lmlab.train.pretrain_config import PretrainConfig
from lmlab.train.stability import SpikeConfig

ZERO, TENSOR = ParallelConfig(zero=3), ParallelConfig(tensor=2)
LAYOUTS = {"data": ParallelConfig(), "zero": ZERO, "tensor": TENSOR}


def on_two(ranks, out, layouts, **settings):
    """The toy on two ranks in each layout; the folders."""

    def work(world):
        for name, config in layouts.items():
            train("dense", out / name, config, world, **settings)

    ranks(work, 2)
    return {name: out / name for name in layouts}


def test_what_is_measured_and_kept_beside_training(ranks, tmp_path):
    """Norms by layer, the noise scale, a smaller gradient of the embedding, a running mean of the weights."""
    settings = {"steps": 6, "layer_norms_every": 2, "embedding_gradient": 0.3, "ema": 0.8, "checkpoint_steps": 3}
    noise = {"noise_scale_every": 1}
    train("dense", tmp_path / "one", **settings, **noise)
    wanted = read_jsonl(tmp_path / "one" / "metrics.jsonl")
    assert any("noise_scale" in row for row in wanted)
    apart_by_tokens = {"data": LAYOUTS["data"], "zero": ZERO, "context": ParallelConfig(context=2)}
    data = on_two(ranks, tmp_path, apart_by_tokens, **settings, **noise)
    cut = on_two(ranks, tmp_path, {"tensor": TENSOR}, **settings)
    for name, place in (data | cut).items():
        apart = {"seconds", "tokens_per_second", "input_wait", *(["noise_scale"] if name in cut else [])}
        for row, one in zip(read_jsonl(place / "metrics.jsonl"), wanted, strict=True):
            assert row.keys() | apart == one.keys() | apart
            for key in set(one) - apart:
                assert row[key] == pytest.approx(one[key], rel=1e-6), (name, key)


def test_the_mean_of_the_weights_is_one_process_s(ranks, tmp_path):
    one = train("dense", tmp_path / "one", steps=4, ema=0.8).state_dict()

    def work(world):
        found = {}
        for name, config in LAYOUTS.items():
            network = train("dense", tmp_path / name, config, world, steps=4, ema=0.8)
            found[name] = max(float((each - one[key]).abs().max()) for key, each in gathered(network).items())
        return found

    for found in ranks(work, 2):
        assert max(found.values()) < 1e-10, found


def poisoned(kind, share, steps=range(24, 26)):
    """Targets that nothing foretells, in the last rows of some steps, which are not rank 0's."""

    def source(step):
        whole = batch_of(kind, step)
        if step in steps:
            wrong = whole.targets_BT.clone()
            wrong[ROWS // 2 :] = (wrong[ROWS // 2 :] * 7 + 11) % 48
            whole = dataclasses.replace(whole, targets_BT=wrong)
        own = torch.arange(ROWS).chunk(share[1])[share[0]]
        return [rows_of(whole, own.numpy())]

    return source


def once_a_step(kind, share):
    return source_of(kind, share, micro_batches=1)


@pytest.mark.parametrize("policy", ["skip", "rewind", "lower"])
def test_a_spike_of_one_rank_s_rows_is_answered_by_all(ranks, tmp_path, policy):
    """Poison in rows that rank 0 never sees: the same steps are judged, left out and taken back as on one process."""
    spikes = SpikeConfig(policy=policy, window=8, back=4, skip=3, loss_deviations=5.0)
    settings = {"steps": 30, "sources": poisoned, "spikes": spikes}
    train("dense", tmp_path / "one", **settings)
    done = json.loads((tmp_path / "one" / "interventions.json").read_text())
    assert done
    assert done[0]["step"] in (24, 25)
    layouts = {"tensor": TENSOR} if policy == "rewind" else {"zero": ZERO}
    for place in on_two(ranks, tmp_path, layouts, **settings).values():
        same = json.loads((place / "interventions.json").read_text())
        for key in ("step", "from", "policy", "batches", "factor"):
            assert [each.get(key) for each in same] == [each.get(key) for each in done]
        assert apart(curve(place), curve(tmp_path / "one")) < 1e-8


def test_a_number_that_is_none_stops_all_before_the_weights_change(ranks, tmp_path):
    """The loss of rank 1's rows is no number in the third step. Each rank writes out its own rows."""

    def work(world):
        known, steps = RegularisedLanguageModel.loss_and_report, itertools.count()

        def spoilt(self, output, batch):
            terms, report = known(self, output, batch)
            return {"lm": terms["lm"] * (math.nan if next(steps) == 2 and world.rank == 1 else 1)}, report

        RegularisedLanguageModel.loss_and_report = spoilt  # this process ends with the work
        try:
            train("dense", tmp_path / "two", ZERO, world, steps=4, sources=once_a_step, checkpoint_steps=1)
        except Failed as error:
            return str(error)
        return "went on"

    for message in ranks(work, 2):
        assert "the weights are untouched" in message
    assert len(list((tmp_path / "two").glob("bad-batch-*.safetensors"))) == 2
    newest = json.loads((listed(tmp_path / "two" / "checkpoints")[-1] / "state.json").read_text())
    assert newest["step"] == 2


def test_a_signal_to_one_rank_stops_all_at_one_step_and_the_curve_goes_on(ranks, tmp_path):
    """SIGTERM to rank 1 in the fourth step."""
    train("dense", tmp_path / "one", steps=8)

    def work(world):
        def source(kind, share):
            known = source_of(kind, share)

            def signalled(step):
                if step == 3 and world.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return known(step)

            return signalled

        try:
            train("dense", tmp_path / "two", ZERO, world, steps=8, sources=source)
        except Stopped as stop:
            return str(stop)
        return "went on"

    assert all("stopped before step 4 and saved" in said for said in ranks(work, 2))
    ranks(lambda world: train("dense", tmp_path / "two", ZERO, world, steps=8) and None, 2)
    assert apart(curve(tmp_path / "two"), curve(tmp_path / "one")) < 1e-8


def test_a_lone_process_goes_on_bit_for_bit_and_gives_the_signal_back(tmp_path):
    def source(kind, share):
        known = source_of(kind, share)

        def signalled(step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return known(step)

        return signalled

    before = signal.getsignal(signal.SIGTERM)
    train("dense", tmp_path / "whole", steps=8)
    with pytest.raises(Stopped, match="before step 4"):
        train("dense", tmp_path / "cut", steps=8, sources=source)
    assert signal.getsignal(signal.SIGTERM) == before
    train("dense", tmp_path / "cut", steps=8)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")


def test_the_noise_of_a_cut_model_is_refused():
    for degree in ("tensor", "expert"):
        with pytest.raises(ValueError, match="noise_scale_every goes with data parallelism"):
            PretrainConfig.model_validate({"noise_scale_every": 2, "micro_batches": 2, "parallel": {degree: 2}})
    layout = Layout()
    layout.tensor = 2
    with pytest.raises(ValueError, match="noise_scale_every goes with data parallelism"):
        NoiseScale([], layout)
