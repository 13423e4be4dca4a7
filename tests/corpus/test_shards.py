"""Token shards: read back without loss, resumed at the exact document, damage refused, many shards as one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.corpus.shards import Shards, write_shards
from lmlab.errors import Refused
from lmlab.text.tokenizer import train

TEXTS = ["def add(a, b):\n    return a + b\n", "naïve 日本語 🙂", "", "<|end|> stays text", "  spaces  \n" * 9] * 3
DOCUMENTS = [(f"file-{n}.py#0", ("code", "docs")[n >= 9], text) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer():
    return train(TEXTS * 5, 330)


def write(folder, made, documents=DOCUMENTS, **settings):
    settings = {"end_of_text": made.eos_id, "vocabulary": made.vocab_size, **settings}
    return write_shards(folder, documents, settings.pop("encode", made.encode_many), **settings)


@pytest.mark.parametrize("shard_tokens", [1, 40, 1 << 20])
def test_every_document_comes_back_from_its_id(tokenizer, tmp_path, shard_tokens: int) -> None:
    shards = write(tmp_path / "tokens", tokenizer, shard_tokens=shard_tokens)
    assert len(shards) == len(DOCUMENTS)
    assert len(shards.index["shards"]) == {1: 15, 40: len(shards.index["shards"]), 1 << 20: 1}[shard_tokens]
    for name, _, text in DOCUMENTS:
        assert tokenizer.decode(shards.document(shards.find(name))) == text
    assert shards.sources() == {"code": slice(0, 9), "docs": slice(9, 15)}
    whole = [i for _, _, text in DOCUMENTS for i in (tokenizer.eos_id, *tokenizer.encode(text))]
    assert shards.tokens[:].tolist() == whole and len(shards.tokens) == len(whole)
    for place in (0, 1, 17, len(whole) - 1):
        document, offset = shards.where(place)
        assert whole[place] == [tokenizer.eos_id, *shards.document(document)][offset]
    with pytest.raises(Refused, match="did you mean 'file-3.py#0'"):
        shards.find("file-3.py#00")
    with pytest.raises(Refused, match="has no token"):
        shards.where(len(whole))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), max_size=12), size=st.integers(1, 30), wide=st.booleans())
def test_how_it_is_cut_changes_no_token(tmp_path_factory, lengths: list[int], size: int, wide: bool) -> None:
    folder = tmp_path_factory.mktemp("cut")
    documents = [(str(n), "s", str(length)) for n, length in enumerate(lengths)]

    def encode(batch: list[str]) -> list[list[int]]:
        return [[1 + i for i in range(int(text))] for text in batch]

    made = [
        write_shards(folder / name, documents, encode, end_of_text=0, vocabulary=70_000 if wide else 20, shard_tokens=n)
        for name, n in (("one", 1 << 20), ("many", size))
    ]
    assert made[0].tokens.dtype == (np.uint32 if wide else np.uint16)
    assert made[0].tokens[:].tolist() == made[1].tokens[:].tolist()
    assert made[0].starts.tolist() == made[1].starts.tolist()
    places = np.arange(len(made[0].tokens))[::-1].copy()
    assert (made[0].tokens[places] == made[1].tokens[places]).all()


def test_writing_goes_on_after_the_last_whole_shard(tokenizer, tmp_path) -> None:
    whole = write(tmp_path / "whole", tokenizer, shard_tokens=40)
    calls = []

    def stops(batch: list[str]) -> list[list[int]]:
        raise KeyboardInterrupt

    def dies():
        yield from DOCUMENTS[:7]
        raise KeyboardInterrupt

    def counts(batch: list[str]) -> list[list[int]]:
        calls.append(len(batch))
        return tokenizer.encode_many(batch)

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        write(cut, tokenizer, encode=stops, shard_tokens=40)
    with pytest.raises(Refused, match="no finished token shards"):
        Shards(cut)
    # Killed while the third shard is written: two are whole, the third's files are not.
    for file in (tmp_path / "whole").iterdir():
        if "-00000" in file.name or "-00001" in file.name or file.name == "tokens-00002.bin":
            (cut / file.name).write_bytes(file.read_bytes())
    done = sum(entry["documents"] for entry in whole.index["shards"][:2])
    again = write(cut, tokenizer, encode=counts, shard_tokens=40)
    assert sum(calls) == len(DOCUMENTS) - done
    assert again.index == whole.index
    for file in (tmp_path / "whole").iterdir():
        assert (cut / file.name).read_bytes() == file.read_bytes()
    assert write(cut, tokenizer, encode=stops, shard_tokens=40).index == whole.index, "finished: nothing is encoded"


def test_threads_change_nothing(tokenizer, tmp_path) -> None:
    many = [(f"d{i}", "s", "the quick brown fox " * (i % 7)) for i in range(2000)]
    settings = {"end_of_text": tokenizer.eos_id, "vocabulary": tokenizer.vocab_size, "shard_tokens": 3000}
    for name, threads in (("one", 1), ("three", 3)):
        write_shards(tmp_path / name, many, tokenizer.encode_arrays, threads=threads, **settings)
    write_shards(tmp_path / "lists", many, tokenizer.encode_many, **settings)
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "three" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "lists" / file.name).read_bytes() == file.read_bytes()


def test_damage_is_refused_with_the_file(tokenizer, tmp_path) -> None:
    folder = tmp_path / "tokens"
    write(folder, tokenizer)
    for name in ("tokens-00000.bin", "starts-00000.npy", "documents-00000.parquet"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(Refused, match=f"{name}: is damaged"):
            Shards(folder)
        (folder / name).write_bytes(good[:-1])
        with pytest.raises(Refused, match=f"{name}: is damaged"):
            Shards(folder, verify=False)
        (folder / name).unlink()
        with pytest.raises(Refused, match=f"{name}: is missing"):
            Shards(folder)
        (folder / name).write_bytes(good)
    Shards(folder)
    (folder / "index.json").write_text("[]")
    with pytest.raises(Refused, match="expected token shards of format 2"):
        Shards(folder)


def test_another_tokenizer_is_not_taken_for_this_one(tokenizer, tmp_path) -> None:
    folder = tmp_path / "tokens"
    write(folder, tokenizer, tokenizer="one")
    with pytest.raises(Refused, match="written with tokenizer 'one', expected 'two'"):
        write(folder, tokenizer, tokenizer="two")
    with pytest.raises(Refused, match="do not fit uint16"):
        write(tmp_path / "other", tokenizer, vocabulary=70_000, dtype="uint16")
    with pytest.raises(Refused, match="has the id"):
        write(tmp_path / "third", tokenizer, vocabulary=20)
    wide = write(tmp_path / "fourth", tokenizer, dtype="uint32")
    assert wide.tokens.dtype == np.uint32
    assert json.loads((tmp_path / "fourth" / "index.json").read_text())["dtype"] == "uint32"
