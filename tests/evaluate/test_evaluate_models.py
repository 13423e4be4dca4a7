"""End to end with real (tiny, random) models, the real engine and a small corpus on disk."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lmlab.errors import Refused
from lmlab.evaluate.command import describe, evaluate_reference
from lmlab.evaluate.compare import compare, read_items
from lmlab.evaluate.runner import subject
from lmlab.evaluate.stage import STAGE, EvaluateConfig, evaluate_model
from lmlab.generate.handle import load
from lmlab.instruct import families as kinds
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.progress import read_jsonl
from lmlab.run import RunDirectory, write_json

CONFIG = EvaluateConfig(
    families=("copy", "arithmetic"), items=3, shots=(0, 1), vote={"samples": 2}, max_new_tokens=4,
    max_new_tokens_steps=8, text_bytes=600, document_bytes=300, stride=32,
)  # fmt: skip


@pytest.fixture
def run_dir(tmp_path, tokenizer):
    """Two stages with a model each, and a corpus with three held-out documents."""
    for seed, name in enumerate(("pretrain", "sft")):
        config = ModelConfig(layers=1, d_model=16, heads=2, vocab_size=tokenizer.vocab_size, context_length=128)
        save_model(tmp_path / name / "model", Transformer(config).initialise(seed), tokenizer)
    texts = ["def add(a, b):\n    return a + b\n" * 20, "Copy the words. " * 5, "été " * 30, "never seen here"]
    table = pa.table({
        "id": [f"doc{i}" for i in range(4)], "source": ["code"] * 4, "path": ["p"] * 4, "text": texts,
        "split": ["heldout"] * 3 + ["train"], "keep": [True] * 4, "step": [None] * 4, "reason": [None] * 4,
    })  # fmt: skip
    (tmp_path / "corpus/documents").mkdir(parents=True)
    pq.write_table(table, tmp_path / "corpus/documents/part-00000.parquet")
    write_json(tmp_path / "corpus/statistics.json", {})
    return tmp_path


def inputs(run_dir):
    return {"models": {name: run_dir / name for name in ("pretrain", "sft")}, "corpus": run_dir / "corpus"}


def outcome(folder):
    return {name: (folder / name).read_bytes() for name in ("results.json", "items.jsonl", "run.json")}


def test_the_stage_runs_and_is_a_pure_function(run_dir):
    with RunDirectory(run_dir) as directory:
        directory.execute("evaluate", "evaluate", STAGE, CONFIG, 0, inputs(run_dir), fresh=False)
        first = outcome(run_dir / "evaluate")
        directory.execute("evaluate", "evaluate", STAGE, CONFIG, 7, inputs(run_dir), fresh=True)
    assert outcome(run_dir / "evaluate") == first  # nor does it depend on the run's seed
    results = json.loads(first["results.json"])
    assert list(results["stages"]) == ["pretrain", "sft"]
    bits = results["stages"]["sft"]["bits_per_byte"]
    assert bits["n"] == 3
    assert 0 < bits["value"] < 8
    vote = results["stages"]["sft"]["exact_match/arithmetic/shots=0/steps/vote=2"]
    assert vote["n"] == 3
    assert results["truncated"]["sft"]["exact_match/copy/shots=0/greedy"]["value"] == 1.0  # a random model never ends
    assert json.loads((run_dir / "evaluate/provenance.json").read_text())["headline"].keys() == {"pretrain", "sft"}
    rows = read_jsonl(run_dir / "evaluate/items.jsonl")
    assert {row["stage"] for row in rows} == {"pretrain", "sft"}
    assert all(row["id"] != "doc3" for row in rows)
    # Copy was asked with 0 and 1 demonstrations, arithmetic with 0 and 1 each way and two votes; and the text.
    assert compare(read_items(run_dir / "evaluate", "pretrain"), read_items(run_dir, "sft"))["tests"] == 9


def test_bits_are_the_models_own(run_dir, tokenizer):
    """Bits of a short passage, computed by the model itself in one forward pass."""
    results = evaluate_model(
        load(run_dir / "sft"), ["bits_per_byte"], CONFIG, run_dir / "out", corpus=run_dir / "corpus"
    )
    (row,) = [row for row in read_jsonl(run_dir / "out/items.jsonl") if row["id"] == "doc1"]
    ids = [tokenizer.eos_id, *tokenizer.encode("Copy the words. " * 5)]
    logits_TV = load(run_dir / "sft").logits([ids])[0]
    nats = torch.nn.functional.cross_entropy(logits_TV[:-1], torch.tensor(ids[1:]), reduction="sum")
    assert row["bits"] == pytest.approx(float(nats) / math.log(2), rel=1e-5)
    assert row["bytes"] == 80
    assert results["stages"].keys() == {"model"}


def test_one_changed_weight_is_another_model(run_dir):
    model = load(run_dir / "sft")
    before = subject("sft", model)
    assert subject("sft", load(run_dir / "sft")).fingerprint == before.fingerprint
    evaluate_model(model, ["copy/shots=0"], CONFIG, run_dir / "out")
    parts = {path.name for path in (run_dir / "out/parts").iterdir()}
    evaluate_model(load(run_dir / "sft"), ["copy/shots=0"], CONFIG, run_dir / "out")
    assert {path.name for path in (run_dir / "out/parts").iterdir()} == parts
    with torch.no_grad():
        model.network.final_norm.weight[0] += 1.0
    model.engine.refresh()
    evaluate_model(model, ["copy/shots=0"], CONFIG, run_dir / "out")
    assert len({path.name for path in (run_dir / "out/parts").iterdir()} - parts) == 1


def test_batches_do_not_change_scores(run_dir):
    found = []
    for size in (1, 8):
        model = load(run_dir / "sft", max_batch=size)
        results = evaluate_model(model, ["arithmetic", "copy"], CONFIG, run_dir / f"batch{size}")
        rows = read_jsonl(run_dir / f"batch{size}/items.jsonl")
        found.append((results, [(row["id"], row["task"], row["output"]) for row in rows]))
    assert found[0] == found[1]


def test_a_reference_is_evaluated_with_its_runs_corpus(run_dir):
    write_json(run_dir / "run.json", {"stages": {"corpus": {"kind": "corpus"}, "sft": {"kind": "sft"}}})
    for name in ("corpus", "sft"):
        write_json(run_dir / name / "provenance.json", {})
    found = evaluate_reference(str(run_dir), "bits_per_byte,copy/shots=1", run_dir / "out", 2)
    assert list(found["stages"]["sft"]) == ["bits_per_byte", "exact_match/copy/shots=1/greedy"]
    table = describe(found)
    assert "bits_per_byte" in table
    assert "100%" in table  # every output of a random model is cut off
    assert (run_dir / "out/items.jsonl").is_file()
    (again,) = evaluate_reference(str(run_dir / "sft"), "copy/shots=1", None, 2)["stages"].values()
    assert again["exact_match/copy/shots=1/greedy"] == found["stages"]["sft"]["exact_match/copy/shots=1/greedy"]
    with pytest.raises(Refused, match="no such directory"):
        evaluate_reference(str(run_dir / "sftt"), "copy")
    listed = evaluate_reference("nowhere", "list")["tasks"]
    assert listed.keys() == {"bits_per_byte", *kinds.FAMILIES}
    assert all(name in describe({"tasks": listed}) for name in listed)
