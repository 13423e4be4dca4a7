"""A head on a Transformer: what it reads, its files here and in transformers, and the rows of new tokens."""

from pathlib import Path

import pytest
import torch

import lmlab
from lmlab.errors import Refused
from lmlab.generate.classify import ClassifierModel
from lmlab.model.classifier import Classifier, answers, load_classifier, save_classifier
from lmlab.model.config import ModelConfig
from lmlab.model.exchange import export_model
from lmlab.model.grow import with_tokens
from lmlab.model.settings import MoEConfig
from lmlab.model.store import load_model
from lmlab.model.transformer import Transformer
from lmlab.text.task_inputs import TASK_TOKENS, TaskInputs, example
from lmlab.text.tokenizer import Tokenizer, extended, train

SHAPE = {"layers": 2, "d_model": 32, "heads": 4, "context_length": 32}
GPT1 = {"norm": "layernorm", "norm_bias": True, "norm_placement": "post", "final_norm": False, "activation": "gelu-tanh",
        "d_ff": 128, "position": "learned", "bias": True}  # fmt: skip
GPT2 = {**GPT1, "norm_placement": "pre", "final_norm": True}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return extended(train(["the cat sat on the mat, a dog ran"] * 4, 300), TASK_TOKENS)


def made(tokenizer: Tokenizer, classes: int = 3, **more) -> Classifier:
    config = ModelConfig(**{**SHAPE, "vocab_size": tokenizer.vocab_size, **more})
    return Classifier(Transformer(config).initialise(1), classes).initialise(2).eval()


def test_padding_changes_nothing_and_the_last_token_is_read(tokenizer) -> None:
    for more in ({}, {"moe": MoEConfig(experts=4, top_k=2, every=1)}, {"architecture": "prefix-decoder"}):
        model = made(tokenizer, **more)
        rows = [[5, 6, 7], [9, 10, 11, 12, 13, 14]]
        tokens = torch.full((2, 9), tokenizer.pad_id)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
        both = model(tokens, torch.tensor([2, 5])).scores_RC
        for row, ids in enumerate(rows):
            output = model.backbone(torch.tensor([ids]))
            alone = output.hidden_BTD[0, -1] @ model.score.weight.T
            torch.testing.assert_close(both[row], alone, rtol=1e-4, atol=1e-5)


def test_answers_adds_orders_and_chooses_among_rows() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])
    owners = torch.tensor([0, 0, 1])
    added = answers(scores, owners, torch.tensor([0, 1, 0]), 2, None)
    assert added.tolist() == [[4.0, 7.0], [7.0, 11.0]]
    chosen = answers(scores[:, :1], owners, torch.tensor([0, 1, 0]), 2, 2)
    assert chosen.tolist() == [[1.0, 3.0], [7.0, -torch.inf]]


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_get_rows_and_old_ones_keep_theirs(tied) -> None:
    model = Transformer(ModelConfig(**SHAPE, vocab_size=50, tie_embeddings=tied, head_bias=True)).initialise(3).eval()
    grown = with_tokens(model, 53, [50, 51, 52], seed=4)
    ids = torch.tensor([[1, 2, 3, 49]])
    assert torch.equal(grown(ids).logits()[..., :50], model(ids).logits())
    table = grown.embedding.weight.detach()
    assert table.shape == (53, 32) and len({tuple(row) for row in table[50:].tolist()}) == 3
    assert table[50:].std() == pytest.approx(float(model.embedding.weight.detach().std()), rel=0.3)
    again = with_tokens(model, 53, [50, 51, 52], seed=4)
    assert torch.equal(again.embedding.weight, table)
    spare = with_tokens(model, 50, [48, 49], seed=4)  # room that the vocabulary had: drawn anew, nothing added
    assert spare.config.vocab_size == 50 and torch.equal(spare.embedding.weight[:48], model.embedding.weight[:48])
    assert not torch.equal(spare.embedding.weight[48], model.embedding.weight[48])
    with pytest.raises(ValueError, match="outside a vocabulary of 51"):
        with_tokens(model, 51, [51], seed=0)


FAMILIES = [
    ({"qk_norm": False}, "LlamaForSequenceClassification"),
    (GPT2, "GPT2ForSequenceClassification"),
    (GPT1, "OpenAIGPTForSequenceClassification"),
]


@pytest.mark.parametrize(("more", "name"), FAMILIES)
def test_files_open_in_transformers_with_their_labels(tokenizer, more, name, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, labels = made(tokenizer, **more), ["bad", "good", "so-so"]
    save_classifier(tmp_path / "m", model, tokenizer, "entailment", labels)
    export_model(str(tmp_path / "m"), tmp_path / "out")
    inputs = TaskInputs(tokenizer, 32)
    records = [{"premise": "the cat", "hypothesis": "sat"}, {"premise": "a dog ran on", "hypothesis": "the mat"}]
    rows = [inputs.encode(example("entailment", each, labelled=False))[0] for each in records]
    for place in (tmp_path / "m", tmp_path / "out"):
        theirs = AutoModelForSequenceClassification.from_pretrained(place).eval()
        assert type(theirs).__name__ == name and theirs.config.id2label == dict(enumerate(labels))
        assert AutoTokenizer.from_pretrained(place).convert_tokens_to_ids(TASK_TOKENS[2]) == inputs.extract
        opened = lmlab.load(place)
        assert isinstance(opened, ClassifierModel) and (opened.task, opened.labels) == ("entailment", labels)
        found = opened.classify(records)
        for ids, answer in zip(rows, found, strict=True):
            shares = theirs(torch.tensor([ids])).logits[0].softmax(0)
            assert list(answer["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-5)
            assert answer["label"] == labels[int(shares.argmax())]


def test_own_format_and_what_a_classifier_refuses(tokenizer, tmp_path: Path) -> None:
    model = made(tokenizer, architecture="prefix-decoder")
    save_classifier(tmp_path, model, tokenizer, "similarity", ["a", "b", "c"])
    again, task, labels = load_classifier(tmp_path)
    assert (task, labels) == ("similarity", ["a", "b", "c"]) and torch.equal(again.score.weight, model.score.weight)
    opened = lmlab.load(tmp_path)
    one = {"sentence1": "the cat", "sentence2": "a dog"}
    swapped = {"sentence1": "a dog", "sentence2": "the cat"}
    first, second = opened.classify([one, swapped])
    assert first["probabilities"] == pytest.approx(second["probabilities"], abs=1e-6), "similarity has no order"
    assert opened.classify(one)["label"] == first["label"]
    with pytest.raises(Refused, match=r"is a classifier \(similarity\)"):
        opened.generate("x")
    with pytest.raises(Refused, match="example 1: sentence2: is missing"):
        opened.classify([one, {"sentence1": "x"}])
    with pytest.raises(Refused, match="without a place"):
        load_model(tmp_path)
    with pytest.raises(Refused, match="read in float32"):
        lmlab.load(tmp_path, precision="bfloat16")
    with pytest.raises(Refused, match="is a classifier; GGUF"):
        export_model(str(tmp_path), tmp_path / "x.gguf", "gguf")
    with pytest.raises(Refused, match="is no classifier"):
        load_classifier(tmp_path / "nowhere")
