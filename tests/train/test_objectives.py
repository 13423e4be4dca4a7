"""Pretraining with each objective: batches are a function of seed and step, losses fall, what cannot be is refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lmlab import recipe
from lmlab.corpus.shards import Shards, write_shards
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer
from lmlab.objective.blanks import BlankTask, Marks
from lmlab.objective.denoising import DenoisingTask
from lmlab.objective.example import largest_text
from lmlab.objective.language_model import LanguageModel, MixedLanguageModel
from lmlab.objective.layout import Layout
from lmlab.objective.middle import MiddleTask
from lmlab.objective.mixture import MixtureTask
from lmlab.objective.settings import BlankInfilling, SentencePermutation, TextInfilling
from lmlab.objective.tasks import PrefixTask, SpanTask
from lmlab.train.data import ExampleWindows
from lmlab.train.step import accumulate, make_forward

CONTEXT, PAD, END = 32, 1, 0
SPANS = SpanTask(0.15, 3.0, range(20, 40), END)
BLANKS = BlankTask(BlankInfilling(token=1, sentence=1, document=1), Marks(20, 21, 22, 23, 24), np.array([7]))
TASKS = {
    "prefix-lm": PrefixTask(),
    "span-corruption": SPANS,
    "denoising": DenoisingTask((SentencePermutation(), TextInfilling()), 20, END, np.array([7])),
    "blank-infilling": BLANKS,
    "mixture": MixtureTask([SPANS, PrefixTask(mode=39), BLANKS], [1, 2, 1], 1),
    "fim": MiddleTask(0.5, 0.5, (20, 21, 22), END, lambda text: [*map(ord, text)], lambda ids: "".join(map(chr, ids))),
}
ARCHITECTURES = ("causal-decoder", "prefix-decoder", "encoder-decoder")
PAIRS = [pair for pair in itertools.product(TASKS, ARCHITECTURES) if pair != ("fim", "encoder-decoder")]


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Shards:
    """Documents that count upwards: a token says what the next one is."""
    texts = [f"{start} {length}" for start, length in zip(range(60), itertools.cycle((3, 40, 17)))]

    def encode(batch: list[str]) -> list[list[int]]:
        pairs = (map(int, text.split()) for text in batch)
        return [[2 + (start + i) % 15 for i in range(length)] for start, length in pairs]

    documents = ((str(number), "source", text) for number, text in enumerate(texts))
    return write_shards(tmp_path_factory.mktemp("shard") / "tokens", documents, encode, end_of_text=END, vocabulary=40)


def source_of(shard: Shards, name: str, architecture, **changed) -> ExampleWindows:
    encoder = architecture == "encoder-decoder"
    layout = Layout(architecture, CONTEXT, CONTEXT if encoder else 0, PAD, PAD)
    settings = {"batches": 8, "micro_batches": 2, "seed": 3, "separate": True} | changed
    length = largest_text(TASKS[name], CONTEXT, encoder)
    return ExampleWindows(shard, TASKS[name], layout, length, **settings)


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_a_step_s_batches_depend_on_seed_and_step_alone(shard: Shards, name: str, architecture: str) -> None:
    one, other = source_of(shard, name, architecture), source_of(shard, name, architecture)
    other(0)
    for step in (5, 2):
        for a, b in zip(one(step), other(step), strict=True):
            assert all(
                torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()) if isinstance(x, torch.Tensor)
            )
    again = source_of(shard, name, architecture, seed=4)(2)
    assert not all(
        a.tokens_BT.shape == b.tokens_BT.shape and torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(again, one(2))
    )


def test_an_epoch_draws_anew(shard: Shards) -> None:
    source = source_of(shard, "prefix-lm", "causal-decoder", separate=False)
    first, second = (next(source.examples(4 * source.length, number)) for number in (4, 4 + source.order.windows))
    assert (
        np.concatenate((first.source, first.target)).tolist() == np.concatenate((second.source, second.target)).tolist()
    )
    assert len(first.source) != len(second.source)


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_training_lowers_the_loss(shard: Shards, name: str, architecture: str) -> None:
    shape = ModelConfig(layers=1, d_model=32, heads=2, vocab_size=40, context_length=CONTEXT, architecture=architecture)
    torch.manual_seed(0)
    network, objective = Transformer(shape).initialise(0).train(), LanguageModel()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    source, forward = source_of(shard, name, architecture), make_forward(network, objective, False)
    losses = []
    for step in range(40):
        found = accumulate(forward, objective, source(step), "float32")
        losses.append(found["lm"])
        optimizer.step()
        optimizer.zero_grad()
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_blanks_with_two_positions_are_learnt_by_a_glm(shard: Shards) -> None:
    shape = {"architecture": "prefix-decoder", "position": "glm-2d", "context_length": CONTEXT, "vocab_size": 40}
    network = Transformer(ModelConfig.model_validate(shape | {"layers": 1, "d_model": 32, "heads": 2})).initialise(0)
    layout = Layout("prefix-decoder", CONTEXT, 0, PAD, PAD, blocks=True)
    source = ExampleWindows(shard, BLANKS, layout, 20, batches=8, micro_batches=1, seed=0, separate=True)
    optimizer, objective = torch.optim.AdamW(network.parameters(), lr=1e-2), LanguageModel()
    losses = []
    for step in range(40):
        losses.append(accumulate(make_forward(network, objective, False), objective, source(step), "float32")["lm"])
        optimizer.step()
        optimizer.zero_grad()
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_a_mixture_reports_each_part_s_loss_over_its_own_tokens(shard: Shards) -> None:
    shape = ModelConfig(layers=1, d_model=32, heads=2, vocab_size=40, context_length=CONTEXT)
    network, objective = Transformer(shape).initialise(0), MixedLanguageModel(["spans", "prefix", "blanks"])
    batches = source_of(shard, "mixture", "causal-decoder", batches=24)(0)
    found = accumulate(make_forward(network, objective, False), objective, batches, "float32")
    sums, counts = dict.fromkeys(objective.names, 0.0), dict.fromkeys(objective.names, 0)
    for batch in batches:
        logprobs = network(**objective.inputs(batch)).logits().log_softmax(-1)
        nats_BT = -logprobs.gather(-1, batch.targets_BT[..., None])[..., 0]
        for part, name in enumerate(objective.names):
            mine = batch.mask_BT & (batch.parts_BT == part)
            sums[name] += float(nats_BT[mine].sum().detach())
            counts[name] += int(mine.sum())
    assert all(counts.values())
    for name in objective.names:
        assert found[f"lm/{name}"] == pytest.approx(sums[name] / counts[name], rel=1e-4)
    assert found["loss"] == pytest.approx(sum(sums.values()) / sum(counts.values()), rel=1e-4)
    objective.names = ["spans", "other", "other"]  # two parts of one name are reported together
    found = accumulate(make_forward(network, objective, False), objective, batches, "float32")
    both = [names[1] + names[2] for names in (list(sums.values()), list(counts.values()))]
    assert found["lm/other"] == pytest.approx(both[0] / both[1], rel=1e-4)


RECIPE = """
corpus: {sources: [{name: text, path: PLACE}]}
tokenizer: {vocab_size: 512, sentinels: %d}
pretrain: {minutes: null, steps: 2, objective: %s, model: {d_model: 64, architecture: %s, context_length: %d}}
"""


@pytest.mark.parametrize(
    ("sentinels", "objective", "architecture", "context", "message"),
    [
        (0, "causal-lm", "encoder-decoder", 64, "leaves an encoder nothing to read"),
        (0, "span-corruption", "encoder-decoder", 512, "needs 28 sentinels .* the tokenizer has 0: set tokenizer.sent"),
        (20, "span-corruption", "causal-decoder", 512, "needs 23 sentinels .* the tokenizer has 20"),
        (0, "prefix-lm, position: x", "causal-decoder", 64, "objective"),
        (0, "fim", "encoder-decoder", 64, "leaves an encoder nothing to read"),
        (0, "span-corupt", "causal-decoder", 64, "span-corruption"),
        (0, "{name: span-corruption, rate: 2}", "causal-decoder", 64, "less than 1"),
    ],
)
def test_what_cannot_be_is_refused_when_the_recipe_is_read(
    tmp_path: Path, sentinels: int, objective: str, architecture: str, context: int, message: str
) -> None:
    text = RECIPE.replace("PLACE", str(tmp_path)) % (sentinels, objective, architecture, context)
    with pytest.raises(Refused, match=message):
        recipe.loads(text)


def test_what_can_be_is_read(tmp_path: Path) -> None:
    extra = {
        "denoising": ["<mask>"],
        "blank-infilling": ["[MASK]", "[sMASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>"],
        "fim": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        "ul2": ["[R]", "[S]", "[X]"],
        "prefix-lm": [],
        "span-corruption": [],
    }
    for objective, architecture in itertools.product(extra, ARCHITECTURES):
        if (objective, architecture) == ("fim", "encoder-decoder"):
            continue
        text = RECIPE.replace("PLACE", str(tmp_path)) % (100, objective, architecture, 128)
        tokens = f"tokenizer.extra_tokens={json.dumps(extra[objective])}"
        step = recipe.loads(text, overrides=[tokens]).arms[""][-1]
        assert step.config.objective.name == objective
        if extra[objective]:
            with pytest.raises(Refused, match="needs special tokens .* set tokenizer.extra_tokens"):
                recipe.loads(text)
