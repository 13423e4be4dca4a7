"""Pretraining: a language model from a corpus and a tokenizer, measured in bits per byte beside baselines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmlab.corpus.baselines import Baseline
from lmlab.corpus.baselines import measure as measure_baselines
from lmlab.corpus.engine import cores
from lmlab.corpus.shards import Shards, write_shards
from lmlab.corpus.store import documents
from lmlab.errors import Failed
from lmlab.generate.weights import Precision
from lmlab.measure import ratio
from lmlab.model.config import ModelConfig
from lmlab.model.store import LANGUAGE_MODEL_STAGES, save_model
from lmlab.model.transformer import Transformer
from lmlab.objective.build import make_objective, make_task, window
from lmlab.objective.example import Task
from lmlab.objective.layout import Layout
from lmlab.objective.settings import CausalLM
from lmlab.progress import say
from lmlab.ranks import size
from lmlab.run import Context, Input, StageKind, write_json
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.checkpoint import gathered
from lmlab.train.copying import copying
from lmlab.train.data import ExampleWindows, PackedWindows
from lmlab.train.heldout import Heldout, piece_tokens
from lmlab.train.lengths import by_length
from lmlab.train.live import HELDOUT, SAMPLES, Live, Some
from lmlab.train.order import EpochOrder, MixedOrder, Order, Seen, seen_in
from lmlab.train.parallel import Layout as Ranks
from lmlab.train.parallel import join
from lmlab.train.plan import make_plan
from lmlab.train.possible import check, here, refuse_misfits
from lmlab.train.pretrain_config import PretrainConfig
from lmlab.train.ramp import Batches
from lmlab.train.room import Step, free, room_for
from lmlab.train.samples import continuations
from lmlab.train.stability import Journal
from lmlab.train.start import equipped, starting_point
from lmlab.train.train_config import TrainConfig
from lmlab.train.trainer import fit

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class Texts:
    """Token shards of both splits; of each held-out document the bytes that its tokens spell (where the tokenizer loses
    something, the model is not asked for more), and how many bytes all their text has."""

    train: Shards
    heldout: Shards
    sizes: list[int]
    original: int


def prepare(context: Context, tokenizer: Tokenizer, corpus: Path) -> Texts:
    """Encode both splits. Raises Failed where one of them is empty."""
    folders = [context.out / "tokens" / split for split in SPLITS]

    def write() -> None:
        for folder, split in zip(folders, SPLITS):
            write_shards(
                folder,
                ((row["id"], row["source"], row["text"]) for row in documents(corpus, split)),
                tokenizer.encode_arrays,
                end_of_text=tokenizer.eos_id,
                vocabulary=tokenizer.vocab_size,
                tokenizer=tokenizer.fingerprint,
                threads=cores(),
            )

    context.first(write)
    train, heldout = (Shards(folder, verify=False) for folder in folders)
    if not len(heldout) or len(train) == 0:
        raise Failed(f"{corpus}: expected training and held-out documents, found {len(train)} and {len(heldout)}")
    sizes = [len(tokenizer.decode(heldout.document(index)).encode("utf-8")) for index in range(len(heldout))]
    return Texts(train, heldout, sizes, sum(len(text.encode("utf-8")) for text in _texts(corpus, "heldout")))


def _once(path: Path, make: Any) -> Any:
    """A number that is dear: computed once, written down, read back after a kill."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def run(context: Context) -> Mapping[str, Any]:
    """Train and measure. Leaves model/, results.json, plan.json, metrics.jsonl and checkpoints/."""
    config: PretrainConfig = context.config
    corpus, name = context.inputs["corpus"], context.name
    start = equipped(name, config, starting_point(name, config.model, context.inputs))
    tokenizer, room = start.tokenizer, config.model.context_length
    parts = config.model if start.shape is None else start.shape
    if start.shape is not None:
        refuse_misfits(name, config, start.shape)
    prepared = prepare(context, tokenizer, corpus)
    train, heldout, sizes, original = prepared.train, prepared.heldout, prepared.sizes, prepared.original
    task = make_task(config.objective, tokenizer)
    layout = Layout(
        parts.architecture,
        room,
        room if parts.architecture == "encoder-decoder" else 0,
        start.decoder_start,
        tokenizer.pad_id,
        parts.position == "glm-2d",
    )
    packed = isinstance(config.objective, CausalLM)
    length = window(config.objective, parts.architecture, room)
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
            window=length,
            lengths=task.lengths(length),
            ramp=config.batch_ramp,
            fixed=start.shape,
            ranks=size(),
        )
    )
    shape = ModelConfig.model_validate(plan["model"])
    refuse_misfits(name, config, shape)
    _announce(context, plan, shape, len(train.tokens), task.lengths(length))
    model = start.model(shape, context.seed)
    model.kernel = plan["kernel"]
    precision: Precision = "bfloat16" if plan["precision"] in ("bfloat16", "float8") else "float32"
    texts = Heldout(heldout, tokenizer, corpus, piece_tokens(task, layout))
    measured = (model, task, layout, precision)
    scores: dict[str, Any] = {}
    if config.before:
        untrained = lambda: ratio(texts.after(*measured), sizes).to_json()  # noqa: E731
        scores["before"] = context.first(lambda: _once(context.out / "before.json", untrained))
    base = _baselines(context, corpus) if config.baselines else {}
    settings = TrainConfig(
        steps=plan["steps"],
        optimizer=config.optimizer,
        schedule=config.schedule,
        clip=config.clip,
        spikes=config.spikes,
        embedding_gradient=config.embedding_gradient,
        ema=config.ema,
        layer_norms_every=config.layer_norms_every,
        noise_scale_every=config.noise_scale_every,
        precision=plan["precision"],
        loss_scale=config.loss_scale,
        compile=plan["compile"],
        checkpoint_seconds=config.checkpoint_seconds,
        checkpoint_steps=config.checkpoint_steps,
        keep=config.keep,
        keep_best=config.keep_best,
        keep_every=config.keep_every,
        log_to=config.log_to,
    )
    batches = Batches(plan["rows"], plan["length"], config.batch_ramp)
    ranks = Ranks(config.parallel, join(context.board))
    order = _order(config, plan, train, context.seed, batches, beyond=1 if packed else 0)
    cut = (plan["length"], batches, config.micro_batches, context.seed, config.separate_documents, order, ranks.share)
    source = PackedWindows(train, *cut) if packed else ExampleWindows(train, task, _tight(layout, task, length), *cut)
    objective = make_objective(config.objective, config.z_loss)
    last = fit(
        model,
        objective,
        source,
        settings,
        context,
        tokens=lambda batch: batch.size,
        on_step=_live(context, model, shape, ranks, batches, texts, (task, layout, precision)),
        batches=batches,
        layout=ranks,
    )
    model = _whole(model, shape, ranks)
    if model is None:
        return {}
    measured = (model, task, layout, precision)
    model.kernel = "auto"
    bits = texts.after(*measured)
    after = ratio(bits, sizes)
    scores |= {
        "after": after.to_json(),
        "continuation": texts.continuation(texts.continuation_bits(*measured)).to_json(),
        **{name: each.score.to_json() for name, each in base.items()},
    }
    save_model(context.out / "model", model, tokenizer)
    if base and original == sum(sizes):  # else the model was asked for another text than the baselines
        scores["excess"] = {name: each.excess(bits).to_json() for name, each in base.items()}
    if config.lengths:
        scores |= by_length(model, tokenizer, _texts(corpus, "heldout"), precision, config.lengths)
    write_json(
        context.out / "results.json",
        {
            "bits_per_byte": scores,
            "parameters": shape.parameters()["total"],
            "tokens": plan["tokens"],
            "epochs": plan["tokens"] / len(train.tokens),
            "flops": plan["flops"],
            "objective": config.objective.model_dump(mode="json"),
            "heldout_bytes": sum(sizes),
            **({"heldout_bytes_in_text": original} if original != sum(sizes) else {}),
            "bits_per_byte_by_source": {
                name: ratio(bits[rows], sizes[rows]).to_json() for name, rows in heldout.sources().items()
            },
            "seen": _seen(context, order, batches, plan["steps"]),
            **(
                {"copying": copying(model, train.tokens, tokenizer.eos_id, rows=config.copying)}
                if config.copying
                else {}
            ),
            "piece_tokens": texts.piece,
            # What was timed stays in plan.json: results are part of a stage's identity, and two lives of equal weights are one.
            "plan": {key: value for key, value in plan.items() if key != "measured"},
            "samples": continuations(model, tokenizer, config.prompts, task, layout),
        },
    )
    return {"bits_per_byte": after.value, "parameters": shape.parameters()["total"], "loss": last.get("loss")}


def _live(
    context: Context,
    model: Transformer,
    shape: ModelConfig,
    ranks: Ranks,
    batches: Batches,
    texts: Heldout,
    asked: tuple[Task, Layout, Precision],
) -> Live | None:
    """What measures some of the held-out text while the model trains, where the settings ask for it."""
    config: PretrainConfig = context.config
    if not config.live.on:
        return None
    task, layout, _ = asked
    some = Some(texts.shard, config.live)
    few = Heldout(some, texts.tokenizer, texts.corpus, texts.piece)
    sizes = [len(texts.tokenizer.decode(ids).encode("utf-8")) for ids in some]
    return Live(
        context,
        config.live,
        model,
        shape,
        ranks,
        batches.tokens_before,
        lambda now: ratio(few.after(now, *asked), sizes),
        lambda now: continuations(now, texts.tokenizer, config.prompts, task, layout),
    )


def _order(
    config: PretrainConfig, plan: Mapping[str, Any], train: Shards, seed: int, batches: Batches, beyond: int
) -> Order:
    """Which window is whose turn."""
    drawn = (train, plan["length"], seed, beyond)
    if config.mixture is None:
        return EpochOrder(*drawn)
    return MixedOrder(*drawn, config.mixture, batches, plan["steps"])


def _announce(
    context: Context, plan: dict[str, Any], shape: ModelConfig, training_tokens: int, lengths: tuple[float, float]
) -> None:
    """The plan and what it needs, printed before the first step. Raises Refused where it cannot fit into memory."""
    describe(plan, shape, training_tokens)
    seen = round(sum(lengths) / (2 if shape.has_encoder else 1))  # memory is linear in the mean of both sides
    sizes = (plan["precision"], plan["kernel"], plan["rows"], min(shape.context_length, seen), size())
    context.first(lambda: room_for(context.name, Step(shape, context.config, *sizes), free()))


def _seen(context: Context, order: Order, batches: Batches, steps: int) -> Seen:
    """What training read, without what it left out after spikes."""
    taken = Journal.read(context.out).seen(steps)
    return seen_in(order, [(batches.before(first), batches.before(end)) for first, end in taken])


def _whole(model: Transformer, shape: ModelConfig, ranks: Ranks) -> Transformer | None:
    """The whole model, on the CPU. Of several ranks the first gets it and the others nothing; all must call it."""
    if not ranks.several:
        return model.cpu()
    weights = gathered(model, ranks)
    if not ranks.leads:
        return None
    whole = Transformer(shape).eval()
    whole.load_state_dict(weights)
    return whole


def _texts(corpus: Path, split: Split) -> list[str]:
    return [row["text"] for row in documents(corpus, split)]


def _baselines(context: Context, corpus: Path) -> dict[str, Baseline]:
    def make() -> dict[str, Any]:
        measured = measure_baselines(_texts(corpus, "heldout"), _texts(corpus, "train"))
        return {name: each.to_json() for name, each in measured.items()}

    path = context.out / "baselines.json"
    return {name: Baseline.from_json(row) for name, row in context.first(lambda: _once(path, make)).items()}


def _tight(layout: Layout, task: Task, length: int) -> Layout:
    """With an encoder, a decoder's rows as long as the targets of a window, rounded up to 16: no more is trained on."""
    if not layout.has_encoder:
        return layout
    return dataclasses.replace(layout, room=min(layout.room, -(-task.room(length).target // 16) * 16))


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
    inputs=(
        Input("corpus", ("corpus",)),
        Input("tokenizer", ("tokenizer",), required=False),
        Input("model", LANGUAGE_MODEL_STAGES, required=False, model=True, named=True),
    ),
    check=check,
    here=here,
    distributed=True,
    logs=frozenset({HELDOUT, SAMPLES}),
)
