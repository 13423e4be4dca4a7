"""A zero-shot task for models of any objective: which of four pieces of text goes on from the one that is given?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lmlab.corpus.shards import Shards
from lmlab.model.store import load_model
from lmlab.objective.build import make_task
from lmlab.objective.example import Ids
from lmlab.objective.layout import Layout
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.heldout import score_examples
from lmlab.train.pretrain_config import PretrainConfig

WAYS = 4
PIECE = 16
"""Tokens of what is given and of each continuation."""


def accuracy(place: Path, stage: str, questions: int = 300) -> float:
    """Share of questions in which the true continuation is the likeliest, each asked in the format that the model was
    trained in. Chance is 1 / WAYS. The questions are made of the held-out documents and are the same for every model of
    the same tokens."""
    settings = json.loads((place / stage / "provenance.json").read_text(encoding="utf-8"))["config"]
    config = PretrainConfig.model_validate(settings)
    model, tokenizer = load_model(place / stage / "model"), Tokenizer.load(place / stage / "model")
    task, shape, room = make_task(config.objective, tokenizer), model.config, config.model.context_length
    encoder = room if shape.architecture == "encoder-decoder" else 0
    layout = Layout(shape.architecture, room, encoder, tokenizer.pad_id, tokenizer.pad_id, shape.position == "glm-2d")
    shards = Shards(place / stage / "tokens" / "heldout", verify=False)
    asked = questions_of([np.asarray(shards.document(i), dtype=np.int64) for i in range(len(shards))], questions)
    examples = [task.continuation(given, each) for given, choices in asked for each in choices]
    nats_QW = np.array(score_examples(model, examples, layout)).reshape(len(asked), WAYS)
    return float((nats_QW.argmin(axis=1) == 0).mean())


def questions_of(documents: list[Ids], count: int, seed: int = 0) -> list[tuple[Ids, list[Ids]]]:
    """(given, [the true continuation, three pieces of as many tokens from anywhere in the documents]), drawn by Philox."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x63686F]))
    long = [ids for ids in documents if len(ids) >= 2 * PIECE]
    weights = np.array([len(ids) - 2 * PIECE + 1 for ids in long], dtype=np.float64)

    def piece(length: int) -> Ids:
        ids = long[rng.choice(len(long), p=weights / weights.sum())]
        start = int(rng.integers(0, len(ids) - length + 1))
        return ids[start : start + length]

    found = []
    for _ in range(count):
        text = piece(2 * PIECE)
        found.append((text[:PIECE], [text[PIECE:], *(piece(PIECE) for _ in range(WAYS - 1))]))
    return found
