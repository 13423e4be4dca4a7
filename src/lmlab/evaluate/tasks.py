"""The tasks that lmlab brings: the instruction families, and held-out text."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lmlab.evaluate.task import Messages, Passage, Task, Text
from lmlab.instruct import families as kinds
from lmlab.instruct.formatting import demonstrations, messages

BITS_PER_BYTE = "bits_per_byte"


@dataclass(frozen=True)
class FamilyData:
    """Items of an instruction family: test items to be asked, training items to be shown. No test item is ever a
    training item, since the family splits by a hash of what is asked."""

    family: kinds.Family
    seed: int

    def test(self, count: int) -> list[kinds.Item]:
        return kinds.draw_distinct(self.family, "test", self.seed, count, show_steps=False)

    def shown(self, item: kinds.Item, count: int, steps: bool) -> list[kinds.Item]:
        place = int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:4], "big")
        return demonstrations(self.family, item.asked(steps), count, self.seed, place)


def family_view(item: kinds.Item, shown: Sequence[kinds.Item], steps: bool) -> Messages:
    """Chat turns in the format that fine-tuning uses; a base model gets the same."""
    return messages(item.asked(steps), [each.asked(steps) for each in shown])


def family_tasks(families: Mapping[str, kinds.Family], held_out: Collection[str], seed: int) -> dict[str, Task]:
    """A task for each family. `held_out`: families that fine-tuning never saw."""
    tasks = {}
    for name, family in families.items():
        data = FamilyData(family, seed)
        sort = "a family that fine-tuning never saw" if name in held_out else "test items of a family of fine-tuning"
        about = (family.__doc__ or "").split("\n\n")[0]
        tasks[name] = Task(
            name=name,
            description=f"{' '.join(about.split())} Exact match, {sort}.",
            data=data,
            view=family_view,
            parse=family.parse,
            has_steps=data.test(1)[0].steps is not None,
            group="unseen" if name in held_out else "seen",
        )
    return tasks


def held_out_text(documents: Iterable[Mapping[str, str]], most_bytes: int, document_bytes: int) -> Text:
    """Beginnings of held-out documents, at most `document_bytes` of each, until `most_bytes` are together. Documents
    are taken in the order of a hash of their ids, so that every source and folder has its share, and empty ones left
    out."""

    def place(document: Mapping[str, str]) -> str:
        return hashlib.sha256(document["id"].encode()).hexdigest()

    passages: list[Passage] = []
    total = 0
    for document in sorted(documents, key=place):
        text = cut(document["text"], min(document_bytes, most_bytes - total))
        if text:
            passages.append(Passage(document["id"], text))
            total += passages[-1].bytes
        if total >= most_bytes - 4:  # no room for a whole character may be left
            break
    description = (
        f"Bits per byte of held-out text ({len(passages)} documents, the first {document_bytes:,} bytes of each, "
        f"{total:,} in all), each document predicted from its own beginning in sliding windows."
    )
    return Text(BITS_PER_BYTE, description, tuple(passages))


def cut(text: str, size: int) -> str:
    """The beginning of a text, at most `size` bytes of UTF-8, no character cut in two."""
    return text.encode("utf-8", "replace")[: max(0, size)].decode("utf-8", "ignore")
