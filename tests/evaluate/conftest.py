"""Small stand-ins: a tokenizer trained on a page of text, and an engine whose answers are a function of what it is
asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import pytest

from lmlab.evaluate.runner import Subject
from lmlab.instruct import families as kinds
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer, train


@dataclass
class Completion:
    ids: list[int]
    text: str
    finish_reason: str

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass
class FakeEngine:
    """Answers with `answer(ids, sampling)`; scores one nat a token. Counts its calls."""

    tokenizer: Tokenizer
    answer: object = None
    max_batch: int = 4
    precision: str = "float32"
    calls: list[int] = field(default_factory=list)

    def generate(self, prompts, samplings):
        self.calls.append(len(prompts))
        return [self._one(ids, sampling) for ids, sampling in zip(prompts, samplings, strict=True)]

    def _one(self, ids, sampling):
        text = self.answer(ids, sampling) if self.answer else _drawn(ids, sampling)
        tokens = self.tokenizer.encode(text)
        reason = "length" if len(tokens) > sampling.max_new_tokens else "stop"
        tokens = tokens[: sampling.max_new_tokens]
        return Completion(tokens, self.tokenizer.decode(tokens), reason)

    def score_documents(self, documents, window, stride):
        assert 1 <= stride <= window
        self.calls.append(len(documents))
        return [float(len(ids)) for ids in documents]


def _drawn(ids, sampling) -> str:
    seed = sampling.seed if sampling.temperature else 0
    number = hashlib.sha256(f"{ids} {seed}".encode()).digest()[0]
    return ["7", "12", "make", "", "Answer: 3"][number % 5]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [
        kinds.draw(kinds.FAMILIES[name](), "train", 1, i).prompt for name in ("copy", "arithmetic") for i in range(50)
    ]
    return train(texts, 400)


@pytest.fixture
def make_subject(tokenizer):
    def make(name="sft", answer=None, fingerprint="weights", context=4096) -> Subject:
        engine = FakeEngine(tokenizer, answer)
        return Subject(name, engine, tokenizer, Renderer(tokenizer), context, fingerprint)

    return make
