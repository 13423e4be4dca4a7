"""What a run on several ranks shows of itself: rank 0 measures the whole model, and the curve is the same with it."""

from pathlib import Path

import pytest
import torch
from toys import batch_of, context_at, curve, model_of, network_of, objective_of, source_of

from lmlab.measure import Score
from lmlab.model.transformer import Transformer
from lmlab.progress import read_jsonl
from lmlab.train.live import Live, LiveConfig
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel import Layout, ParallelConfig, World
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit


@torch.no_grad()
def measured(model: Transformer) -> Score:
    """The loss of one batch, by a forward pass that no other rank takes part in."""
    objective, batch = objective_of("experts"), batch_of("experts", 0)
    assert not model.training
    loss = float(objective.loss(model(**objective.inputs(batch)), batch)["lm"]) / objective.count(batch)["lm"]
    return Score(loss, loss - 1, loss + 1, 8)


def train(out: Path, parallel: ParallelConfig | None, world: World | None, live: bool) -> int:
    layout, network, context = Layout(parallel, world, model_of("experts")), network_of("experts"), context_at(out)
    settings = TrainConfig(steps=5, ema=0.5, optimizer=OptimizerConfig(learning_rate=1e-2))
    seen = Live(
        context, LiveConfig(every=2), network, model_of("experts"), layout, lambda step: 128 * step, measured,
        lambda model: [{"prompt": "a", "text": str(model.config.layers)}],
    )  # fmt: skip
    given = (network, objective_of("experts"), source_of("experts", layout.share), settings, context)
    fit(*given, tokens=lambda batch: batch.size, layout=layout, on_step=seen if live else None)
    return 0


@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig(zero=3), ParallelConfig(tensor=2)], ids=str)
def test_rank_0_measures_the_whole_model(parallel, ranks, tmp_path) -> None:
    train(tmp_path / "alone", None, None, False)
    train(tmp_path / "one", None, None, True)
    ranks(lambda world: train(tmp_path / "two", parallel, world, True), 2)
    assert curve(tmp_path / "one") == curve(tmp_path / "alone")
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-8)
    one, two = (read_jsonl(tmp_path / name / "heldout.jsonl") for name in ("one", "two"))
    assert [(row["step"], row["tokens_seen"]) for row in two] == [(1, 256), (3, 512)]
    bits = [[row["bits_per_byte"] for row in rows] for rows in (one, two)]
    assert bits[1] == pytest.approx(bits[0], rel=1e-5) and bits[0][0] != bits[0][1]
    assert len(read_jsonl(tmp_path / "two" / "samples.jsonl")) == 2
