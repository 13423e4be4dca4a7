"""Pretraining goes on from any MODEL: its tokenizer, its shape, as a prefix decoder, on other text; the identity is sound."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from lmlab import recipe
from lmlab.errors import Refused
from lmlab.model.store import load_model
from lmlab.objective.middle import MARKS
from lmlab.run import identity
from lmlab.text.tokenizer import Tokenizer
from lmlab.train.plan import Shape
from lmlab.train.start import starting_point

CORPUS = """
corpus: {heldout_fraction: 0.3, sources: [{name: text, path: PLACE, extract: code}]}
"""
USUAL = "minutes: null, batch_tokens: 256, precision: float32, compile: false, baselines: false, prompts: []"
FIRST = """
tokenizer: {vocab_size: 512, sentinels: 40}
base: {use: pretrain, steps: 3, %s, model: {layers: 1, d_model: 32, heads: 2, context_length: 64}}
prefixed: {use: pretrain, steps: 2, %s, from: {model: base}, objective: {name: ul2, recipe: ul2r, mode_tokens: false},
           model: {architecture: prefix-decoder, context_length: 64}}
"""
NEXT = "pretrain: {steps: 2, %s, from: {model: MODEL}, model: {context_length: 48}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("continue")
    (folder / "text").mkdir()
    for name in (
        "bisect",
        "chunk",
        "cmd",
        "code",
        "codeop",
        "colorsys",
        "compileall",
        "contextvars",
        "copy",
        "crypt",
        "csv",
    ):
        module = Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py"
        if module.exists():
            shutil.copy(module, folder / "text")
    recipe.run(read(folder, CORPUS + FIRST % (USUAL, USUAL)), folder / "run")
    return folder


def read(folder: Path, text: str, model: str = "", overrides=()) -> recipe.Recipe:
    return recipe.loads(text.replace("PLACE", str(folder / "text")).replace("MODEL", model), overrides=overrides)


def results(stage: Path) -> dict:
    return json.loads((stage / "results.json").read_text())["bits_per_byte"]


def test_a_causal_model_goes_on_as_a_prefix_decoder(place: Path) -> None:
    base, after = load_model(place / "run/base/model"), load_model(place / "run/prefixed/model")
    assert after.config.architecture == "prefix-decoder"
    assert after.config.model_dump() == base.config.model_dump() | {"architecture": "prefix-decoder"}
    # Without training the two are one: before its first step, the second is as good as the first after its last.
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert not torch.equal(base(tokens).logits(), after(tokens).logits())
    # The measure before is of another format (source and target), the first piece apart it is the same task.
    assert results(place / "run/prefixed")["before"]["value"] == pytest.approx(
        results(place / "run/base")["after"]["value"], rel=0.05
    )


def test_a_second_pretraining_does_not_start_from_the_first_unless_told(place: Path) -> None:
    steps = read(place, CORPUS + FIRST % (USUAL, USUAL)).arms[""]
    assert "model" not in steps[-2].sources and steps[-1].sources["model"] == "base"


@pytest.mark.parametrize("reference", ["run/base", "run/base/model", "run"])
def test_any_path_of_a_model_is_continued_with_its_tokenizer(place: Path, reference: str, tmp_path: Path) -> None:
    out = tmp_path / "again"
    recipe.run(read(place, CORPUS + NEXT % USUAL, str(place / reference)), out)
    started = "prefixed" if reference == "run" else "base"
    assert results(out / "pretrain")["before"]["n"] == results(place / "run" / started)["after"]["n"]
    saved = out / "pretrain/model/tokenizer.json"
    assert saved.read_bytes() == (place / "run/base/model/tokenizer.json").read_bytes()
    config = load_model(out / "pretrain/model").config
    assert config == load_model(place / "run" / started / "model").config


def test_other_weights_are_another_identity_wherever_the_model_lies(place: Path, tmp_path: Path) -> None:
    """A run's files say nothing of the weights: the model's own directory must be what is taken."""
    shutil.copytree(place / "run/base/model", tmp_path / "model")
    found = recipe._place(tmp_path / "out", str(place / "run"), model=True)
    assert found == (place / "run/prefixed/model").resolve()
    before = identity(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert identity(tmp_path / "model") != before
    assert identity(Path("preset:gpt2")) != identity(Path("preset:gpt2-medium")) and identity(Path("preset:gpt2"))


@pytest.mark.parametrize(
    ("model", "override", "message"),
    [
        ("preset:gtp2", "", "no such preset; did you mean 'gpt2'"),
        ("preset:gpt2", "", "needs a 'tokenizer'"),
        ("hf:nobody", "", "expected hf:OWNER/NAME"),
        ("nowhere", "", "no path called 'nowhere'"),
    ],
)
def test_what_is_no_model_is_refused_when_the_recipe_is_read(
    place: Path, model: str, override: str, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        read(place, CORPUS + NEXT % USUAL, model)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain.model.d_model=64"], "d_model 64 .the model: 32.*keeps its shape"),
        (["pretrain.model.context_length=128"], "128 is more than the context of .*64"),
        (["pretrain.model.architecture=encoder-decoder", "pretrain.objective=prefix-lm"], "no encoder-decoder can be"),
        (
            ["pretrain.objective=fim", "pretrain.model.context_length=8"],
            "objective fim: a context of 8 tokens has no room",
        ),
        (["tokenizer.vocab_size=400"], "its own, and .* is another"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    place: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        text = CORPUS + ("tokenizer: {}\n" if "tokenizer" in overrides[0] else "") + NEXT % USUAL
        recipe.run(read(place, text, str(place / "run/base"), overrides), tmp_path / "out")


def test_a_vocabulary_without_what_the_objective_needs_gets_it(place: Path, tmp_path: Path, capsys) -> None:
    """A public causal model has neither sentinels nor marks; U-PaLM's and fill-in-the-middle's continuation need some."""
    model = str(place / "run/base/model")
    known = load_model(Path(model))
    start = starting_point("pretrain", Shape(context_length=48), {"model": Path(model)})
    tokens = ["<mask>", "[X]"]
    grown = start.adding(tokens)
    made = grown.model(grown.shape, seed=1)
    had = known.config.vocab_size
    assert grown.new == (start.tokenizer.vocab_size, start.tokenizer.vocab_size + 1)
    assert made.config.vocab_size == max(had, grown.tokenizer.vocab_size)
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        old, new = known(ids).logits(), made(ids).logits()
    kept = [i for i in range(had) if i not in grown.new]
    torch.testing.assert_close(new[..., kept], old[..., kept])
    assert all(parameter.requires_grad for parameter in made.parameters())
    out, objective = (
        tmp_path / "out",
        "pretrain.objective={name: mixture, parts: [{objective: causal-lm}, {objective: fim}]}",
    )
    recipe.run(read(place, CORPUS + NEXT % USUAL, model, [objective]), out)
    assert "fim_prefix|> <|fim_suffix|> <|fim_middle|>" in capsys.readouterr().err.split("needs 3 tokens", 1)[1]
    after, tokenizer = load_model(out / "pretrain/model"), Tokenizer.load(out / "pretrain/model")
    marks = [tokenizer.token_id(mark) for mark in MARKS]
    assert max(marks) < after.config.vocab_size == max(had, tokenizer.vocab_size)
    assert 0 < results(out / "pretrain")["after"]["value"] < 20
