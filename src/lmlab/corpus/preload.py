"""What a worker process of a build needs, loaded once: worker processes are forked from the process that imported this.

It is a process of its own, started for that (multiprocessing's fork server), so that it has one thread and no lock that
somebody holds; the process that drives the build has both. A worker is then there in some ten milliseconds, and all share
the memory of the language model and of what was compiled.
"""

from __future__ import annotations

import contextlib

import pyarrow as pa

from lmlab.corpus import engine, quality, readers, runners
from lmlab.corpus.build import local_steps
from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.contamination import passes as _contamination
from lmlab.corpus.dedup import passes as _dedup
from lmlab.corpus.dedup.index import sign
from lmlab.corpus.steps.step import DOCUMENT

MODULES = (engine, quality, readers, runners, _contamination, _dedup)
TEXT = "A page about the river and the bridge that stand near it. " * 5


def warm() -> None:
    """Do every usual step once, on one document, so that its kernels are loaded."""
    config = CorpusConfig()
    row = {"id": "0", "split": "train", "kind": "prose", "text": TEXT, "keep": True, "bytes_read": len(TEXT)}
    sign(
        engine.apply(local_steps(config), pa.Table.from_pylist([row], schema=DOCUMENT))["text"], config.near_duplicates
    )


with contextlib.suppress(Exception):  # the build itself says what is wrong
    warm()
