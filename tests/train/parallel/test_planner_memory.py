"""The planner's bytes against torch's own memory tracker, on one process and on ranks."""

from __future__ import annotations

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from lmlab.model.config import ModelConfig
from lmlab.model.settings import MoEConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.language_model import LanguageModel
from lmlab.train.optimizer import OptimizerConfig, make_optimizers
from lmlab.train.parallel import Layout, ParallelConfig, World
from lmlab.train.parallel.apply import parallelize
from lmlab.train.parallel.eight_bits import to_float8
from lmlab.train.planner.memory import Degrees, memory_of
from lmlab.train.planner.traced import Living
from lmlab.train.step import accumulate, make_forward, make_step

ROWS, LENGTH = 4, 128
SHAPE = {"layers": 3, "d_model": 128, "heads": 4, "vocab_size": 1024, "context_length": LENGTH}
MODELS = {
    "dense": ModelConfig(**SHAPE),
    "encoder-decoder": ModelConfig(**SHAPE, architecture="encoder-decoder", activation="gelu"),
    "experts": ModelConfig(**SHAPE, moe=MoEConfig(experts=4, top_k=2, every=1)),
}


def measured(shape: ModelConfig, degrees: Degrees, optimizer: OptimizerConfig, precision: str, world: World) -> int:
    """Peak tensor bytes of two steps on one rank, by torch's tracker."""
    config = ParallelConfig(
        data=degrees.data,
        tensor=degrees.tensor,
        zero=degrees.zero,
        sequence=degrees.sequence,
        recompute=degrees.recompute,
    )
    layout = Layout(config, world if degrees.ranks > 1 else None, shape)
    network = parallelize(Transformer(shape), layout)
    if precision == "float8":
        to_float8(network)
    optimizers = make_optimizers(network, optimizer, layout.owns)
    tokens, places = torch.zeros(ROWS, LENGTH, dtype=torch.long), torch.arange(LENGTH).expand(ROWS, LENGTH)
    source = {}
    if shape.has_encoder:
        source = {"encoder_tokens_BS": tokens, "encoder_segments_BS": tokens, "encoder_positions_BS": places}
    real = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    batch = Batch(tokens, tokens, real, segments_BT=tokens, positions_BT=places, **source)
    objective, tracker = LanguageModel(), MemTracker()
    forward = make_forward(network, objective, False)
    tracker.track_external(network, *optimizers)
    with tracker:
        for _ in range(2):
            batches = [batch] * degrees.micro_batches
            accumulate(forward, objective, batches, precision, after_each=tracker.reset_mod_stats, layout=layout)
            layout.finish(network)
            for each in optimizers:
                each.step()
            layout.spread(network)
            network.zero_grad(set_to_none=True)
    found = tracker.get_tracker_snapshot("peak")
    return sum(parts["Total"] for parts in found.values())


def predicted(shape: ModelConfig, degrees: Degrees, optimizer: OptimizerConfig, precision: str) -> float:
    return memory_of(shape, degrees, optimizer, ROWS, LENGTH, precision).total


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float8"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_bytes_of_one_process(kind, precision, micro_batches):
    degrees, optimizer = Degrees(micro_batches=micro_batches), OptimizerConfig()
    peak = measured(MODELS[kind], degrees, optimizer, precision, World())
    assert predicted(MODELS[kind], degrees, optimizer, precision) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_bytes_of_other_optimizers(name):
    shape = ModelConfig(**{**SHAPE, "d_model": 256})
    degrees, optimizer = Degrees(recompute="full"), OptimizerConfig(name=name)
    peak = measured(shape, degrees, optimizer, "float32", World())
    assert predicted(shape, degrees, optimizer, "float32") == pytest.approx(peak, rel=0.1)


LAYOUTS = [
    Degrees(data=2),
    Degrees(data=2, zero=1, micro_batches=2),
    Degrees(data=2, zero=2),
    Degrees(data=2, zero=3, recompute="full"),
    Degrees(data=2, zero=3, micro_batches=2),
    Degrees(tensor=2),
    Degrees(tensor=2, sequence=False, micro_batches=2),
    Degrees(tensor=2, recompute="selective"),
]


@pytest.mark.parametrize("degrees", LAYOUTS, ids=lambda d: "-".join(str(v) for v in vars(d).values()))
def test_bytes_of_ranks(ranks, degrees):
    shape, optimizer = MODELS["dense"], OptimizerConfig()
    peaks = ranks(lambda world: measured(shape, degrees, optimizer, "float32", world), 2)
    assert predicted(shape, degrees, optimizer, "float32") == pytest.approx(max(peaks), rel=0.1)


def lived(shape: ModelConfig, degrees: Degrees, world: World) -> float:
    """Peak tensor bytes of a step of a stage. Torch's tracker refuses modules that run several times before their backward
    pass, as a stage's do; so this counts storages itself, and is held to the tracker on one process below."""
    layout = Layout(ParallelConfig(pipeline=degrees.pipeline), world if degrees.ranks > 1 else None, shape)
    network = parallelize(Transformer(shape), layout)
    optimizers = make_optimizers(network, OptimizerConfig(), layout.owns)
    tokens, places = torch.zeros(ROWS, LENGTH, dtype=torch.long), torch.arange(LENGTH).expand(ROWS, LENGTH)
    real = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    batch = Batch(tokens, tokens, real, segments_BT=tokens, positions_BT=places)
    step, living = make_step(network, LanguageModel(), layout), Living()
    own = list(network.parameters())
    living.leave_out([*own, tokens, places, real])
    with living:
        for _ in range(2):
            step([batch] * degrees.micro_batches)
            layout.finish(network)
            for each in optimizers:
                each.step()
            network.zero_grad(set_to_none=True)
    return living.peak + sum(4 * each.numel() for each in own)


def test_counting_storages_agrees_with_torchs_tracker():
    degrees = Degrees(micro_batches=2)
    peak = measured(MODELS["dense"], degrees, OptimizerConfig(), "float32", World())
    assert lived(MODELS["dense"], degrees, World()) == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_stages(ranks, tied):
    shape = ModelConfig(**{**SHAPE, "layers": 4}, tie_embeddings=tied)
    degrees = Degrees(pipeline=2, micro_batches=4)
    peaks = ranks(lambda world: lived(shape, degrees, world), 2)
    assert predicted(shape, degrees, OptimizerConfig(), "float32") == pytest.approx(max(peaks), rel=0.1)
