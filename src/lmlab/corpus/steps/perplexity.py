"""Perplexity under a model of the user's, and buckets by percentile as CCNet has them (Wenzek et al. 2020, 1911.00359)."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.corpus.ngram import NgramModel
from lmlab.corpus.steps.step import drop
from lmlab.corpus.steps.thresholds import Batch
from lmlab.errors import Refused

Scorer = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Texts -> (bits, units) of each: the bits that the model needs for it, and the tokens (or bytes) that it has."""

NETWORK = "lmlab.generate.likelihood:scorer"
"""Opens any other MODEL. A dotted path, imported when it is needed: that room is above this one."""


class Perplexity(Config):
    """Off unless `model` or `train` is given. Perplexity is 2^(bits / units): a unit is a token of a network, a byte of
    an n-gram model; percentiles do not depend on it, `maximum` does (ROOTS: 1500, of SentencePiece tokens)."""

    train: list[str] = Field(default_factory=list)
    """Names of the sources (CCNet: Wikipedia) whose training documents an n-gram model is made of. It is left in
    `perplexity/`. These sources are scored, but not filtered."""
    order: int = Field(default=5, ge=1, le=8)
    """Bytes in an n-gram of that model."""
    train_bytes: int = Field(default=64 << 20, ge=1024)
    """At most so much text makes it, documents chosen by a hash of their ids."""
    model: str | None = None
    """An n-gram model that another corpus left in `perplexity/`, or any MODEL of lmlab: a run, a checkpoint, `hf:...`."""
    scorer: str | None = None
    """Instead: `module:function` of your own, which takes `model` and returns a function of texts to (bits, units)."""
    percentiles: tuple[float, float] = (30, 60)
    """Where the head ends and where the tail begins, in each language (CCNet: 30 and 60)."""
    keep: list[Literal["head", "middle", "tail"]] = Field(default_factory=lambda: ["head", "middle", "tail"])
    """Buckets that stay; by default all do, and the bucket is a column."""
    maximum: float | None = Field(default=None, gt=0)
    """Drop above this perplexity."""

    @property
    def enabled(self) -> bool:
        return bool(self.train or self.model or self.scorer)

    @model_validator(mode="after")
    def _sensible(self) -> Perplexity:
        if self.train and self.model:
            raise ValueError("train and model are both given: expected one of them")
        if not 0 <= self.percentiles[0] <= self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles}: expected two rising numbers of 0 to 100")
        return self


class NgramScorer:
    """An n-gram model as a scorer: a unit is a byte."""

    def __init__(self, model: NgramModel) -> None:
        self.model = model

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.model.bits(texts), np.array([len(text.encode("utf-8")) for text in texts], float)


class NamedScorer:
    """The scorer that the settings name, opened where it is used: another process opens its own. One text after the
    other goes through it, since a network's engine serves one caller."""

    def __init__(self, config: Perplexity) -> None:
        self.config = config
        self._opened: Scorer | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if self._opened is None:
                self._opened = self.open()
            return self._opened(texts)

    def open(self) -> Scorer:
        """Raises Refused where the settings name none."""
        if saved := saved_ngram(self.config):
            return NgramScorer(NgramModel.load(saved))
        dotted = self.config.scorer or NETWORK
        module, _, name = dotted.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise Refused(f"perplexity.scorer: '{dotted}': {error}; expected module:function") from None
        return found(self.config.model)


def saved_ngram(config: Perplexity) -> Path | None:
    """The file of an n-gram model, if that is what `model` names."""
    if config.scorer is None and config.model is not None:
        for path in (Path(config.model).expanduser(), Path(config.model).expanduser() / NgramModel.FILE):
            if path.is_file() and path.name == NgramModel.FILE:
                return path
    return None


class PerplexityStep:
    """Adds `perplexity` (float32, null where not looked at)."""

    name = "perplexity"

    def __init__(self, config: Perplexity, scorer: Scorer, identity: object) -> None:
        self.config, self.scorer = config, scorer
        self.identity = ["perplexity", 1, config.model_dump(), identity]

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = Batch.of(table)
        bits, units = self.scorer(batch.table["text"].to_pylist())
        column = np.full(len(table), np.nan, np.float32)
        column[batch.rows] = np.exp2(np.minimum(np.asarray(bits) / np.maximum(units, 1), 100.0))
        return table.append_column("perplexity", pa.array(column, pa.float32(), from_pandas=True))


def cutoffs(languages: Sequence[str | None], values: np.ndarray, percentiles: Sequence[float]) -> dict[str, Any]:
    """{language: [where the head ends, where the tail begins]}; a language with under 100 documents has those of all
    documents, under the name "" (fewer say too little about a 30th percentile: a guess)."""
    names = np.array([language or "" for language in languages], dtype=object)
    cuts = {"": np.percentile(values, percentiles).tolist() if len(values) else [np.inf, np.inf]}
    for name in sorted(set(names) - {""}):
        mine = values[names == name]
        if len(mine) >= 100:
            cuts[name] = np.percentile(mine, percentiles).tolist()
    return cuts


class BucketStep:
    """Adds `perplexity_bucket` (head, middle, tail) and drops what is not to be kept."""

    name = "perplexity"

    def __init__(self, config: Perplexity, cuts: Mapping[str, Sequence[float]]) -> None:
        self.config, self.cuts = config, cuts
        self.identity = ["bucket", 1, config.model_dump(), dict(cuts)]

    def __call__(self, table: pa.Table) -> pa.Table:
        config = self.config
        buckets: list[str | None] = []
        reasons: list[str | None] = []
        for value, language, source in zip(
            table["perplexity"].to_pylist(), table["language"].to_pylist(), table["source"].to_pylist(), strict=True
        ):
            bucket = reason = None
            if value is not None:
                low, high = self.cuts.get(language or "", self.cuts[""])
                bucket = "head" if value < low else "middle" if value < high else "tail"
                if source not in config.train:
                    if config.maximum is not None and value > config.maximum:
                        reason = f"perplexity > {config.maximum:g}"
                    elif bucket not in config.keep:
                        reason = f"perplexity in the {bucket}"
            buckets.append(bucket)
            reasons.append(reason)
        table = table.append_column("perplexity_bucket", pa.array(buckets, pa.string()))
        return drop(table, self.name, reasons)
