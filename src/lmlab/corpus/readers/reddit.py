"""Reddit-style submissions (PushShift's RS files): JSON Lines with title, selftext, url, score and is_self.

A submission with a text of its own is a document; one that links elsewhere is an address for `links.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmlab.corpus.readers.files import as_text, parsed
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, lines, open_bytes
from lmlab.corpus.source import SourceConfig

REMOVED = frozenset(["", "[deleted]", "[removed]", "[deleted by user]"])


@dataclass(frozen=True)
class Submission:
    """One submission; `own` says that it has no link elsewhere."""

    id: str
    title: str
    text: str
    url: str
    score: int
    own: bool
    forum: str


def submission(line: bytes) -> Submission | str:
    """A line of submissions, or what is wrong with it."""
    value = parsed(line)
    return value if isinstance(value, str) else submission_of(value)


def submission_of(value: dict[str, Any]) -> Submission | str:
    """An object as a submission, or what is wrong with it."""
    url, score = value.get("url") or "", number(value.get("score"))
    if score is None:
        return "field 'score' holds no number"
    title, text = value.get("title") or "", value.get("selftext") or ""
    for name, content in (("title", title), ("selftext", text), ("url", url)):
        if isinstance(problem := as_text(content, name), str):
            return problem
    own = bool(value.get("is_self")) or not url or str(value.get("domain", "")).startswith("self.")
    return Submission(str(value.get("id", "")), title, text, url, score, own, str(value.get("subreddit", "")))


def number(value: Any) -> int | None:
    """A score as a whole number; None if it is none."""
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 16:
        return int(value)
    return int(value) if isinstance(value, int | float) and abs(value) < 1e15 else None


def submissions(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a submission with a text of its own and enough karma: its title and text."""
    row = last = 0
    try:
        with open_bytes(file.fetch(), limits) as stream:
            for place, line in lines(stream, limits.record):
                last = place
                if line is not None and not line.strip():
                    continue
                found = submission(line) if line is not None else f"longer than {limits.record:,} bytes"
                if isinstance(found, str):
                    yield Reject(file.relative, place, found)
                elif reason := _no_document(found, source.web.karma):
                    yield Passed(file.relative, reason)
                else:
                    meta = {"id": found.id, "forum": found.forum, "score": found.score}
                    text = f"{found.title.strip()}\n\n{found.text.strip()}".strip()
                    yield Record(file.relative, row, file.unit(row), file.kind, text, meta=meta)
                row += 1
    except DAMAGED as error:
        yield Reject(file.relative, last + 1, f"cut off or damaged: {error}")


def _no_document(found: Submission, karma: int) -> str | None:
    if found.score < karma:
        return f"karma under {karma}"
    if not found.own:
        return "a link elsewhere"
    return "no text of its own" if found.text.strip() in REMOVED else None
