"""The settings of decontamination."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lmlab.config import Config

RULES: dict[str, tuple[int | None, float]] = {
    "gpt2": (8, 0.0),
    "gpt3": (None, 0.0),
    "palm": (8, 0.7),
}
"""Published rules: words in an n-gram (None: the 5th percentile of the items' lengths in words, between 8 and 13) and
the least share of an item's n-grams that makes it not clean (0: any). GPT-2 (Radford et al. 2019, section 4) gives the
share of 8-grams and no threshold; GPT-3 2005.14165, appendix C; PaLM 2204.02311, section 8: at least 70% of 8-grams."""


class EvaluationSet(Config):
    """A set of items that the corpus must not hold."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """What the report calls it. Default: the last part of `path`."""
    path: str = Field(min_length=1)
    """A JSON Lines file (.gz and .zst too), or `task:NAME`, the test items of an evaluation task of lmlab's."""
    fields: list[str] = Field(default_factory=list)
    """The fields that make an item's text, in order (strings, or lists of them). Default: all that hold strings."""
    rule: Literal["gpt2", "gpt3", "palm"] = "gpt3"
    ngram: int | None = Field(default=None, ge=2)
    """Words in an n-gram, instead of the rule's."""
    share: float | None = Field(default=None, ge=0, le=1)
    """An item is not clean if at least this share of its n-grams stands in training documents (0: any), instead of the
    rule's."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many items, the first."""

    @model_validator(mode="after")
    def _named(self) -> EvaluationSet:
        if not self.name:
            last = self.path.rstrip("/").replace(":", "/").rsplit("/", 1)[-1].split(".")[0]
            object.__setattr__(self, "name", last or "set")
        return self

    @property
    def least(self) -> float:
        """The least share that makes an item not clean; above 0, since an item that shares nothing is clean."""
        share = RULES[self.rule][1] if self.share is None else self.share
        return max(share, 1e-9)


class Decontamination(Config):
    """Training documents that repeat what is measured with are dropped or cut: word n-grams as in GPT-3 (2005.14165,
    appendix C). Held-out documents of the corpus are always looked at, evaluation sets where they are given.
    """

    enabled: bool = True
    ngram: int = Field(default=13, ge=2)
    """Words in an n-gram, for held-out documents (GPT-3: 13)."""
    common: int = Field(default=10, ge=1)
    """An n-gram in more training documents than this is boilerplate (a licence, an import block) and counts for
    nothing; GPT-3's rule and number. An item of an evaluation set of which a document holds `heldout_share` leaks all the
    same: items that are much copied would else go unseen."""
    document_share: float = Field(default=0.2, gt=0, le=1)
    """Drop a training document if at least this share of its n-grams is found in held-out documents."""
    heldout_share: float = Field(default=0.5, gt=0, le=1)
    """Drop a training document that holds at least this share of one held-out document's n-grams: a long document may
    hold a short one whole, and then its own share is small. For items of evaluation sets, their `share` comes first."""
    evaluation: list[EvaluationSet] = Field(default_factory=list)
    """Evaluation sets."""
    action: Literal["drop", "cut", "report"] = "drop"
    """`drop` the document; `cut`, as GPT-3 did: the matching spans go with `around` characters on each side, pieces of
    fewer than `piece` characters go too, and a document in more than `pieces` pieces goes whole; or only `report`."""
    around: int = Field(default=200, ge=0)
    """GPT-3: 200."""
    piece: int = Field(default=200, ge=0)
    """GPT-3: 200."""
    pieces: int = Field(default=10, ge=1)
    """GPT-3: 10."""

    @model_validator(mode="after")
    def _distinct(self) -> Decontamination:
        names = ["heldout", *(each.name for each in self.evaluation)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two evaluation sets are called '{twice[0]}' (heldout is taken); give each its own name")
        return self
