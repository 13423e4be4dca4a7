"""StackExchange's Posts.xml: a question with its answers, best first.

An answer may come gigabytes after its question. So posts are sorted on disk (`spill.py`) by question, and within one by score;
then one question at a time is in memory. The file has one post a line, and lines are read one at a time: no XML parser sees
the whole, so a broken post costs itself alone, and entities that a document declares are never expanded.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

from lmlab.corpus.readers import html
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, lines, open_bytes
from lmlab.corpus.readers.spill import Sorter
from lmlab.corpus.source import SourceConfig

_ROW = re.compile(r'<row((?:\s+\w+="[^"<]*")*)\s*/>')
_ATTRIBUTE = re.compile(r'(\w+)="([^"<]*)"')
_ENTITY = re.compile(r"&([^;\s]{0,12};?)")
_NAMED = {"amp;": "&", "lt;": "<", "gt;": ">", "quot;": '"', "apos;": "'"}
_NUMBER = re.compile(r"-?[0-9]{1,15}")
_FRAME = ("<?xml", "<posts>", "</posts>")


def attributes(line: str) -> dict[str, str] | str:
    """The attributes of a `<row .../>`, or what is wrong with it."""
    found = _ROW.fullmatch(line.strip())
    if found is None:
        return "expected a whole <row .../>"
    try:
        return {name: _ENTITY.sub(_entity, value) if "&" in value else value for name, value in
                _ATTRIBUTE.findall(found[1])}  # fmt: skip
    except ValueError as error:
        return str(error)


def _entity(found: re.Match[str]) -> str:
    name = found[1]
    if name in _NAMED:
        return _NAMED[name]
    try:
        code = int(name[2:-1], 16) if name.startswith("#x") else int(name[1:-1]) if name.startswith("#") else -1
        if name.endswith(";") and (code in (9, 10, 13) or code >= 32) and not 0xD800 <= code < 0xE000:
            return chr(code)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"an entity that XML does not have: '&{name}'")


def _posts(file: File, limits: Limits) -> Iterator[tuple[int, dict[str, str]] | Reject]:
    last = 0
    try:
        with open_bytes(file.fetch(), limits) as stream:
            for place, line in lines(stream, limits.record):
                last = place
                if line is None:
                    yield Reject(file.relative, place, f"longer than {limits.record:,} bytes")
                    continue
                try:
                    text = line.decode("utf-8-sig" if place == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    yield Reject(file.relative, place, f"not UTF-8: {error.reason} at byte {error.start}")
                    continue
                if not text or text.startswith(_FRAME):
                    continue
                found = attributes(text)
                if isinstance(found, str) or not found.get("Id", "").isdecimal():
                    yield Reject(file.relative, place, found if isinstance(found, str) else "a post without an Id")
                else:
                    yield place, found
    except DAMAGED as error:
        yield Reject(file.relative, last + 1, f"cut off or damaged: {error}")


def units(file: File, source: SourceConfig, limits: Limits) -> Iterator[str]:
    """The questions as they come, unsorted."""
    for found in _posts(file, limits):
        if not isinstance(found, Reject) and found[1].get("PostTypeId") == "1":
            yield file.unit(int(found[1]["Id"]))


def stackexchange(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a question that has answers, in the order of the questions' numbers; `row` is that number."""
    with Sorter(limits.scratch) as sorter:
        for found in _posts(file, limits):
            if isinstance(found, Reject):
                yield found
                continue
            place, post = found
            kind = post.get("PostTypeId")
            question = post["Id"] if kind == "1" else post.get("ParentId", "")
            score = post.get("Score", "0")
            if kind not in ("1", "2"):
                yield Passed(file.relative, "neither question nor answer")
            elif not all(_NUMBER.fullmatch(each) for each in (question, score, post["Id"])):
                yield Reject(file.relative, place, "an answer without its question's number, or a score that is none")
            else:
                names = ("Id", "Title", "Tags", "Body", "Score", "AcceptedAnswerId", "ContentLicense", "CreationDate")
                value = json.dumps({name: post[name] for name in names if name in post})
                # By question, the question before its answers, the higher score first, then the older.
                order = f"{int(question):015d}{kind}{10**15 - int(score):016d}{int(post['Id']):015d}"
                sorter.add(order.encode(), value.encode())
        yield from _joined(file, source, limits, sorter)


def _joined(file: File, source: SourceConfig, limits: Limits, sorter: Sorter) -> Result:
    plain = html.plain_text()
    for number, group in itertools.groupby(sorter, key=lambda pair: pair[0][:15]):
        yield from _question(file, int(number), source, limits, plain, group)


def _question(
    file: File,
    number: int,
    source: SourceConfig,
    limits: Limits,
    plain: html.Extract,
    posts: Iterator[tuple[bytes, bytes]],
) -> Result:
    """One question's posts in order: the question, its answers by score."""
    key, value = next(posts)
    if key[15:16] != b"1":
        yield Passed(file.relative, "an answer whose question is not here")
        yield from (Passed(file.relative, "an answer whose question is not here") for _ in posts)
        return
    question = json.loads(value)
    settings, accepted = source.questions, question.get("AcceptedAnswerId")
    scores: list[int] = []
    try:
        asked = plain(question.get("Body", "")).strip()
        turns = ["Q: " + "\n\n".join(filter(None, (question.get("Title", "").strip(), asked)))]
        size = len(turns[0])
        for key, value in posts:
            answer = json.loads(value)
            if key[15:16] == b"1":
                yield Passed(file.relative, "the same question again")
                continue
            if len(scores) == settings.answers or size > limits.record:
                break
            score = int(answer.get("Score", 0))
            if settings.min_score is not None and score < settings.min_score and answer["Id"] != accepted:
                continue
            turns.append(f"A: {plain(answer.get('Body', '')).strip()}")
            size += len(turns[-1])
            scores.append(score)
    except html.Unreadable as error:
        yield Reject(file.relative, number, f"HTML that cannot be read: {error}")
        return
    if size > limits.record:
        yield Reject(file.relative, number, f"longer than {limits.record:,} characters with its answers")
    elif not scores and not settings.unanswered:
        yield Passed(file.relative, "a question without an answer")
    else:
        meta = {
            "title": question.get("Title", ""),
            "tags": [tag for tag in re.split(r"[<>|]+", question.get("Tags", "")) if tag],
            "score": int(question.get("Score", 0)),
            "answers": scores,
            "license": question.get("ContentLicense", ""),
            "date": question.get("CreationDate", ""),
        }
        yield Record(file.relative, number, file.unit(number), file.kind, "\n\n".join(turns), meta=meta)
