"""Quality by classifier: a document stays if a Pareto draw is above 1 - its score (GPT-3, 2005.14165, appendix A)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.corpus.classify import Quality, Settings
from lmlab.corpus.split import position
from lmlab.corpus.steps.step import drop
from lmlab.corpus.steps.thresholds import Batch
from lmlab.corpus.tokens import tokens


class Classifier(Config):
    """Off unless `good` or `model` is given. The good sources stay as they are; documents of the candidates are scored
    and kept by chance, so that a tail of low scores stays in. What it removes by slice: `lmlab corpus audit`."""

    good: list[str] = Field(default_factory=list)
    """Names of the sources that candidates should be like (GPT-3: WebText, Wikipedia and books). Without `model`, their
    training documents and the candidates' train a classifier, which is left in `classifier/`."""
    candidates: list[str] = Field(default_factory=list)
    """Names of the sources that are filtered. Empty: every source that is not good."""
    model: str | None = None
    """The folder `classifier` of a corpus that trained one, to be used as it is."""
    alpha: float | None = Field(default=9, gt=0)
    """Keep where a draw of numpy's `random.pareto(alpha)` is above 1 - score (GPT-3: 9, The Pile: 3): with probability
    (2 - score)^-alpha. The draw is a function of `seed` and the document's id. null: no draw."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Drop below this score (LLaMA dropped what was not classified as good: 0.5)."""
    seed: int = 0
    train_documents: int = Field(default=10_000, ge=10)
    """At most so many documents a class train it, chosen by a hash of their ids."""
    bits: int = Field(default=20, ge=8, le=26)
    """Features are hashed into 2^bits columns."""
    ngram: int = Field(default=2, ge=1, le=4)
    """Words, and sequences of up to so many of them; in scripts without spaces, characters."""
    epochs: int = Field(default=5, ge=1)
    learning_rate: float = Field(default=0.3, gt=0)
    l2: float = Field(default=1e-5, ge=0)

    @property
    def enabled(self) -> bool:
        return bool(self.good or self.model)

    @property
    def settings(self) -> Settings:
        return Settings(self.bits, self.ngram, self.epochs, self.learning_rate, self.l2, self.seed)

    @model_validator(mode="after")
    def _sensible(self) -> Classifier:
        both = sorted(set(self.good) & set(self.candidates))
        if both:
            raise ValueError(f"source '{both[0]}' is good and a candidate; expected one of the two")
        if self.enabled and self.alpha is None and self.threshold is None:
            raise ValueError("alpha and threshold are both null: nothing would be dropped; give one of them")
        return self


def draw(document: str, seed: int, alpha: float) -> float:
    """A sample of numpy's pareto(alpha) (Lomax: (1 - u)^(-1 / alpha) - 1), a pure function of (seed, document id)."""
    return float((1 - position(document, (seed << 16) + 0xA7E0)) ** (-1 / alpha) - 1)


class ClassifierStep:
    """Adds `classifier_score` (float32, null where not scored) and drops."""

    name = "classifier"

    def __init__(self, config: Classifier, model: Quality, identity: object) -> None:
        self.config, self.model = config, model
        self.identity = ["classifier", 1, config.model_dump(), identity]

    def __call__(self, table: pa.Table) -> pa.Table:
        config = self.config
        batch = Batch.of(table)
        sources, ids = batch.table["source"].to_pylist(), batch.table["id"].to_pylist()
        scores = self.model.score(ids, tokens(*batch.bytes, fold=True))
        column = np.full(len(table), np.nan, np.float32)
        reasons: list[str | None] = [None] * len(table)
        for row, source, each, score in zip(batch.rows, sources, ids, scores, strict=True):
            column[row] = score
            if source in config.good or (config.candidates and source not in config.candidates):
                continue
            if config.threshold is not None and score < config.threshold:
                reasons[row] = f"score < {config.threshold:g}"
            elif config.alpha is not None and draw(each, config.seed, config.alpha) <= 1 - score:
                reasons[row] = f"not drawn (Pareto, alpha {config.alpha:g})"
        table = table.append_column("classifier_score", pa.array(column, pa.float32(), from_pandas=True))
        return drop(table, self.name, reasons)
