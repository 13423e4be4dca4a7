"""Spikes: what counts as one, and that each policy brings a poisoned run back to the clean one's loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lmlab.errors import Failed
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.language_model import LanguageModel
from lmlab.progress import Metrics, read_jsonl
from lmlab.run import Context, write_json
from lmlab.train.measures import NoiseScale, layer_norms
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.schedule import ScheduleConfig
from lmlab.train.stability import Detector, Journal, SpikeConfig
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit

CONFIG = ModelConfig(layers=1, d_model=16, heads=2, vocab_size=16, context_length=16)
STEPS, POISONED = 140, range(90, 93)


def batch_of(step: int, rows: int = 8) -> Batch:
    """Counting upwards from anywhere: learnt in a hundred steps."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, 16, (rows, 1), generator=generator)
    ids = (start + torch.arange(17)) % 16
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(rows, 16, dtype=torch.bool))


class Source:
    """Clean batches, but for some poisoned ones: text that never occurs otherwise."""

    def __init__(self, poisoned: Any = (), kill_at: int | None = None) -> None:
        self.poisoned, self.kill_at, self.seen = poisoned, kill_at, []

    def __call__(self, step: int) -> list[Batch]:
        if len(self.seen) == self.kill_at:
            raise KeyboardInterrupt
        self.seen.append(step)
        batch = batch_of(step)
        if step in self.poisoned:
            batch.targets_BT = torch.full_like(batch.targets_BT, 3)
        return [batch]


def train(out: Path, source: Source, *, clip: float = 0.0, steps: int = STEPS, **spikes: Any) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    write_json(out / "state.json", {"fingerprint": "x", "seconds": 0.0})
    context = Context("toy", "toy", None, {}, out, 0, Metrics(out))
    config = TrainConfig(
        steps=steps, clip=clip, optimizer=OptimizerConfig(name="adamw", learning_rate=0.02, weight_decay=0.0),
        schedule=ScheduleConfig(name="constant", warmup=5), spikes=SpikeConfig(**{"window": 16, "back": 20, **spikes}),
    )  # fmt: skip
    fit(Transformer(CONFIG).initialise(0), LanguageModel(), source, config, context)
    return read_jsonl(out / "metrics.jsonl")


def after(rows: list[dict[str, Any]]) -> float:
    """The mean loss of the last ten steps."""
    last = [row["loss"] for row in rows[-10:]]
    return sum(last) / len(last)


def test_poison_does_harm_and_each_policy_undoes_it(tmp_path: Path) -> None:
    clean = train(tmp_path / "clean", Source())
    none = train(tmp_path / "none", Source(POISONED))
    assert max(row["loss"] for row in none) > 3 * max(row["loss"] for row in clean[60:])
    assert any("spike" in row for row in none), "marked in the log"
    for policy in ("skip", "rewind", "lower"):
        source = Source(POISONED)
        rows = train(tmp_path / policy, source, policy=policy, skip=30)
        assert [row["step"] for row in rows] == list(range(STEPS)), "each step once"
        assert after(rows) < 1.2 * after(clean) + 0.02, policy
        assert (tmp_path / policy / "interventions.json").exists()


def test_rewinding_skips_the_batches_and_says_which(tmp_path: Path) -> None:
    source = Source(POISONED)
    train(tmp_path / "r", source, policy="rewind", skip=30)
    (entry,) = json.loads((tmp_path / "r" / "interventions.json").read_text())
    assert entry["step"] == 90 and entry["from"] == 70 and entry["batches"] == [70, 99]
    at = source.seen.index(90)
    assert source.seen[: at + 1] == list(range(91)) and source.seen[at + 1 :] == list(range(100, 170))


@pytest.mark.parametrize("kill_at", [85, 91])
@pytest.mark.parametrize("policy", ["skip", "rewind", "lower"])
def test_killed_anywhere_an_intervention_is_the_same(tmp_path: Path, policy: str, kill_at: int) -> None:
    whole = train(tmp_path / "whole", Source(POISONED), policy=policy, skip=30)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Source(POISONED, kill_at), policy=policy, skip=30)
    resumed = train(tmp_path / "cut", Source(POISONED), policy=policy, skip=30)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    notes = [json.loads((tmp_path / name / "interventions.json").read_text()) for name in ("whole", "cut")]
    assert notes[0] == notes[1]


def test_lowering_lowers_the_rate_from_there_on(tmp_path: Path) -> None:
    rows = train(tmp_path / "l", Source(POISONED), policy="lower", factor=0.5)
    (entry, *_) = json.loads((tmp_path / "l" / "interventions.json").read_text())
    assert rows[entry["from"]]["lr"] == pytest.approx(0.5 * rows[entry["from"] - 1]["lr"])


@pytest.mark.parametrize("policy", ["skip", "rewind", "lower"])
def test_what_is_no_number_is_written_out_and_every_policy_gets_past_it(tmp_path: Path, policy: Any) -> None:
    """A batch that makes no number whatever the weights are."""

    class Broken(LanguageModel):
        def loss(self, output: Any, batch: Batch) -> dict[str, Any]:
            return {"lm": super().loss(output, batch)["lm"] * (math.nan if (batch.targets_BT == 3).all() else 1.0)}

    out = tmp_path / "nan"
    out.mkdir()
    write_json(out / "state.json", {"fingerprint": "x", "seconds": 0.0})
    context = Context("toy", "toy", None, {}, out, 0, Metrics(out))
    network, source = Transformer(CONFIG).initialise(0), Source([14])
    config = TrainConfig(steps=24, spikes=SpikeConfig(policy=policy, window=16, back=4, skip=10))
    fit(network, Broken(), source, config, context)
    assert all(torch.isfinite(p).all() for p in network.parameters())
    rows, (done, *more) = read_jsonl(out / "metrics.jsonl"), json.loads((out / "interventions.json").read_text())
    assert len(rows) == 24 and done["step"] == 14 and not more
    if policy == "rewind":
        assert all("loss" in row for row in rows) and source.seen.count(14) == 1
    else:
        assert rows[14]["skipped"] == 1 and "loss" not in rows[14]
    batch = load_file(out / "bad-batch-00000014.safetensors")
    assert torch.equal(batch["0.tokens_BT"], batch_of(14).tokens_BT)


def test_a_run_that_never_calms_down_stops_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="after 3 interventions"):
        train(tmp_path / "x", Source(range(60, 140)), policy="skip", most=3)


@given(st.lists(st.floats(1, 1.2), min_size=32, max_size=60))
def test_noise_is_no_spike_and_a_jump_is(losses: list[float]) -> None:
    detector = Detector(SpikeConfig(window=32))
    for loss in losses:
        detector.reason(loss, 1.0)
    state = json.loads(json.dumps(detector.state()))
    other = Detector(SpikeConfig(window=32))
    other.restore(state)
    for each in (detector, other):
        assert "deviations" in str(each.reason(4.0, 1.0))
        assert "gradient norm 20" in str(each.reason(1.0, 20.0))
        assert each.reason(math.nan, 1.0) == "the loss is nan"
        assert each.in_a_row == 3


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=5))
def test_left_out_batches_are_never_seen_and_no_other_is_missed(raw: list[tuple[int, int]]) -> None:
    journal = Journal()
    for resumed, count in raw:
        journal.add(resumed + 5, resumed, "x", SpikeConfig(policy="rewind", skip=count))
    seen = [journal.data_step(step) for step in range(400)]
    for steps in (0, 1, 150, 400):
        assert [batch for first, end in journal.seen(steps) for batch in range(first, end)] == seen[:steps]
    out = {batch for entry in journal.entries for batch in range(entry["batches"][0], entry["batches"][1] + 1)}
    assert seen == sorted(set(seen)) and not out & set(seen)
    assert set(range(seen[-1] + 1)) == set(seen) | {batch for batch in out if batch <= seen[-1]}


def test_gradient_norms_by_layer_add_up_and_the_embeddings_can_be_shrunk(tmp_path: Path) -> None:
    network = Transformer(CONFIG.model_copy(update={"tie_embeddings": False})).initialise(0)
    norms = {}
    for factor in (1.0, 0.1):
        from lmlab.train.trainer import _shrink_embedding_gradient

        hooks = _shrink_embedding_gradient(network, factor)
        batch = batch_of(0)
        LanguageModel().loss(network(batch.tokens_BT), batch)["lm"].backward()
        norms[factor] = layer_norms(network)
        total = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters() if p.grad is not None))
        assert math.sqrt(sum(value**2 for value in norms[factor].values())) == pytest.approx(total, rel=1e-5)
        network.zero_grad()
        for hook in hooks:
            hook.remove()
    assert norms[0.1]["grad_norm/embedding"] == pytest.approx(0.1 * norms[1.0]["grad_norm/embedding"], rel=1e-5)
    assert norms[0.1]["grad_norm/blocks.0"] == pytest.approx(norms[1.0]["grad_norm/blocks.0"], rel=1e-5)


def test_the_noise_scale_is_that_of_a_known_distribution() -> None:
    """Gradients of mean g and variance s^2 an example in each of d directions: B = d s^2 / |g|^2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.Parameter(torch.zeros(50))
    noise = NoiseScale([x], keep=0.99)
    for _ in range(400):
        after_each = noise.begin()
        x.grad = torch.zeros(50)
        for size in (8, 8, 16):
            examples = 0.2 + torch.randn(size, 50, generator=generator)
            x.grad += examples.sum(0) / 32
            after_each()
        found = noise.end([8, 8, 16])
    assert found["noise_scale"] == pytest.approx(50 * 1.0 / (50 * 0.2**2), rel=0.15)
    assert noise.end([32]) == {}
