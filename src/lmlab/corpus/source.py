"""The settings of one source of documents: where it is, how it is read, and what of it is wanted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lmlab.config import Config
from lmlab.corpus.arithmetic import Arithmetic
from lmlab.errors import nearest

Reader = Literal[
    "auto", "text", "code", "jsonl", "parquet", "warc", "wet", "wikipedia", "books", "latex", "stackexchange",
    "submissions", "dialogue",
]  # fmt: skip


class Web(Config):
    """Of pages from a crawl (readers `warc` and `wet`), and of links that people recommended (`submissions`)."""

    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """What takes the main text out of HTML. trafilatura is what RefinedWeb and FineWeb used, and is many times slower."""
    urls: str = ""
    """Keep only these pages: a file with an address a line, or a file or folder of submissions (as the reader
    `submissions` takes them) whose links are used."""
    karma: int = 3
    """Least score of a submission whose link or text counts (WebText: 3)."""


class Code(Config):
    """Of code, as a tree of files or as rows of a Parquet or JSON Lines file (`path_field` says which)."""

    path_field: str = ""
    """Field or column with the file's name: rows are files of code then, each of the language that its name tells."""
    license_field: str = ""
    """Field or column with the licence, or with a list of licences, all of which must be allowed."""
    licenses: list[str] = Field(default_factory=list)
    """Keep only code under these licences (SPDX identifiers; `permissive` stands for the usual permissive ones); a file
    whose licence is not known is set aside. In a tree the licence is the SPDX line at the top of the file, or the
    LICENSE or COPYING file that is nearest above it. Empty: all."""
    languages: list[str] = Field(default_factory=list)
    """Keep only these languages (`python`, `c++`, ...). Empty: all."""
    generated: Literal["auto", "keep", "drop"] = "auto"
    """Generated and minified files: set aside, or kept. auto: set aside, but for Python's own library."""

    @field_validator("languages")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        from lmlab.corpus.languages import NAMES

        for name in names:
            if name.lower() not in NAMES:
                raise ValueError(f"the language '{name}' is not known{nearest(name.lower(), NAMES)}")
        return [name.lower() for name in names]


class Questions(Config):
    """Of questions with their answers (reader `stackexchange`)."""

    answers: int | None = Field(default=None, ge=1)
    """At most so many answers a question, the best. Default: all."""
    min_score: int | None = None
    """Leave out answers with a lower score; the accepted one stays."""
    unanswered: bool = False
    """Keep questions that have no answer (left)."""


class Dialogue(Config):
    """Of reply trees (reader `dialogue`): a conversation is the path from a tree's root to a leaf (the survey, section
    4.1.1). The defaults are the field names of Reddit's comments."""

    paths: Literal["all", "best", "longest"] = "all"
    """A conversation for each leaf; or one a root: the way to the reply with the highest score each time, or the way to
    the deepest leaf (OPT, 2205.01068)."""
    most: int = Field(default=16, ge=1)
    """At most so many conversations a tree, those that end in the highest scores: early turns are in all of them."""
    turns: int = Field(default=64, ge=2)
    """A conversation longer than this ends here."""
    min_turns: int = Field(default=2, ge=1)
    """A shorter one is no conversation."""
    min_score: int | None = None
    """Leave out messages with a lower score, and the replies to them."""
    id_field: str = "id"
    parent_field: str = "parent_id"
    tree_field: str = "link_id"
    """What all messages of a tree have in common."""
    text_field: str = "body"
    author_field: str = "author"
    """Whose names become A, B, C, ... in order of appearance in a conversation. A message may be without."""
    score_field: str = "score"


class SourceConfig(Config):
    """One source of documents."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """What its documents are called: ids are `name/relative-path#row`. Default: the last part of `path`."""
    path: str = Field(min_length=1)
    """A file or folder; `python:stdlib` (the running Python's own library), `python:topics` (its help topics);
    `generated:arithmetic` (problems, see `arithmetic`); or `hf:OWNER/NAME` (a dataset on the Hugging Face hub,
    `hf:OWNER/NAME@REVISION` for a fixed one)."""
    reader: Reader = "auto"
    """How its files are read; `auto` goes by each file's name (and by the first bytes of XML and tar files)."""
    files: str = ""
    """Only files whose relative name fits this pattern, such as `data/train-*.parquet` (`*` passes folders too)."""
    text_field: str = "text"
    """The field (JSON Lines) or column (Parquet) that holds the text."""
    source_field: str = ""
    """A field or column, such as `meta.pile_set_name`, whose value becomes the document's source instead of `name`."""
    meta_fields: list[str] = Field(default_factory=list)
    """Fields or columns to keep in the document's `meta`, such as `url`."""
    extract: Literal["whole", "code", "docstrings"] = "whole"
    """For Python files: everything, the code without its docstrings, or the docstrings with what they describe."""
    kind: Literal["auto", "prose", "code"] = "auto"
    """Which quality rules apply; `auto` goes by each file's name."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many documents, the first in order."""
    namespaces: list[int] = Field(default_factory=lambda: [0])
    """Of a wiki: the namespaces that are read (0: articles)."""
    web: Web = Web()
    code: Code = Code()
    questions: Questions = Questions()
    dialogue: Dialogue = Dialogue()
    arithmetic: Arithmetic = Arithmetic()
    """Of the source `generated:arithmetic`."""

    @model_validator(mode="after")
    def _named(self) -> SourceConfig:
        if not self.name:
            last = self.path.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]
            name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last).strip(".")
            object.__setattr__(self, "name", name or "source")
        return self
