"""Pretraining: a language model from a corpus and a tokenizer, measured in bits per byte beside baselines."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from lmlab.config import Config
from lmlab.corpus.baselines import Baseline
from lmlab.corpus.baselines import measure as measure_baselines
from lmlab.corpus.shards import Shard, write_shard
from lmlab.corpus.store import documents
from lmlab.errors import Failed
from lmlab.generate.engine import Engine, Sampling
from lmlab.generate.weights import Precision
from lmlab.measure import ratio
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.objective.language_model import LanguageModel
from lmlab.progress import say
from lmlab.run import Context, Input, StageKind, write_json
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.data import PackedWindows
from lmlab.train.lengths import by_length
from lmlab.train.optimizer import OptimizerConfig
from lmlab.train.plan import Shape, make_plan
from lmlab.train.schedule import ScheduleConfig
from lmlab.train.trainer import TrainConfig, fit


class PretrainOptimizer(OptimizerConfig):
    """As `OptimizerConfig`, with pretraining's own defaults, which stay where only some of them are set."""

    name: Literal["adamw", "muon"] = "muon"
    learning_rate: float = Field(default=1.6e-2, gt=0)
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class PretrainSchedule(ScheduleConfig):
    """As `ScheduleConfig`, with pretraining's own defaults."""

    name: Literal["constant", "linear", "cosine", "wsd"] = "wsd"
    warmup: float = Field(default=10, ge=0)
    final: float = Field(default=0.0, ge=0, le=1)
    decay_fraction: float = Field(default=0.6, gt=0, le=1)


class PretrainConfig(Config):
    """Settings of pretraining. With `minutes` the shape, steps and precision are sized to this machine."""

    minutes: float | None = Field(default=4.0, gt=0)
    """The dial: minutes of training. What follows from it is printed and written to plan.json before the first step."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, instead of what the minutes allow."""
    model: Shape = Shape()
    tokens_per_parameter: float = Field(default=2.0, gt=0)
    """How the dial trades width for steps. Compute-optimal training of large models takes about 20 (2203.15556); in a few
    minutes on a small corpus far fewer are best (measured, docs/lab-notes.md)."""
    batch_tokens: int = Field(default=2048, ge=1)
    """Tokens an optimizer step."""
    micro_batches: int = Field(default=1, ge=1)
    separate_documents: bool = True
    """Documents that share a window do not see each other."""
    optimizer: PretrainOptimizer = PretrainOptimizer()
    schedule: PretrainSchedule = PretrainSchedule()
    clip: float = Field(default=1.0, ge=0)
    precision: Literal["auto", "float32", "float32-onednn", "bfloat16"] = "auto"
    """auto: the fastest that a few measured steps find."""
    kernel: Literal["auto", "math", "sdpa"] = "auto"
    """How attention is computed in training. auto: the faster one here, measured; it may differ in rounding."""
    compile: bool | None = None
    """null: compile where a compiler is found and the run is long enough to earn it back."""
    checkpoint_seconds: float = Field(default=60, gt=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)
    before: bool = True
    """Measure the untrained model too."""
    baselines: bool = True
    """Measure xz and the n-gram model on the same held-out bytes."""
    lengths: tuple[int, ...] = ()
    """Also measure the held-out text in windows of these multiples of the context, such as [1, 2, 4, 8]; each divides
    the largest (`bits_per_byte.by_length`, `lmlab/train/lengths.py`)."""
    prompts: tuple[str, ...] = ("def ", "import ", "Return ", "The ")
    """Beginnings that the report shows continued."""

    @field_validator("lengths")
    @classmethod
    def _nested(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if any(each < 1 or max(lengths) % each for each in lengths):
            raise ValueError(f"expected whole multiples of which each divides the largest, found {list(lengths)}")
        return lengths


def prepare(context: Context, tokenizer: Tokenizer, corpus: Path) -> tuple[Shard, Shard, list[int]]:
    """Token shards of both splits, and the bytes of each held-out document."""
    shards = []
    for split in ("train", "heldout"):
        texts = (row["text"] for row in documents(corpus, split))
        shards.append(
            write_shard(
                context.out / "tokens" / split, texts, tokenizer.encode_batch, tokenizer.eos_id, tokenizer.vocab_size
            )
        )
    sizes = [len(row["text"].encode("utf-8")) for row in documents(corpus, "heldout")]
    if not sizes or len(shards[0]) == 0:
        raise Failed(f"{corpus}: expected training and held-out documents, found {len(shards[0])} and {len(sizes)}")
    return shards[0], shards[1], sizes


def document_bits(model: Transformer, tokenizer: Tokenizer, heldout: Shard, precision: Precision) -> list[float]:
    """Bits of each held-out document, -log2 P summed over its tokens. Over its bytes they are comparable between models
    of different tokenizers.

    Windows slide by half a context, so that every token but a document's first ones has at least half a context before
    it.
    """
    engine = Engine(model, tokenizer, precision=precision)
    length = model.config.context_length
    nats = engine.score_documents([heldout.document(i) for i in range(len(heldout))], window=length, stride=length // 2)
    return [each / math.log(2) for each in nats]


def _once(path: Path, make: Any) -> Any:
    """A number that is dear: computed once, written down, read back after a kill."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def run(context: Context) -> Mapping[str, Any]:
    """Train and measure. Leaves model/, results.json, plan.json, metrics.jsonl and checkpoints/."""
    config: PretrainConfig = context.config
    corpus, tokenizer = context.inputs["corpus"], Tokenizer.load(context.inputs["tokenizer"])
    train, heldout, sizes = prepare(context, tokenizer, corpus)
    plan = context.plan(
        lambda: make_plan(
            config.model,
            tokenizer.vocab_size,
            minutes=config.minutes,
            steps=config.steps,
            batch_tokens=config.batch_tokens,
            precision=config.precision,
            kernel=config.kernel,
            compile_wish=config.compile,
            tokens_per_parameter=config.tokens_per_parameter,
        )
    )
    shape = ModelConfig.model_validate(plan["model"])
    describe(plan, shape, len(train.tokens))
    model = Transformer(shape).initialise(context.seed)
    model.kernel = plan["kernel"]
    precision: Precision = "bfloat16" if plan["precision"] == "bfloat16" else "float32"
    measure = functools.partial(document_bits, model, tokenizer, heldout, precision)
    scores: dict[str, Any] = {}
    if config.before:
        scores["before"] = _once(context.out / "before.json", lambda: ratio(measure(), sizes).to_json())
    base = _baselines(context.out / "baselines.json", corpus) if config.baselines else {}
    settings = TrainConfig(
        steps=plan["steps"],
        optimizer=config.optimizer,
        schedule=config.schedule,
        clip=config.clip,
        precision=plan["precision"],
        compile=plan["compile"],
        checkpoint_seconds=config.checkpoint_seconds,
        checkpoint_steps=config.checkpoint_steps,
        keep=config.keep,
    )
    source = PackedWindows(
        train, plan["length"], plan["rows"], config.micro_batches, context.seed, config.separate_documents
    )
    last = fit(model, LanguageModel(), source, settings, context, tokens=lambda batch: batch.tokens_BT.numel())
    model.kernel = "auto"
    bits = measure()
    after = ratio(bits, sizes)
    save_model(context.out / "model", model, tokenizer)
    scores |= {"after": after.to_json(), **{name: each.score.to_json() for name, each in base.items()}}
    if base:
        scores["excess"] = {name: each.excess(bits).to_json() for name, each in base.items()}
    if config.lengths:
        texts = [row["text"] for row in documents(corpus, "heldout")]
        scores |= by_length(model, tokenizer, texts, precision, config.lengths)
    write_json(
        context.out / "results.json",
        {
            "bits_per_byte": scores,
            "parameters": shape.parameters()["total"],
            "tokens": plan["tokens"],
            "epochs": plan["tokens"] / len(train.tokens),
            "flops": plan["tokens"] * shape.flops_per_token(plan["length"]),
            "heldout_bytes": sum(sizes),
            # What was timed stays in plan.json: results are part of a stage's identity, and two lives of equal weights are one.
            "plan": {key: value for key, value in plan.items() if key != "measured"},
            "samples": continuations(model, tokenizer, config.prompts),
        },
    )
    return {"bits_per_byte": after.value, "parameters": shape.parameters()["total"], "loss": last.get("loss")}


def _baselines(path: Path, corpus: Path) -> dict[str, Baseline]:
    def make() -> dict[str, Any]:
        texts = {split: [row["text"] for row in documents(corpus, split)] for split in ("train", "heldout")}
        return {name: each.to_json() for name, each in measure_baselines(texts["heldout"], texts["train"]).items()}

    return {name: Baseline.from_json(row) for name, row in _once(path, make).items()}


def continuations(model: Transformer, tokenizer: Tokenizer, prompts: tuple[str, ...]) -> list[dict[str, str]]:
    """What the model writes after each beginning, sampled at temperature 0.7 with fixed seeds."""
    engine = Engine(model, tokenizer)
    room = min(64, model.config.context_length // 2)
    sampling = [Sampling(max_new_tokens=room, temperature=0.7, seed=index) for index in range(len(prompts))]
    ids = [[tokenizer.eos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    return [{"prompt": p, "text": c.text} for p, c in zip(prompts, engine.generate(ids, sampling), strict=True)]


def describe(plan: dict[str, Any], shape: ModelConfig, training_tokens: int) -> None:
    """The plan, printed before the first step."""
    say(
        f"plan: {shape.layers} layers, d_model {shape.d_model}, {shape.heads} heads, "
        f"{shape.parameters()['total']:,} parameters; {plan['steps']:,} steps of {plan['rows']} x {plan['length']} tokens "
        f"= {plan['tokens']:,} ({plan['tokens'] / training_tokens:.2f} epochs); {plan['precision']}, "
        f"{plan['kernel']} attention, {'compiled' if plan['compile'] else 'not compiled'}"
    )


STAGE = StageKind(
    config=PretrainConfig,
    run=run,
    inputs=(Input("corpus", ("corpus",)), Input("tokenizer", ("tokenizer",))),
)
