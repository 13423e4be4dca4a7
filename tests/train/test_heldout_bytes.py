"""The bytes that a continuation is measured over are those that its tokens spell."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmlab.corpus.shards import write_shards
from lmlab.text.tokenizer import train
from lmlab.train import heldout
from lmlab.train.heldout import Heldout

TEXT = "the river and the bridge stand still while the water runs to the sea and the sea stands still too " * 3


@pytest.mark.parametrize(
    ("settings", "text", "lost"),
    [
        ({}, TEXT, 0),
        ({}, TEXT.replace("e", "é"), 0),
        (
            {"algorithm": "wordpiece"},
            TEXT + "\u732b" * 30 + TEXT,
            90,
        ),  # what is unknown is one token that spells nothing
        ({"normalisation": "lowercase"}, TEXT.upper(), 0),
    ],
)
def test_what_is_lost_is_not_counted(
    settings: dict, text: str, lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train([TEXT, TEXT.replace("e", "é")], 300, **settings)
    rows = [{"id": "d", "source": "s", "text": text}]
    shard = write_shards(
        tmp_path, [("d", "s", text)], tokenizer.encode_arrays, end_of_text=tokenizer.eos_id, vocabulary=tokenizer.vocab_size
    )  # fmt: skip
    monkeypatch.setattr(heldout, "documents", lambda corpus, split: rows)
    found = Heldout(shard, tokenizer, tmp_path, 10)
    ids = shard.document(0)
    (size,) = found._continuation_bytes
    spelt = len(tokenizer.decode(ids).encode())
    assert spelt <= len(text.encode()) - lost
    first = len(tokenizer.decode(ids[:9]).encode())  # a piece of ten, of which one is the end-of-text token
    assert size == pytest.approx(spelt - first, abs=2)
