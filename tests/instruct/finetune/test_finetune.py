"""The stage `finetune`: data checked by line, the loss, training that learns, and a run that was cut off."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import lmlab
from lmlab.config import parse
from lmlab.errors import Refused
from lmlab.instruct.finetune import stage
from lmlab.instruct.finetune.batches import Encoded, TaskBatches, TaskObjective, batch_of
from lmlab.instruct.finetune.data import DataConfig, majority, read_examples
from lmlab.instruct.finetune.made import MadeConfig, make_examples
from lmlab.instruct.finetune.stage import STAGE, FinetuneConfig
from lmlab.model.classifier import Classifier
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.progress import Metrics, read_jsonl
from lmlab.recipe import check
from lmlab.run import Context, write_json
from lmlab.text.tokenizer import Tokenizer, train
from lmlab.train.step import accumulate, make_forward

WORDS = {"fruit": ["apple", "pear", "plum", "fig"], "beast": ["cow", "dog", "cat", "hen"]}


def records(count: int = 160) -> list[dict]:
    rows = []
    for i in range(count):
        label = ("fruit", "beast")[i % 2]
        word = WORDS[label][i // 2 % 4]
        rows.append({"text": f"number {i}: here is the {word} of {i * 7 % 50}", "label": label})
    return rows


def write(path: Path, rows: list) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([row["text"] for row in records()], 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = ModelConfig(layers=2, d_model=32, heads=2, vocab_size=tokenizer.vocab_size, context_length=48, dropout=0.1)
    save_model(folder, Transformer(shape).initialise(0), tokenizer)
    return folder


def run(model: Path, out: Path, seed: int = 3, corpus: Path | None = None, **settings):
    out.mkdir(exist_ok=True)
    write_json(out / "state.json", {"seconds": 0.0})
    inputs = {"model": model} | ({"corpus": corpus} if corpus else {})
    config = FinetuneConfig.model_validate({"batch": 16, "micro_tokens": 256, **settings})
    metrics = Metrics(out)
    try:
        return dict(STAGE.run(Context("finetune", "finetune", config, inputs, out, seed, metrics)))
    finally:
        metrics.close()


FAST = {"train": {"optimizer": {"learning_rate": 3e-3}, "checkpoint_steps": 4}}


def test_it_learns_and_is_loaded(model, tmp_path) -> None:
    file = write(tmp_path / "rows.jsonl", records())
    found = run(model, tmp_path / "a", data={"train": file}, epochs=6, **FAST)
    assert found["accuracy"] > 0.9 > 0.7 > found["majority"]
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["labels"] == ["beast", "fruit"] and results["accuracy"]["after"]["n"] == results["counts"]["test"]
    assert results["accuracy_over_majority"]["low"] > 0
    before, after = (results["lm_nats_per_token"][when]["value"] for when in ("before", "after"))
    assert after < before - 0.5, "the auxiliary loss models the texts too"
    items = read_jsonl(tmp_path / "a" / "items.jsonl")
    assert sum(item["right"] for item in items) == round(found["accuracy"] * len(items))
    opened = lmlab.load(tmp_path / "a")
    again = opened.classify([{"text": item["sequences"][0][0]} for item in items])
    assert [each["label"] for each in again] == [item["answer"] for item in items]
    rows = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert all(row["loss"] == pytest.approx(row["task"] + 0.5 * row["lm"]) for row in rows)


def test_without_the_auxiliary_loss_the_texts_are_not_modelled(model, tmp_path) -> None:
    file = write(tmp_path / "rows.jsonl", records())
    run(model, tmp_path / "a", data={"train": file}, epochs=3, lm_weight=0, **FAST)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert "lm" not in read_jsonl(tmp_path / "a" / "metrics.jsonl")[0]
    assert results["lm_nats_per_token"]["after"]["value"] > results["lm_nats_per_token"]["before"]["value"] - 0.5


def test_cut_off_and_taken_up_it_ends_with_the_same_bits(model, tmp_path, monkeypatch) -> None:
    settings = {"data": {"train": write(tmp_path / "rows.jsonl", records(80))}, "epochs": 2, **FAST}
    run(model, tmp_path / "whole", **settings)
    fit = stage.fit

    def killed(*given, **named):
        def on_step(step, _):
            if step == 6:
                raise KeyboardInterrupt

        return fit(*given, **named, on_step=on_step)

    monkeypatch.setattr(stage, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "cut", **settings)
    monkeypatch.setattr(stage, "fit", fit)
    run(model, tmp_path / "cut", **settings)
    ours, theirs = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "cut"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("results.json", "items.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_the_loss_is_the_papers_however_it_is_cut(tokenizer) -> None:
    """L_task + 0.5 L_lm from whole logits, a row at a time; and the same over micro-batches of any size."""
    shape = ModelConfig(layers=1, d_model=16, heads=2, vocab_size=60, context_length=32)
    draw = torch.Generator().manual_seed(0)

    def rows(n: int) -> list[list[int]]:
        sizes = torch.randint(3, 20, (n,), generator=draw).tolist()
        return [torch.randint(1, 60, (size,), generator=draw).tolist() for size in sizes]

    for choice, classes, sequences in ((False, 3, 1), (False, 2, 2), (True, 1, 0)):
        examples = [Encoded(rows(sequences or 2 + i % 3), i % 2) for i in range(12)]
        network = Classifier(Transformer(shape).initialise(1), classes).initialise(2).eval()
        task, nats, tokens = 0.0, 0.0, 0
        for each in examples:
            scores = []
            for ids in each.rows:
                output = network.backbone(torch.tensor([ids]))
                scores.append(output.hidden_BTD[0, -1] @ network.score.weight.T)
                nats += float(F.cross_entropy(output.logits()[0, :-1], torch.tensor(ids[1:]), reduction="sum"))
                tokens += len(ids) - 1
            logits = torch.stack(scores)[:, 0] if choice else torch.stack(scores).sum(0)
            task += float(F.cross_entropy(logits[None], torch.tensor([each.label])))
        wanted = task / len(examples) + 0.5 * nats / tokens
        objective = TaskObjective(0.5)
        for micro in (1, 64, 10_000):
            source = TaskBatches(examples, batch=12, micro_tokens=micro, pad_id=0, choice=choice, seed=1)
            batches = source(0)
            assert len(batches) == (12 if micro == 1 else len(batches))
            found = accumulate(make_forward(network, objective, False), objective, batches, "float32")
            network.zero_grad()
            assert found["loss"] == pytest.approx(wanted, rel=1e-5)
            assert found["task"] == pytest.approx(task / len(examples), rel=1e-5)


def test_a_pad_that_is_a_token_masks_nothing() -> None:
    batch = batch_of([Encoded([[1, 0, 2]], 0), Encoded([[3, 4, 5, 0, 0]], 1)], 0, False)
    assert batch.mask_BT.sum(1).tolist() == [2, 4] and batch.last_R.tolist() == [2, 4]
    assert batch.targets_BT[1, :4].tolist() == [4, 5, 0, 0] and batch.labels_E.tolist() == [0, 1]


def test_every_example_once_an_epoch() -> None:
    examples = [Encoded([[i, i + 1]], 0) for i in range(10)]
    source = TaskBatches(examples, batch=4, micro_tokens=8, pad_id=0, choice=False, seed=5)
    assert source.steps(2) == 5
    seen = [int(row[0]) for step in range(5) for batch in source(step) for row in batch.tokens_BT]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]


# --- files -----------------------------------------------------------------------------------------------------------


def test_broken_lines_are_named_and_set_aside(tmp_path) -> None:
    good = records(200)
    one = write(tmp_path / "one.jsonl", [*good[:100], '{"text": "a", "label"\n', "\n", *good[100:]])
    found = read_examples(DataConfig(train=one), "classification")
    assert len(found.train) + len(found.test) == 200 and found.rejected[0]["line"] == 101
    assert found.rejected[0]["reason"].startswith("is not JSON")
    many = write(tmp_path / "many.jsonl", [{"text": "a"}, {"text": "", "label": "x"}, *good])
    with pytest.raises(
        Refused, match=r"many.jsonl:1: label: is missing \(2 of 202 lines are broken, more than max_reje"
    ):
        read_examples(DataConfig(train=many, max_rejected=0.005), "classification")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"text": "\xff", "label": "a"}\n')
    with pytest.raises(Refused, match=r"bytes.jsonl:1: .*utf-8"):
        read_examples(DataConfig(train=str(tmp_path / "bytes.jsonl")), "classification")
    with pytest.raises(Refused, match="cannot be read: No such file"):
        read_examples(DataConfig(train="nowhere.jsonl"), "classification")
    same = write(tmp_path / "same.jsonl", [{"text": f"a{i}", "label": "x"} for i in range(20)])
    with pytest.raises(Refused, match=r"at least two labels, found \['x'\]"):
        read_examples(DataConfig(train=same), "classification")
    with pytest.raises(
        Refused, match=r"same.jsonl:1: label: 'x' is no label of the training examples, \['beast', 'fruit'\]"
    ):
        read_examples(DataConfig(train=one, test=same, max_rejected=0.01), "classification")


def test_equal_examples_are_on_one_side(tmp_path) -> None:
    rows = [{"sentence1": f"a{i % 30}", "sentence2": "b", "label": i % 2} for i in range(120)]
    swapped = [{**row, "sentence1": "b", "sentence2": row["sentence1"]} for row in rows]
    found = read_examples(DataConfig(train=write(tmp_path / "x.jsonl", [*rows, *swapped])), "similarity")
    sides = [{frozenset(each.sequences) for each in part} for part in (found.train, found.test)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_a_recipe_with_a_broken_file_is_refused_before_any_work(tmp_path) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"premise": "a"}])
    text = "corpus: {}\ntokenizer: {}\npretrain: {}\nfinetune:\n  task: entailment\n  data: {train: FILE}\n"
    with pytest.raises(Refused, match=r"recipe:4:1: finetune: .*bad.jsonl:1: hypothesis: is missing"):
        check(parse(text.replace("FILE", bad), "recipe"), "recipe")
    alone = f"finetune: {{from: {{model: {tmp_path}}}}}"
    with pytest.raises(Refused, match="needs data.train, or a stage of kind corpus"):
        check(parse(alone, "recipe"), "recipe")


def test_the_commonest_label() -> None:
    found = make(["b", "a", "b", "c"])
    assert majority(found) == "b" and majority(make(["b", "a"])) == "a" and majority(make([3, 1, 3])) == 3


def make(labels: list):
    from lmlab.text.task_inputs import Example

    return [Example((("x",),), label) for label in labels]


# --- made of a corpus ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Documents in which every word tells the document, of two sources and both splits."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for split, count in (("train", 30), ("heldout", 8)):
        for i in range(count):
            for source in ("prose", "code"):
                text = " ".join(f"{source[0]}{split[0]}{i}w{n}" for n in range(60))
                rows.append({"id": f"{source}{split}{i}", "source": source, "path": f"{i}", "split": split, "text": text,
                             "keep": True})  # fmt: skip
    (folder / "documents").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents" / "part-00000.parquet")
    return folder


def owner(text: str) -> str:
    """The document that a passage comes from."""
    found = {word.split("w")[0] for word in text.split()[1:-1]}
    assert len(found) == 1, text
    return found.pop()


SMALL = MadeConfig(examples=80, test_examples=30, characters=40)


def test_made_labels_are_true_and_splits_stay_apart(corpus) -> None:
    for task in ("classification", "entailment", "similarity", "multiple-choice"):
        found = make_examples(task, SMALL, corpus, 7)
        assert make_examples(task, SMALL, corpus, 7) == found != make_examples(task, SMALL, corpus, 8)
        assert make_examples(task, SMALL, corpus, 8).test == found.test
        assert (len(found.train), len(found.test)) == (80, 30)
        for part, split in ((found.train, "t"), (found.test, "h")):
            for each in part:
                owners = [[owner(text) for text in texts] for texts in each.sequences]
                assert all(name[1] == split for texts in owners for name in texts)
                if task == "classification":
                    assert each.label == {"p": "prose", "c": "code"}[owners[0][0][0]]
                elif task == "multiple-choice":
                    same = [texts[0] == texts[1] for texts in owners]
                    assert same == [place == each.label for place in range(4)]
                else:
                    names = {"entailment": ("follows", "other"), "similarity": ("same", "different")}[task]
                    assert each.label == names[owners[0][0] != owners[0][1]]
        labels = [each.label for each in found.train]
        assert len(set(labels)) == (4 if task == "multiple-choice" else 2) and majority(found.train) in labels


def test_a_corpus_without_enough_is_refused(corpus) -> None:
    with pytest.raises(Refused, match=r"need 1 source with at least 4 train documents of 4000 characters, found \{\}"):
        make_examples("multiple-choice", MadeConfig(characters=1000), corpus, 0)
    with pytest.raises(Refused, match="at least 9 heldout documents"):
        make_examples("multiple-choice", MadeConfig(answers=9, characters=40), corpus, 0)


@pytest.mark.parametrize("task", ["similarity", "multiple-choice"])
def test_every_shape_of_task_runs(task, model, corpus, tmp_path) -> None:
    made = {"examples": 24, "test_examples": 12, "characters": 30}
    found = run(model, tmp_path / "a", corpus=corpus, task=task, made=made, epochs=1, max_length=40)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert 0 <= found["accuracy"] <= 1 and results["accuracy"]["after"]["n"] == 12
    one = read_jsonl(tmp_path / "a" / "items.jsonl")[0]
    assert sum(one["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert len(one["probabilities"]) == (4 if task == "multiple-choice" else 2)
    assert results["counts"]["sequences_cut"] > 0
