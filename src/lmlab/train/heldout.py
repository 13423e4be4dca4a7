"""Bits of held-out documents, in the format that the model was trained in, so that architectures and objectives compare.

after          bits of whole documents. A model that learnt each token from all before it is read over sliding windows, every
               token once. Any other (an encoder-decoder, a denoising objective) writes each piece of half a window after
               the piece before it, a document's first piece after the end-of-text token alone.
continuation   bits of every piece but the first, given the piece before it: the same split for all models of a context, but for
               denoising in a decoder alone, whose format gives the piece before twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lmlab.corpus.store import documents
from lmlab.generate.engine import Engine
from lmlab.generate.weights import Precision
from lmlab.measure import Score, ratio
from lmlab.model.transformer import Transformer
from lmlab.objective.example import Example, Ids, Task
from lmlab.objective.language_model import LanguageModel
from lmlab.objective.layout import Layout
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.step import autocast

MARGIN = 8
"""Tokens of a context left free for what a format adds: sentinels, end tokens, mode tokens."""

PASS_TOKENS = 1 << 14
"""Tokens of rows in one forward pass (guessed)."""


def piece_tokens(task: Task, layout: Layout) -> int:
    """Tokens of a piece: half a context, but for the margin; fewer where a continuation's format needs more room."""
    context = layout.encoder_room or layout.room
    for n in range(max(context // 2, context - MARGIN) // 2, 1, -1):
        ids = np.zeros(n, dtype=np.int64)
        if layout.fits(task.continuation(ids, ids)):
            return n
    return 1


class Documents(Protocol):
    """Documents as ids, such as token shards hold them."""

    def __len__(self) -> int: ...
    def document(self, index: int) -> list[int]: ...


class Heldout:
    """The held-out documents of a corpus as tokens, and the bytes that these spell."""

    def __init__(self, shard: Documents, tokenizer: Tokenizer, corpus: Path, piece: int) -> None:
        """`piece`: see `piece_tokens`."""
        self.shard, self.tokenizer, self.corpus, self.piece = shard, tokenizer, corpus, piece

    def after(self, model: Transformer, task: Task, layout: Layout, precision: Precision) -> list[float]:
        """Bits of each document."""
        if task.plain and not layout.has_encoder:
            engine = Engine(model, self.tokenizer, precision=precision)
            length = model.config.context_length
            ids = [self.shard.document(i) for i in range(len(self.shard))]
            return [nats / math.log(2) for nats in engine.score_documents(ids, window=length, stride=length // 2)]
        bits = self._bits(model, task, layout, precision, self._first)
        return [a + b for a, b in zip(bits, self.continuation_bits(model, task, layout, precision), strict=True)]

    def continuation_bits(self, model: Transformer, task: Task, layout: Layout, precision: Precision) -> list[float]:
        """Bits of each document's pieces but the first, given the piece before."""
        return self._bits(model, task, layout, precision, _pairs)

    def continuation(self, bits: Sequence[float]) -> Score:
        """`continuation_bits` over the bytes that they are of; documents are the units of the interval."""
        pairs = [(each, size) for each, size in zip(bits, self._continuation_bytes, strict=True) if size]
        return ratio([each for each, _ in pairs], [size for _, size in pairs])

    def _pieces(self, index: int) -> list[Ids]:
        """A document, the end-of-text token before it, cut into pieces; one shorter than a window is cut in two."""
        ids = np.array([self.tokenizer.eos_id, *self.shard.document(index)], dtype=np.int64)
        return np.split(ids, range(self._first_piece(len(ids)), len(ids), self._first_piece(len(ids))))

    def _first_piece(self, length: int) -> int:
        return max(1, min(self.piece, -(-length // 2)))

    def _first(self, pieces: list[Ids]) -> list[tuple[Ids, Ids]]:
        return [(pieces[0][:1], pieces[0][1:])] if len(pieces[0]) > 1 else []

    @cached_property
    def _continuation_bytes(self) -> list[int]:
        found = []
        for index, row in enumerate(documents(self.corpus, "heldout")):
            ids = self.shard.document(index)
            given = self._first_piece(len(ids) + 1) - 1  # tokens of text in the first piece
            text = self.tokenizer.decode(ids)
            if text == row["text"]:
                start = self.tokenizer.encoding(text).offsets[given][0] if given < len(ids) else len(text)
                found.append(len(text[start:].encode("utf-8")))
            else:  # the tokenizer lost something, and the model is not asked for more than tokens spell
                before = self.tokenizer.decode(ids[:given])
                found.append(max(0, len(text.encode("utf-8")) - len(before.encode("utf-8"))))
        return found

    def _bits(
        self,
        model: Transformer,
        task: Task,
        layout: Layout,
        precision: Precision,
        pairs: Callable[[list[Ids]], list[tuple[Ids, Ids]]],
    ) -> list[float]:
        owners, examples = [], []
        for index in range(len(self.shard)):
            for before, after in pairs(self._pieces(index)):
                owners.append(index)
                examples.append(task.continuation(before, after))
        totals = [0.0] * len(self.shard)
        for owner, nats in zip(owners, score_examples(model, examples, layout, precision), strict=True):
            totals[owner] += nats / math.log(2)
        return totals


def _pairs(pieces: list[Ids]) -> list[tuple[Ids, Ids]]:
    return list(itertools.pairwise(pieces))


@torch.inference_mode()
def score_examples(
    model: Transformer, examples: Sequence[Example], layout: Layout, precision: str = "float32"
) -> list[float]:
    """-log P in nats of what each example learns, laid out as in training."""
    training = model.training
    model.eval()
    found = [nats for group in _groups(examples, layout) for nats in _score(model, group, layout, precision)]
    model.train(training)
    return found


def _groups(examples: Sequence[Example], layout: Layout) -> Iterator[Sequence[Example]]:
    size = max(1, PASS_TOKENS // layout.room)
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _score(model: Transformer, examples: Sequence[Example], layout: Layout, precision: str) -> list[float]:
    batch, places = layout.batch(examples)
    mask_BT = batch.mask_BT
    with autocast(precision):
        output = model(**LanguageModel().inputs(batch))
        hidden_ND, targets_N = output.hidden_BTD[mask_BT], batch.targets_BT[mask_BT]
        nats = []
        for start in range(0, len(hidden_ND), 256):
            logits = output.logits(hidden_ND[start : start + 256])
            target = targets_N[start : start + 256, None]
            nats.append(logits.logsumexp(-1) - logits.gather(1, target)[:, 0])
    assert batch.segments_BT is not None
    width = int(batch.segments_BT.max()) + 1
    slots = torch.arange(len(mask_BT))[:, None] * width + batch.segments_BT
    sums = torch.zeros(len(mask_BT) * width, dtype=torch.float64)
    sums.index_add_(0, slots[mask_BT], torch.cat(nats).double())
    return [float(sums[row * width + segment]) for row, segment in places]
