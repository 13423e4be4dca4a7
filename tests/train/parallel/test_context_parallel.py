"""Rows cut over ranks: attention reaches all tokens, and the law holds."""

import dataclasses

import pytest
import torch
from test_law import hold_curves, hold_gradients, hold_law, in_both_types
from toys import LENGTH, MODELS, SHAPE, TRAINED, batch_of, furthest, objective_of, rows_of

from lmlab.model.config import ModelConfig
from lmlab.model.settings import MoEConfig
from lmlab.model.transformer import Transformer
from lmlab.train.parallel import Layout, ParallelConfig, misfits
from lmlab.train.parallel.apply import parallelize
from lmlab.train.parallel.context import cut_batch
from lmlab.train.sharded import whole
from lmlab.train.step import accumulate, make_forward

GATHER, ULYSSES = ParallelConfig(context=2), ParallelConfig(context=2, context_method="ulysses")
ALONE = [GATHER, ULYSSES, ParallelConfig(context=2, zero=1), ParallelConfig(context=2, zero=3)]
WITH_DATA = [ParallelConfig(data=2, context=2, zero=stage) for stage in (0, 1, 2, 3)]
WITH_TENSOR = [
    ParallelConfig(context=2, tensor=2),
    ParallelConfig(context=2, tensor=2, sequence=False, zero=1),
    ParallelConfig(context=2, tensor=2, context_method="ulysses", zero=3),
]
EIGHT = [
    ParallelConfig(data=2, context=2, tensor=2, zero=3),
    ParallelConfig(data=2, context=2, tensor=2, zero=1, context_method="ulysses", recompute="full"),
]


@pytest.mark.parametrize("kind", MODELS)
def test_rows_cut_in_two_have_one_process_s_gradients(ranks, kind):
    hold_gradients(ranks, kind, torch.float32, [GATHER, ULYSSES, ParallelConfig(context=2, zero=3)], 2, 1e-5)


def test_rows_cut_in_two_teach_what_whole_ones_do(ranks, tmp_path):
    hold_curves(ranks, tmp_path, "dense", [ParallelConfig(context=2, recompute="selective")], 2, 1e-8, steps=5, ema=0.9)


@pytest.mark.parametrize("kind", TRAINED)
def test_objectives_over_rows_cut_in_two(ranks, tmp_path, kind):
    """Packed documents, prefixes, GLM's two positions, sources and their targets."""
    hold_gradients(ranks, kind, torch.float64, [GATHER, ULYSSES], 2, 1e-8)
    hold_curves(ranks, tmp_path, kind, [ParallelConfig(context=2, zero=3)], 2, 1e-8, steps=4)


PARTS = {
    "alibi": {"position": "alibi"},
    "windows": {"attention": ("local(3)", "full"), "position": "learned"},
    "strided": {"attention": "strided(4)", "position": "sinusoidal", "attention_softcap": 5.0},
    "relative-bias": {"position": "relative-bias"},
    "transformer-xl": {"position": "transformer-xl"},
}


def of_parts(layout: Layout, config: ModelConfig, kernel: str, length: int) -> dict[str, torch.Tensor]:
    """Gradients of a model of such parts over rows of such a length, with and without documents that are packed."""
    network, objective = Transformer(config).initialise(1).double().train(), objective_of("dense")
    network.kernel = kernel
    parallelize(network, layout)
    batches = []
    for packed in (True, False):
        batch = batch_of("dense", 0)
        fields = {name: value[:, :length] for name, value in vars(batch).items() if value is not None}
        batch = dataclasses.replace(batch, **fields)
        batches.append(layout.cut(batch if packed else dataclasses.replace(batch, segments_BT=None)))
    accumulate(make_forward(network, objective, False), objective, batches, "float32", layout=layout)
    layout.finish(network)
    return {name: whole(p.grad) for name, p in network.named_parameters()}


def test_every_position_and_pattern(ranks):
    """Also rows of a length that two ranks cannot divide, which are filled up."""

    def work(world):
        found = {}
        for name, changed in PARTS.items():
            config = ModelConfig(**SHAPE | changed)
            for length, kernel in ((LENGTH, "math"), (LENGTH - 3, "sdpa")):
                wanted = of_parts(Layout(), config, kernel, length)
                for layout in (GATHER, ULYSSES):
                    if not list(misfits(layout, 2, config)):
                        own = of_parts(Layout(layout, world, config), config, kernel, length)
                        found[f"{name} {length} {layout.context_method}"] = furthest(own, wanted)
        return found

    for found in ranks(work, 2):
        assert len(found) == 16
        assert max(found.values()) < 1e-8, found


def test_the_parts_of_a_batch_are_the_batch():
    batch = rows_of(batch_of("encoder-decoder", 0), torch.arange(3).numpy())
    parts = [cut_batch(batch, place, 5) for place in range(5)]
    for name in ("tokens_BT", "targets_BT", "mask_BT", "encoder_tokens_BS", "encoder_padding_BS"):
        joined = torch.cat([getattr(part, name) for part in parts], 1)
        assert torch.equal(joined[:, :LENGTH], getattr(batch, name))
        assert joined.shape[1] == 20
    assert not torch.cat([part.mask_BT for part in parts], 1)[:, LENGTH:].any()
    padding = torch.cat([part.padding_BT for part in parts], 1)
    assert torch.equal(padding[0], torch.arange(20) >= LENGTH)
    positions = torch.cat([part.positions_BT for part in parts], 1)
    assert torch.equal(positions[0, :LENGTH], torch.arange(LENGTH))
    assert int(positions.max()) < LENGTH  # tables of positions have no row beyond
    assert sum(part.size for part in parts) == batch.size


@pytest.mark.parametrize(
    ("layout", "changed", "message"),
    [
        (
            {"context_method": "ulysses"},
            {"heads": 6, "d_model": 24},
            "ulysses: heads 6 cannot be divided by it; gather can",
        ),
        ({"context_method": "ulysses", "tensor": 2}, {}, "heads 4 (2 on each of 2 tensor-parallel ranks) cannot be"),
        (
            {"context_method": "ulysses"},
            {"position": "transformer-xl"},
            "tables by head that are not cut; gather needs no",
        ),
        ({}, {"moe": MoEConfig(experts=2, sequence_capacity=4)}, "sequence_capacity counts the tokens of whole rows"),
    ],
)
def test_what_cannot_be_cut_is_refused(layout, changed, message):
    config = ParallelConfig(context=4, **layout)
    assert any(message in each for each in misfits(config, 8, ModelConfig(**SHAPE | changed)))


def test_a_product_with_context_is_named():
    with pytest.raises(ValueError, match="data 2 x context 2 x tensor 1 makes 4 processes, but 1"):
        Layout(ParallelConfig(data=2, context=2))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_context_parallel(ranks, tmp_path, kind, dtype):
    hold_law(ranks, tmp_path, kind, ALONE, 2, dtype)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
@pytest.mark.parametrize("layouts", [WITH_DATA, WITH_TENSOR], ids=["data", "tensor"])
def test_context_by_data_and_by_tensor(ranks, tmp_path, kind, dtype, layouts):
    hold_law(ranks, tmp_path, kind, layouts, 4, dtype)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_data_by_context_by_tensor(ranks, tmp_path, kind, dtype):
    """Eight ranks, two by two by two."""
    hold_law(ranks, tmp_path, kind, EIGHT, 8, dtype)


WITH_A_PIPELINE = {
    "dense": [ParallelConfig(pipeline=2, context=2, zero=1, context_method="ulysses")],
    "experts": [ParallelConfig(pipeline=2, expert=2), ParallelConfig(pipeline=2, context=2, expert=2, zero=3)],
    "encoder-decoder": [ParallelConfig(pipeline=2, context=2, zero=3)],
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", MODELS)
@in_both_types
def test_with_a_pipeline(ranks, tmp_path, kind, dtype):
    """Rows and experts of each stage divided, two by two."""
    hold_law(ranks, tmp_path, kind, WITH_A_PIPELINE[kind], 4, dtype)
