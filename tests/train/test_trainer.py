"""Cutting a step into micro-batches changes nothing; neither does being killed and resumed."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import Failed
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.language_model import LanguageModel
from lmlab.progress import Metrics, read_jsonl
from lmlab.run import Context, write_json
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.schedule import ScheduleConfig, rate
from lmlab.train.step import accumulate, make_forward
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit

CONFIG = ModelConfig(layers=1, d_model=16, heads=2, vocab_size=20, context_length=12, dropout=0.1)


def batch_of(step: int, rows: int = 6, length: int = 10) -> Batch:
    """Rows that carry unequal numbers of trained tokens."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 20, (rows, length + 1), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < torch.rand(rows, 1, generator=generator)
    mask[0, 0] = True
    return Batch(ids[:, :-1], ids[:, 1:], mask)


def cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    parts = zip(*(tensor.split(sizes) for tensor in (batch.tokens_BT, batch.targets_BT, batch.mask_BT)))
    return [Batch(*part) for part in parts]


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_micro_batches_of_any_size_give_the_gradient_of_the_whole(sizes: list[int], seed: int) -> None:
    network = Transformer(CONFIG).initialise(seed).eval()
    objective = LanguageModel()
    whole = batch_of(seed, sum(sizes))
    found = []
    for batches in ([whole], cut(whole, sizes)):
        network.zero_grad()
        means = accumulate(make_forward(network, objective, False), objective, batches, "float32")
        found.append((means, [p.grad.clone() for p in network.parameters() if p.grad is not None]))
    (one, gradients), (many, others) = found
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-5)
    logits = network(whole.tokens_BT).logits()
    textbook = torch.nn.functional.cross_entropy(logits[whole.mask_BT], whole.targets_BT[whole.mask_BT])
    assert one["loss"] == pytest.approx(float(textbook.detach()), rel=1e-5)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


class Killed(Exception):
    """Stands for the process's end: nothing after it runs."""


class Source:
    """Two micro-batches a step; ends the process before `last`."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last

    def __call__(self, step: int) -> list[Batch]:
        if step == self.last:
            raise Killed
        return cut(batch_of(step), [2, 4])


def context_at(out: Path) -> Context:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "state.json", {"fingerprint": "x", "seconds": 0.0})
    return Context("toy", "toy", None, {}, out, 3, Metrics(out))


def settings_of(optimizer: str = "adamw", **more) -> TrainConfig:
    return TrainConfig(
        steps=12,
        optimizer=OptimizerConfig(name=optimizer, learning_rate=0.01),  # type: ignore[arg-type]
        checkpoint_steps=4,
        **more,
    )


def trained(out: Path, config: TrainConfig, last: int | None = None) -> Transformer:
    network = Transformer(CONFIG).initialise(0)
    fit(network, LanguageModel(), Source(last), config, context_at(out))
    return network


def assert_same(first: Transformer, second: Transformer) -> None:
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("last", [2, 4, 7, 11])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path, optimizer: str, last: int) -> None:
    """With dropout: what it draws is a function of the step too."""
    config = settings_of(optimizer)
    whole = trained(tmp_path / "whole", config)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", config, last)
    resumed = trained(tmp_path / "cut", config)
    assert_same(whole, resumed)
    steps = [(row["step"], row["loss"]) for row in read_jsonl(tmp_path / "cut" / "metrics.jsonl")]
    assert steps == [(row["step"], row["loss"]) for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl")]
    assert len(steps) == 12


def test_a_loss_that_is_no_number_stops_before_the_weights_change(tmp_path: Path) -> None:
    network = Transformer(CONFIG).initialise(0)

    class Poison(LanguageModel):
        def loss(self, output, batch):  # type: ignore[no-untyped-def]
            return {"lm": super().loss(output, batch)["lm"] * math.nan}

    with pytest.raises(Failed, match=r"the loss is nan at step 0 \(its batch is in .*\); the weights are untouched"):
        fit(network, Poison(), Source(), settings_of(), context_at(tmp_path))
    assert_same(network, Transformer(CONFIG).initialise(0))


def test_training_learns(tmp_path: Path) -> None:
    """One batch again and again is learnt by heart."""
    network = Transformer(CONFIG.model_copy(update={"dropout": 0.0})).initialise(0)
    whole = batch_of(0)
    config = TrainConfig(steps=150, optimizer=OptimizerConfig(learning_rate=0.02), schedule=ScheduleConfig(warmup=5))
    fit(network, LanguageModel(), lambda step: [whole], config, context_at(tmp_path))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(20), abs=0.2)
    assert rows[-1]["loss"] < 0.3


@given(
    name=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup=st.sampled_from([0.0, 0.1, 5.0]),
    final=st.floats(0, 1),
    steps=st.integers(1, 200),
)
def test_schedules_rise_then_fall_to_their_end(name: str, warmup: float, final: float, steps: int) -> None:
    config = ScheduleConfig(name=name, warmup=warmup, final=final)  # type: ignore[arg-type]
    rates = [rate(config, step, steps) for step in range(steps)]
    assert all(0 <= each <= 1 + 1e-9 for each in rates)
    peak = rates.index(max(rates))
    assert all(a <= b + 1e-9 for a, b in zip(rates[:peak], rates[1 : peak + 1]))
    assert all(a >= b - 1e-9 for a, b in zip(rates[peak:], rates[peak + 1 :]))
    if name != "constant" and steps > 5 + warmup:
        assert rates[-1] == pytest.approx(final, abs=1e-6)
