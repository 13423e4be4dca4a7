"""Token shards: documents as one memory-mapped array of ids, with the place where each document starts.

tokens.bin     uint16 (uint32 above 65,536 ids), each document preceded by the end-of-text id
documents.npy  int64 starts, one more than there are documents
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from lmlab.run import folder_atomic


class Shard:
    """Tokens of a folder written by `write_shard`."""

    def __init__(self, folder: Path) -> None:
        self.starts = np.load(folder / "documents.npy", allow_pickle=False)
        width = np.uint16 if (folder / "width").read_text(encoding="ascii") == "16" else np.uint32
        self.tokens = np.memmap(folder / "tokens.bin", dtype=width, mode="r")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def document(self, index: int) -> list[int]:
        """The ids of a document, without the end-of-text before it."""
        return self.tokens[self.starts[index] + 1 : self.starts[index + 1]].tolist()


def write_shard(
    folder: Path,
    texts: Iterable[str],
    encode: Callable[[list[str]], list[list[int]]],
    end_of_text: int,
    vocabulary: int,
) -> Shard:
    """Encode texts in batches into `folder`, atomically; a folder that is there already is left as it is."""
    if not folder.exists():
        wide = vocabulary > 1 << 16
        with folder_atomic(folder) as temporary:
            starts, written = [0], 0
            with (temporary / "tokens.bin").open("wb") as file:
                for batch in _batches(texts, 256):
                    for ids in encode(batch):
                        row = np.asarray([end_of_text, *ids], dtype=np.uint32 if wide else np.uint16)
                        file.write(row.tobytes())
                        written += len(row)
                        starts.append(written)
            np.save(temporary / "documents.npy", np.asarray(starts, dtype=np.int64), allow_pickle=False)
            (temporary / "width").write_text("32" if wide else "16", encoding="ascii")
    return Shard(folder)


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, size)):
        yield batch
