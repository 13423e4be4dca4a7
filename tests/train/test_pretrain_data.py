"""Pretraining by a mixture, and with a tokenizer that loses text: what results.json says about both."""

import json

import pytest

from lmlab import recipe
from lmlab.corpus.shards import Shards
from lmlab.corpus.store import documents
from lmlab.errors import Refused
from lmlab.text.tokenizer import Tokenizer

RECIPE = """
corpus:
  heldout_fraction: 0.2
  heldout_minimum: 2
  near_duplicates: {{enabled: false}}
  decontamination: {{enabled: false}}
  prose_rules: {{enabled: false}}
  language: {{enabled: false}}
  sources:
    - {{name: fox, path: {folder}/fox}}
    - {{name: sums, path: {folder}/sums}}
tokenizer: {{vocab_size: 330}}
pretrain:
  minutes: null
  steps: 4
  batch_tokens: 64
  precision: float32
  compile: false
  baselines: false
  prompts: []
  copying: 8
  model: {{layers: 1, d_model: 16, heads: 1, context_length: 16}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    for name in ("fox", "sums"):
        (place / name).mkdir()
        for n in range(12):
            text = (
                f"The fox number {n} jumps over the lazy dog {n}, again.\n"
                if name == "fox"
                else f"{n} + {n} = {2 * n}\n"
            )
            (place / name / f"{n}.txt").write_text(text * 6, encoding="utf-8")
    return place


def train(folder, out, *overrides: str) -> dict:
    read = recipe.loads(RECIPE.format(folder=folder), "small", overrides)
    place = recipe.run(read, out)
    return json.loads((place / "pretrain" / "results.json").read_text())


def test_a_mixture_is_what_was_seen(folder, tmp_path) -> None:
    found = train(folder, tmp_path, "pretrain.mixture.weights={fox: 1, sums: 3}")
    assert {name: each["tokens"] for name, each in found["seen"].items()} == {"fox": 4 * 16, "sums": 12 * 16}
    assert set(found["bits_per_byte_by_source"]) == {"fox", "sums"}
    assert found["copying"]["accuracy"]["n"] == 8 and "heldout_bytes_in_text" not in found
    shards = Shards(tmp_path / "pretrain" / "tokens" / "train")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert shards.index["tokenizer"] == tokenizer.fingerprint
    for row in documents(tmp_path / "corpus", "train"):
        assert tokenizer.decode(shards.document(shards.find(row["id"]))) == row["text"]
    with pytest.raises(Refused, match="no source 'fix'; did you mean 'fox'"):
        train(folder, tmp_path / "other", "pretrain.mixture.weights={fix: 1, sums: 3}")


def test_without_one_every_source_is_counted_too(folder, tmp_path) -> None:
    found = train(folder, tmp_path)
    assert sum(each["tokens"] for each in found["seen"].values()) == 4 * 64
    assert "copying" in found and found["bits_per_byte"]["after"]["value"] > 0


def test_a_tokenizer_that_loses_text_is_measured_on_what_it_spells(folder, tmp_path) -> None:
    words = "tokenizer={algorithm: wordpiece, vocab_size: 120}"
    found = train(folder, tmp_path, words, "pretrain.baselines=true")
    heldout = Shards(tmp_path / "pretrain" / "tokens" / "heldout")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    spelt = sum(len(tokenizer.decode(heldout.document(i)).encode()) for i in range(len(heldout)))
    assert found["heldout_bytes"] == spelt != found["heldout_bytes_in_text"]
    assert "xz" in found["bits_per_byte"] and "excess" not in found["bits_per_byte"]


@pytest.mark.parametrize("name", ["mixture", "amount", "duplicates", "quality"])
def test_the_shipped_experiments_differ_in_one_thing_and_leave_nothing_to_the_clock(name: str) -> None:
    read = recipe.load(f"data/{name}")
    assert read.seeds == (0, 1, 2) and len(read.arms) >= 2
    changed = []
    for steps in read.arms.values():
        pretrain = next(step for step in steps if step.kind == "pretrain")
        settings = pretrain.config.model_dump()
        varied = (settings.pop("mixture"), pretrain.sources["corpus"])
        changed.append(repr(varied))
        assert settings["minutes"] is None and settings["steps"] and settings["precision"] == "float32"
        assert settings["kernel"] == "sdpa" and settings["compile"] is False and settings["copying"]
        assert settings == first_settings(read)
    assert len(set(changed)) == len(read.arms)


def first_settings(read: recipe.Recipe) -> dict:
    steps = next(iter(read.arms.values()))
    settings = next(step for step in steps if step.kind == "pretrain").config.model_dump()
    settings.pop("mixture")
    return settings
