"""Longer windows than were trained: the numbers are the model's own, every token counts once, and a table says cannot."""

import math

import pytest
import torch
from pydantic import ValidationError

from lmlab.generate.engine import Engine
from lmlab.model.config import ModelConfig
from lmlab.model.context import with_context
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer, train
from lmlab.train.lengths import by_length
from lmlab.train.pretrain import PretrainConfig

TEXTS = [f"The number {n} of naïve Zoë's café, — and so on: {n * n}.\n" * 9 for n in range(3)] + ["short"]


def make(position: str, vocab_size: int = 50) -> Transformer:
    shape = {"layers": 2, "d_model": 32, "heads": 4, "context_length": 24}
    model = Transformer(ModelConfig(**shape, position=position, vocab_size=vocab_size)).initialise(0).eval()
    with torch.no_grad():
        model.embedding.weight *= 20
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, 300)


@pytest.mark.parametrize("position", ["rope", "alibi", "relative-bias", "none"])
def test_bits_are_those_of_windows_read_alone(tokenizer: Tokenizer, position: str) -> None:
    model = make(position, vocab_size=tokenizer.vocab_size)
    found = by_length(model, tokenizer, TEXTS, "float32", [1, 2, 4])
    long = [ids for ids in map(tokenizer.encode, TEXTS) if len(ids) >= 96]
    assert len(long) == 3
    kept = [ids[: len(ids) // 96 * 96] for ids in long]
    size = sum(len(tokenizer.decode(ids).encode()) for ids in kept)
    for length in (24, 48, 96):
        longer, bits = with_context(model, length), 0.0
        for ids in kept:
            given = torch.tensor([tokenizer.eos_id, *ids])
            for at in range(0, len(ids), length):
                logits = longer(given[None, at : at + length]).logits()[0].detach()
                target = given[at + 1 : at + length + 1]
                bits += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum")) / math.log(2)
        score = found["by_length"][str(length)]
        assert score["n"] == 3 and score["value"] == pytest.approx(bits / size, rel=1e-4)
    assert list(found["by_position"]) == ["0-23", "24-47", "48-95"]


def test_places_add_up_to_the_longest_window(tokenizer: Tokenizer) -> None:
    model = make("none", vocab_size=tokenizer.vocab_size)
    ids = tokenizer.encode(TEXTS[0])
    found = by_length(model, tokenizer, TEXTS[:1], "float32", [1, 2])
    windows = len(ids) // 48
    sizes = {"0-23": 0, "24-47": 0}
    for at in range(windows):
        for place, low in (("0-23", 0), ("24-47", 24)):
            until = [len(tokenizer.decode(ids[: 48 * at + low + n]).encode()) for n in (0, 24)]
            sizes[place] += until[1] - until[0]
    total = sum(found["by_position"][place]["value"] * size for place, size in sizes.items())
    assert total / sum(sizes.values()) == pytest.approx(found["by_length"]["48"]["value"], rel=0.02)


def test_what_cannot_be_read_is_said_and_the_rest_is_measured(tokenizer: Tokenizer) -> None:
    model = make("learned", tokenizer.vocab_size)
    found = by_length(model, tokenizer, TEXTS, "float32", [1, 4])
    assert found["by_length"]["24"]["n"] == 3 and found["by_position"] == {}
    assert found["by_length"]["96"] == "cannot: a learned table of positions has no row past 24"
    none = by_length(model, tokenizer, ["too short"], "float32", [1, 4])
    assert none["by_length"]["24"] == "cannot: no held-out document has 96 tokens"


def test_token_scores_add_up_to_their_document_s() -> None:
    engine = Engine(make("alibi"), start_id=0)
    documents = [[1, 2, 3], [], list(range(40)), [7]]
    for window, stride in ((24, 12), (24, 24), (8, 3)):
        tokens = engine.score_tokens(documents, window, stride)
        assert [len(each) for each in tokens] == [3, 0, 40, 1]
        assert [math.fsum(each) for each in tokens] == pytest.approx(engine.score_documents(documents, window, stride))


def test_multiples_must_fit_into_the_largest() -> None:
    assert PretrainConfig(lengths=(1, 2, 4, 8)).lengths == (1, 2, 4, 8)
    with pytest.raises(ValidationError, match="each divides the largest, found"):
        PretrainConfig(lengths=(2, 3))


def test_lengths_belong_to_plain_text_read_from_the_left() -> None:
    with pytest.raises(ValidationError, match="belongs to a causal-decoder and causal-lm"):
        PretrainConfig(lengths=(1, 2), objective="prefix-lm")
