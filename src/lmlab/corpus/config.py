"""The settings of a corpus: its sources, its split, and every threshold of every step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lmlab.config import Config
from lmlab.corpus.characters import Spaceless
from lmlab.corpus.privacy.config import Redact
from lmlab.corpus.source import SourceConfig
from lmlab.corpus.steps.c4 import C4
from lmlab.corpus.steps.classifier import Classifier
from lmlab.corpus.steps.fineweb import FineWeb
from lmlab.corpus.steps.gopher import Gopher
from lmlab.corpus.steps.keywords import Keywords
from lmlab.corpus.steps.language import Language
from lmlab.corpus.steps.normalise import Normalise
from lmlab.corpus.steps.perplexity import Perplexity
from lmlab.corpus.steps.roots import Roots
from lmlab.corpus.steps.rules import CodeRules, ProseRules

MEBIBYTE = 1 << 20


class NearDuplicates(Config):
    """MinHash with locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3).

    A pair of Jaccard similarity s meets in a band with probability 1 - (1 - s^rows)^bands; the defaults put the middle
    of that curve near (1 / bands)^(1 / rows) = 0.71. Pairs that met are joined only if their signatures agree on at
    least `threshold` of the hashes. Of a cluster one copy stays: held-out before training, then the order of sources.
    """

    enabled: bool = True
    shingle: int = Field(default=5, ge=1)
    """Words in a shingle (FineWeb: 5)."""
    bands: int = Field(default=16, ge=1)
    rows: int = Field(default=8, ge=1)
    """Hashes in a band; a signature has bands x rows."""
    threshold: float = Field(default=0.7, ge=0, le=1)
    """Least share of equal hashes that verifies a pair."""
    seed: int = 0


class Decontamination(Config):
    """Training documents that repeat the held-out set are dropped: word n-grams as in GPT-3 (2005.14165, appendix C),
    simplified: a whole document goes, not a span of it with 200 characters around.
    """

    enabled: bool = True
    ngram: int = Field(default=13, ge=2)
    """Words in an n-gram (GPT-3: 13)."""
    common: int = Field(default=10, ge=1)
    """An n-gram in more training documents than this is boilerplate (a licence, an import block) and counts for
    nothing; GPT-3's rule and number."""
    document_share: float = Field(default=0.2, gt=0, le=1)
    """Drop a training document if at least this share of its n-grams is found in held-out documents."""
    heldout_share: float = Field(default=0.5, gt=0, le=1)
    """Drop a training document that holds at least this share of one held-out document's n-grams: a long document may
    hold a short one whole, and then its own share is small."""


class CorpusConfig(Config):
    """From sources to a clean corpus with a held-out part. Steps run in this order: normalise, language, rules, redact,
    exact and near duplicates, decontamination; all treat both splits alike, except that the last two favour the
    held-out part."""

    sources: list[SourceConfig] = Field(
        default_factory=lambda: [
            SourceConfig(name="code", path="python:stdlib", extract="code"),
            SourceConfig(name="docstrings", path="python:stdlib", extract="docstrings"),
            SourceConfig(name="topics", path="python:topics"),
        ],
        min_length=1,
    )
    heldout_fraction: float = Field(default=0.02, gt=0, lt=1)
    """Share of files (of rows, in JSON Lines, Parquet and single text files) that is held out, chosen by a hash of
    their names before anything is extracted: a file is on one side in every source."""
    heldout_minimum: int = Field(default=12, ge=1)
    """At least so many files or rows are held out, as long as that is no more than a quarter of them."""
    heldout_seed: int = 0
    max_rejected: float = Field(default=0.01, ge=0, le=1)
    """The stage fails if more than this share of a source's records is broken."""
    max_record_bytes: int = Field(default=16 * MEBIBYTE, ge=1024)
    """A record (a line, a code file, a row) longer than this is set aside, unread."""
    cut_bytes: int = Field(default=65536, ge=1024)
    """A plain text file longer than this is cut at blank lines into documents of about this size."""
    max_expansion: float = Field(default=200, ge=1)
    """A compressed file that becomes more than so many times its size (after the first 128 MiB) is a bomb: what was read
    until there is kept."""
    max_window_bytes: int = Field(default=128 * MEBIBYTE, ge=MEBIBYTE)
    """The memory that a compressed file may ask for. Reddit's monthly dumps ask for 2 GiB (2147483648)."""
    shard_bytes: int = Field(default=4 * MEBIBYTE, ge=4096)
    """Input bytes in a shard, the unit of parallel work and of resuming (a file is never split over shards)."""
    threads: int | None = Field(default=None, ge=1)
    """Default: the cores that this process may use. The output does not depend on it."""
    normalise: Normalise = Normalise()
    language: Language = Language()
    prose_rules: ProseRules = ProseRules()
    code_rules: CodeRules = CodeRules()
    rule_sets: list[Literal["gopher", "c4", "fineweb", "roots"]] = Field(default_factory=list)
    """Published sets of rules for prose, exact and with all their thresholds below; they run in this order whatever the
    order here. `prose_rules` is Gopher's set loosened for small technical texts; beside `gopher`, switch it off."""
    gopher: Gopher = Gopher()
    c4: C4 = C4()
    fineweb: FineWeb = FineWeb()
    roots: Roots = Roots()
    keywords: Keywords = Keywords()
    spaceless: Spaceless = Spaceless()
    perplexity: Perplexity = Perplexity()
    classifier: Classifier = Classifier()
    redact: Redact = Redact()
    exact_duplicates: bool = True
    near_duplicates: NearDuplicates = NearDuplicates()
    decontamination: Decontamination = Decontamination()

    @field_validator("sources")
    @classmethod
    def _distinct(cls, sources: list[SourceConfig]) -> list[SourceConfig]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called '{twice[0]}'; give each its own name")
        return sources
