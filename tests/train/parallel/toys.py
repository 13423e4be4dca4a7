"""Small models of each kind, batches for them, and their training as one process or as a rank of several."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmlab.model.config import ModelConfig
from lmlab.model.settings import MoEConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.batch import Batch
from lmlab.objective.blanks import BlankTask, Marks
from lmlab.objective.example import Task
from lmlab.objective.language_model import LanguageModel, MixedLanguageModel, RegularisedLanguageModel
from lmlab.objective.layout import Layout as Rows
from lmlab.objective.mixture import MixtureTask
from lmlab.objective.settings import BlankInfilling
from lmlab.objective.tasks import PrefixTask, SpanTask
from lmlab.progress import Metrics, read_jsonl
from lmlab.run import Context, write_json
from lmlab.train.data import ExampleWindows
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.parallel import Layout, ParallelConfig, World
from lmlab.train.parallel.apply import parallelize
from lmlab.train.ramp import Batches, RampConfig
from lmlab.train.schedule import ScheduleConfig
from lmlab.train.sharded import whole
from lmlab.train.step import make_step
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit

VOCABULARY, LENGTH, ROWS = 48, 16, 8
SENTINELS, MARKS, END, FIRST = range(1, 9), Marks(9, 10, 11, 12, 13), 0, 16
"""Special tokens of the objectives' text, and the first id of its words."""
SHAPE = {"layers": 2, "d_model": 32, "heads": 4, "vocab_size": VOCABULARY, "context_length": LENGTH}
MODELS = {
    "dense": ModelConfig(**SHAPE, kv_heads=2, qk_norm=True),
    "experts": ModelConfig(**SHAPE, tie_embeddings=False, moe=MoEConfig(experts=4, top_k=2, every=1, z_loss=1e-3)),
    "encoder-decoder": ModelConfig(
        **SHAPE, architecture="encoder-decoder", norm="layernorm", norm_bias=True, bias=True, activation="gelu"
    ),
}
"""The three kinds of the law, with biases, gains of queries, tied and untied heads, and other parts spread over them."""
DEEP = {f"deep-{kind}": MODELS[kind].model_copy(update={"layers": 4}) for kind in ("dense", "experts")}
DEEP["biased"] = DEEP["deep-dense"].model_copy(
    update={"layers": 2, "encoder_layers": 3, "architecture": "encoder-decoder", "position": "relative-bias"}
)
"""Enough blocks for several stages a rank. `biased`: tables of positions that blocks share, a stage with both stacks."""
WIDE = {
    "wide-dense": ModelConfig(
        **{**SHAPE, "d_model": 64}, kv_heads=2, qk_norm=True, bias=True, norm="layernorm", norm_bias=True
    ),
    "wide-experts": ModelConfig(
        **{**SHAPE, "d_model": 64}, tie_embeddings=False, moe=MoEConfig(experts=4, top_k=2, every=1, z_loss=1e-3)
    ),
}
"""Of which halves of every matrix still have sizes that are multiples of 16."""


TRAINED: dict[str, tuple[ModelConfig, Task, LanguageModel]] = {
    "spans": (MODELS["encoder-decoder"], SpanTask(0.3, 2.0, SENTINELS, END), LanguageModel()),
    "blanks": (
        ModelConfig(**{**SHAPE, "context_length": 32}, architecture="prefix-decoder", position="glm-2d"),
        BlankTask(BlankInfilling(), MARKS, np.array([END])),
        RegularisedLanguageModel(1e-3),
    ),
    "mixture": (
        MODELS["encoder-decoder"].model_copy(update={"context_length": 32}),
        MixtureTask([SpanTask(0.3, 2.0, SENTINELS, END), PrefixTask()], [1.0, 1.0], 1),
        MixedLanguageModel(["spans", "prefix"], z_loss=1e-3),
    ),
}
"""Objectives other than the causal one, each with an architecture that carries it."""


@functools.cache
def text() -> Any:
    """Documents of which the next word follows from the one before, as token shards hold them."""
    lengths = np.random.default_rng(0).integers(5, 40, 60)
    documents = [[END, *(FIRST + (start + 7 * np.arange(n)) % 31)] for start, n in enumerate(lengths)]
    starts = np.cumsum([0, *map(len, documents)])
    return SimpleNamespace(tokens=np.concatenate(documents).astype(np.uint16), starts=starts)


def objective_of(kind: str) -> LanguageModel:
    return TRAINED[kind][2] if kind in TRAINED else RegularisedLanguageModel(1e-3)


def model_of(kind: str) -> ModelConfig:
    return TRAINED[kind][0] if kind in TRAINED else (MODELS | DEEP | WIDE)[kind]


RAMP = Batches(ROWS, LENGTH, RampConfig(stages=((0, 4 * LENGTH), (2, ROWS * LENGTH)), learning_rate="sqrt"))


def examples_of(kind: str, share: tuple[int, int]) -> ExampleWindows:
    """A rank's part of the text under an objective, in batches that grow."""
    config, task, _ = TRAINED[kind]
    room, encoder = config.context_length, config.context_length if config.has_encoder else 0
    rows = Rows(config.architecture, room, encoder, 1, 1, config.position == "glm-2d")
    return ExampleWindows(text(), task, rows, LENGTH, RAMP, 2, 3, True, share=share)


def batch_of(kind: str, step: int, rows: int = ROWS) -> Batch:
    """Rows of two documents, of which unequal numbers of tokens carry loss."""
    draw = torch.Generator().manual_seed(step % 3)  # three batches again and again can be learnt
    ids = torch.randint(0, VOCABULARY, (rows, LENGTH + 1), generator=draw)
    mask = torch.rand(rows, LENGTH, generator=draw) < torch.rand(rows, 1, generator=draw)
    mask[:, 0] = True
    cut = torch.randint(1, LENGTH, (rows, 1), generator=draw)
    batch = Batch(ids[:, :-1], ids[:, 1:], mask, segments_BT=(torch.arange(LENGTH)[None] >= cut).long())
    if not model_of(kind).has_encoder:
        return batch
    source = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=draw)
    padding = torch.arange(LENGTH)[None] >= torch.randint(4, LENGTH, (rows, 1), generator=draw)
    return dataclasses.replace(batch, segments_BT=None, encoder_tokens_BS=source, encoder_padding_BS=padding)


def rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    """Some of a batch's rows."""
    kept = {name: value[torch.from_numpy(rows)] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return dataclasses.replace(batch, **kept)


def source_of(kind: str, share: tuple[int, int] = (0, 1), micro_batches: int = 2):
    """Every step's micro-batches, or a rank's part of each."""
    if kind in TRAINED:
        return examples_of(kind, share)

    def source(step: int) -> list[Batch]:
        parts = np.array_split(np.arange(ROWS), micro_batches)
        return [rows_of(batch_of(kind, step), np.array_split(part, share[1])[share[0]]) for part in parts]

    return source


class Cut(Exception):
    """The end of a life."""


def until(last: int):
    """`source_of` up to a step, at which the life ends: schedules depend on the steps of the whole run."""

    def sources(kind: str, share: tuple[int, int] = (0, 1)):
        source = source_of(kind, share)

        def cut(step: int):
            if step == last:
                raise Cut
            return source(step)

        return cut

    return sources


def network_of(kind: str, dtype: torch.dtype = torch.float64, **changed) -> Transformer:
    return Transformer(model_of(kind).model_copy(update=changed)).initialise(1).to(dtype)


def gradients(kind: str, dtype: torch.dtype, layout: Layout, micro_batches: int = 2) -> tuple[float, dict[str, Tensor]]:
    """The first step's loss and whole gradients, before clipping."""
    network, objective = network_of(kind, dtype).train(), objective_of(kind)
    parallelize(network, layout)
    batches = [layout.cut(batch) for batch in source_of(kind, layout.share, micro_batches)(0)]
    found = make_step(network, objective, layout)(batches)
    layout.finish(network)
    own = {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None}
    return found["loss"], layout.together(own)


def furthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference of a parameter's two gradients, in norms of the wanted one, or in thousandths of the norm of all
    for what is rounding alone (a bias of keys: the softmax does not see it)."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    least = 1e-3 * float(torch.stack([each.norm() for each in wanted.values()]).norm())
    return max(float((found[name] - wanted[name]).norm()) / max(float(wanted[name].norm()), least) for name in wanted)


def context_at(out: Path) -> Context:
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "state.json").exists():
        write_json(out / "state.json", {"fingerprint": "x", "seconds": 0.0})
    return Context("toy", "toy", None, {}, out, 3, Metrics(out))


def train(
    kind: str,
    out: Path,
    parallel: ParallelConfig | None = None,
    world: World | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    optimizer: str = "adamw",
    steps: int = 20,
    sources=None,
    **more,
) -> nn.Module:
    """Train a toy; what it logged is in `curve(out)`. `sources`: as `source_of`."""
    layout = Layout(parallel, world, model_of(kind))
    settings = TrainConfig(
        steps=steps,
        optimizer=OptimizerConfig(name=optimizer, learning_rate=1e-2),  # type: ignore[arg-type]
        schedule=ScheduleConfig(warmup=3),
        clip=0.5,
        **more,
    )
    network = network_of(kind, dtype)
    source = (sources or source_of)(kind, layout.share)
    given = (network, objective_of(kind), source, settings, context_at(out))
    fit(*given, tokens=lambda batch: batch.size, layout=layout, batches=RAMP if kind in TRAINED else None)
    return network


def curve(out: Path) -> list[float]:
    """The losses of a run, step by step."""
    rows = read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def apart(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference of two curves."""
    assert len(found) == len(wanted)
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted))
