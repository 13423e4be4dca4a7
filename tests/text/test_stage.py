"""The tokenizer stage on a small corpus directory."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.errors import Failed, Refused
from lmlab.progress import Metrics, read_jsonl
from lmlab.run import Context
from lmlab.text.stage import STAGE, TokenizerConfig, documents
from lmlab.text.tokenizer import Tokenizer


@pytest.fixture
def corpus(tmp_path):
    rows = [
        {"id": f"{i}", "source": ("code", "docs")[i % 2], "split": "heldout" if i % 5 == 0 else "train",
         "text": f"def function_{i}(value):\n    return value + {i}\n", "keep": i != 7}
        for i in range(40)
    ]  # fmt: skip
    folder = tmp_path / "corpus"
    (folder / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[:25]), folder / "documents" / "part-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[25:]), folder / "documents" / "part-00001.parquet")
    return folder


def work(corpus, out, **settings):
    out.mkdir()
    context = Context("tokenizer", "tokenizer", TokenizerConfig(**settings), {"corpus": corpus}, out, 0, Metrics(out))
    headline = STAGE.run(context)
    context.metrics.close()
    return headline


def test_it_writes_a_tokenizer_and_its_figures(corpus, tmp_path) -> None:
    out = tmp_path / "out"
    headline = work(corpus, out, vocab_size=300)
    tokenizer = Tokenizer.load(out)
    results = json.loads((out / "results.json").read_text())
    assert headline["vocab_size"] == tokenizer.vocab_size == results["vocabulary"]["size"]
    held_out = [text for _, text in documents(corpus, "heldout")]
    size = sum(len(text.encode()) for text in held_out)
    score = results["bytes_per_token"]["heldout"]
    assert score["value"] == pytest.approx(size / sum(len(tokenizer.encode(text)) for text in held_out))
    assert score["low"] <= score["value"] <= score["high"]
    assert score["n"] == 8
    assert results["trained_on"]["documents"] == 31
    assert set(results["by_source"]["train"]) == {"code", "docs"}
    assert 0 < results["vocabulary"]["used"]["heldout"] <= tokenizer.vocab_size
    assert read_jsonl(out / "metrics.jsonl")[0]["seconds_training"] > 0


def test_made_again_it_is_the_same_bytes(corpus, tmp_path) -> None:
    for name in ("one", "two"):
        work(corpus, tmp_path / name, vocab_size=300)
    for file in ("tokenizer.json", "tokenizer_config.json", "results.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_sources_and_size_limit_what_it_is_trained_on(corpus, tmp_path) -> None:
    work(corpus, tmp_path / "one", vocab_size=270, sources=["code"], max_megabytes=0.0005)
    trained_on = json.loads((tmp_path / "one" / "results.json").read_text())["trained_on"]
    assert 5 <= trained_on["documents"] <= 15
    assert [source for source, _ in documents(corpus, "train", ["code"])] == ["code"] * 16


def test_what_cannot_be_read_is_refused(corpus, tmp_path) -> None:
    with pytest.raises(Refused, match="no source 'cod'; did you mean 'code'"):
        work(corpus, tmp_path / "one", sources=["cod"])
    with pytest.raises(Refused, match="holds no documents"):
        list(documents(tmp_path, "train"))
    empty = tmp_path / "empty"
    (empty / "documents").mkdir(parents=True)
    table = pq.read_table(corpus / "documents" / "part-00000.parquet")
    pq.write_table(table.slice(0, 0), empty / "documents" / "part-00000.parquet")
    with pytest.raises(Failed, match="no kept training document"):
        work(empty, tmp_path / "two")
