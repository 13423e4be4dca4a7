"""The settings of a corpus: its sources, its split, and every threshold of every step."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from lmlab.config import Config
from lmlab.corpus.characters import Spaceless
from lmlab.corpus.contamination.config import Decontamination
from lmlab.corpus.dedup.index import NearDuplicates
from lmlab.corpus.dedup.spans import DuplicateSentences, DuplicateSubstrings
from lmlab.corpus.engine import EngineName
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
from lmlab.corpus.steps.repeats import Repeats
from lmlab.corpus.steps.roots import Roots
from lmlab.corpus.steps.rules import CodeRules, ProseRules

MEBIBYTE = 1 << 20


class CorpusConfig(Config):
    """From sources to a clean corpus with a held-out part. Steps run in this order: normalise, repeats, language, rules,
    rule sets, keywords, redact; then what needs to know all documents: perplexity, classifier, duplicate sentences, exact
    and near duplicates, duplicate substrings, decontamination. All treat both splits alike, except that the last five
    favour the held-out part."""

    apart: ClassVar[frozenset[str]] = frozenset({"engine", "threads", "ray_address"})

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
    """How many tasks at a time. Default: the cores that this process may use. The output does not depend on it."""
    engine: EngineName = "auto"
    """`threads`; `processes`, which on several cores are faster; `auto`, processes where there is text enough to be worth
    their start; `ray`, on a Ray cluster whose nodes all see the run directory and the sources under the same paths. The
    output does not depend on it."""
    ray_address: str | None = None
    """The Ray cluster. Default: RAY_ADDRESS, else one of this machine's own, started for the build."""
    normalise: Normalise = Normalise()
    repeats: Repeats = Repeats()
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
    duplicate_sentences: DuplicateSentences = DuplicateSentences()
    exact_duplicates: bool = True
    near_duplicates: NearDuplicates = NearDuplicates()
    duplicate_substrings: DuplicateSubstrings = DuplicateSubstrings()
    decontamination: Decontamination = Decontamination()

    @field_validator("sources")
    @classmethod
    def _distinct(cls, sources: list[SourceConfig]) -> list[SourceConfig]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called '{twice[0]}'; give each its own name")
        return sources
