"""Reply trees to conversations: every path from a root to a leaf is one (the survey, section 4.1.1).

A reply and what it replies to may lie anywhere in the source's files. So messages are sorted by tree on disk (`spill.py`);
then one tree at a time is in memory. Nothing here recurses: trees may be deep, and replies may run in a circle.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmlab.corpus.readers.files import as_text, field, parsed
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, lines, open_bytes
from lmlab.corpus.readers.reddit import REMOVED, number, submission_of
from lmlab.corpus.readers.spill import Sorter
from lmlab.corpus.source import Dialogue, SourceConfig

TREE_LIMIT = 4
"""A tree may have as many bytes as this many of the longest records."""
_FULL_NAME = re.compile(r"^t\d_\w+$")


@dataclass(frozen=True)
class Message:
    """One message of a tree; `parent` is None for a root."""

    tree: str
    id: str
    parent: str | None
    author: str | None
    text: str
    score: int


def message(value: dict[str, Any], names: Dialogue) -> Message | str:
    """An object as a message, or what is wrong with it. A submission (it has a title, no text of a comment) is the root
    of its tree."""
    if "title" in value and names.text_field not in value:
        found = submission_of(value)
        if isinstance(found, str):
            return found
        text = f"{found.title.strip()}\n\n{found.text.strip() if found.text.strip() not in REMOVED else ''}".strip()
        return Message(f"t3_{found.id}", f"t3_{found.id}", None, value.get(names.author_field), text, found.score)
    tree, own = field(value, names.tree_field), field(value, names.id_field)
    if not isinstance(tree, str | int) or not isinstance(own, str | int):
        return f"no '{names.tree_field}' or no '{names.id_field}'"
    text = field(value, names.text_field)
    if isinstance(problem := as_text(text, names.text_field), str):
        return problem
    parent = field(value, names.parent_field)
    tree, own, parent = str(tree), str(own), None if parent in (None, "") else str(parent)
    for name in (tree, own, parent or ""):
        if isinstance(problem := as_text(name, names.id_field), str):
            return problem
    if _FULL_NAME.match(tree) and not _FULL_NAME.match(own):
        own = f"t1_{own}"  # Reddit writes a comment's own id short, and its parent's in full
    author = field(value, names.author_field)
    score = number(field(value, names.score_field))
    return Message(tree, own, parent, author if isinstance(author, str) else None, text, score or 0)


def _messages(file: File, source: SourceConfig, limits: Limits) -> Iterator[Message | Reject]:
    for part in file.parts or (file,):
        last = 0
        try:
            with open_bytes(part.fetch(), limits) as stream:
                for place, line in lines(stream, limits.record):
                    last = place
                    if line is not None and not line.strip():
                        continue
                    value = parsed(line) if line is not None else f"longer than {limits.record:,} bytes"
                    found = value if isinstance(value, str) else message(value, source.dialogue)
                    yield Reject(part.relative, place, found) if isinstance(found, str) else found
        except DAMAGED as error:
            yield Reject(part.relative, last + 1, f"cut off or damaged: {error}")


def units(file: File, source: SourceConfig, limits: Limits) -> Iterator[str]:
    """The names of trees as they come: no tree is on both sides of the held-out split."""
    last = None
    for found in _messages(file, source, limits):
        if isinstance(found, Message) and found.tree != last:
            last = found.tree
            yield file.unit(found.tree)


def dialogue(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a conversation; trees in the order of their names."""
    with Sorter(limits.scratch) as sorter:
        for found in _messages(file, source, limits):
            if isinstance(found, Reject):
                yield found
                continue
            each = [found.id, found.parent, found.author, found.text, found.score]
            sorter.add(found.tree.encode("utf-8"), json.dumps(each).encode())
        row = 0
        for key, pairs in itertools.groupby(sorter, key=lambda pair: pair[0]):
            tree = key.decode("utf-8")
            counts: Counter[str] = Counter()
            messages = _tree(tree, (value for _, value in pairs), limits, counts)
            for path in conversations(tree, messages, source.dialogue, counts):
                text = rendered(path, limits.record)
                meta = {"tree": tree, "turns": len(path), "score": path[-1].score}
                yield Record(file.relative, row, file.unit(tree), file.kind, text, meta=meta)
                row += 1
            for reason, n in counts.items():
                yield from itertools.repeat(Passed(file.relative, reason), n)


def _tree(tree: str, values: Iterator[bytes], limits: Limits, counts: Counter[str]) -> list[Message]:
    found, size = [], 0
    for value in values:
        size += len(value)
        if size > TREE_LIMIT * limits.record:
            counts[f"message past {TREE_LIMIT * limits.record:,} bytes of one tree"] += 1
            continue
        found.append(Message(tree, *json.loads(value)))
    return found


def conversations(tree: str, messages: list[Message], names: Dialogue, counts: Counter[str]) -> list[list[Message]]:
    """The paths from roots to leaves that the settings ask for, best last message first; `counts` gets what is left out
    and why. A message whose parent is the tree itself is a root where the tree's own message is not here."""
    known: dict[str, Message] = {}
    for each in messages:
        if each.id in known:
            counts["the same message again"] += 1
        elif each.text.strip() in REMOVED:
            counts["removed message"] += 1
        elif names.min_score is not None and each.score < names.min_score and each.parent is not None:
            counts[f"message with a score under {names.min_score}"] += 1
        else:
            known[each.id] = each
    roots, orphans = [], []
    children: dict[str, list[Message]] = {}
    for each in known.values():
        if each.parent in known:
            children.setdefault(str(each.parent), []).append(each)
        else:
            (roots if each.parent is None or each.parent == tree else orphans).append(each)
    depth = _depths(roots, children)
    lost = _depths(orphans, children)
    counts["reply to a message that is not here"] += len(lost)
    counts["replies in a circle"] += len(known) - len(depth) - len(lost)
    counts[f"message past {names.turns} turns"] += sum(d > names.turns for d in depth.values())
    leaves = [
        known[each] for each, d in depth.items() if d == names.turns or (d < names.turns and each not in children)
    ]
    if names.paths == "all":
        ends = sorted(leaves, key=lambda leaf: -leaf.score)
    else:
        choose = _best if names.paths == "best" else _deepest(known, leaves, depth)
        ends = sorted((choose(root, children, names.turns) for root in roots), key=lambda leaf: -leaf.score)
    paths = [_path(known, leaf) for leaf in ends]
    counts[f"conversation of fewer than {names.min_turns} turns"] += sum(len(p) < names.min_turns for p in paths)
    paths = [path for path in paths if len(path) >= names.min_turns]
    counts[f"conversation past the first {names.most} of its tree"] += max(0, len(paths) - names.most)
    return paths[: names.most]


def _depths(roots: list[Message], children: dict[str, list[Message]]) -> dict[str, int]:
    """How many turns it is to each message that can be reached, breadth first."""
    depth = {root.id: 1 for root in roots}
    queue = [root.id for root in roots]
    for each in queue:
        for child in children.get(each, ()):
            depth[child.id] = depth[each] + 1
            queue.append(child.id)
    return depth


def _best(root: Message, children: dict[str, list[Message]], turns: int) -> Message:
    at, length = root, 1
    while length < turns and at.id in children:
        at, length = max(children[at.id], key=lambda child: child.score), length + 1
    return at


def _deepest(known: dict[str, Message], leaves: list[Message], depth: dict[str, int]):
    """A function like _best: the deepest leaf below a root, of several the one with the highest score."""
    found: dict[str, Message] = {}
    for leaf in sorted(leaves, key=lambda leaf: (depth[leaf.id], leaf.score)):
        found[_path(known, leaf)[0].id] = leaf
    return lambda root, children, turns: found[root.id]


def _path(known: dict[str, Message], leaf: Message) -> list[Message]:
    path, at = [leaf], leaf
    while at.parent in known:
        at = known[str(at.parent)]
        path.append(at)
    return path[::-1]


def rendered(path: list[Message], longest: int) -> str:
    """`A: ...`, an empty line, `B: ...`: who speaks is told by a letter and not by name; whole turns up to the limit."""
    letters: dict[str, str] = {}
    turns, size = [], 0
    for place, each in enumerate(path):
        unknown = each.author is None or each.author in REMOVED
        speaker = letters.setdefault(f"\0{place}" if unknown else str(each.author), _letter(len(letters)))
        turn = f"{speaker}: {each.text.strip()}"
        size += len(turn) + 2
        if size > longest and turns:
            break
        turns.append(turn)
    return "\n\n".join(turns)


def _letter(n: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    name = ""
    n += 1
    while n:
        n, rest = divmod(n - 1, 26)
        name = chr(65 + rest) + name
    return name
