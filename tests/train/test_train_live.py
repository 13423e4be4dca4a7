"""What a run shows while it trains: the same numbers as after it, the same training with it and without, after any kill."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

from lmlab import recipe
from lmlab.config import parse
from lmlab.errors import Failed, Refused
from lmlab.progress import read_jsonl
from lmlab.report.live.snapshot import snapshot
from lmlab.train import pretrain
from lmlab.train.live import LiveConfig, Some

TEXT = """
corpus: {heldout_fraction: 0.3, sources: [{name: text, path: PLACE, extract: code}]}
tokenizer: {vocab_size: 400, sentinels: 30}
pretrain:
  {minutes: null, steps: 6, batch_tokens: 256, precision: float32, kernel: math, compile: false, baselines: false,
   before: false, prompts: ["def ", "import "], checkpoint_steps: 2,
   model: {layers: 1, d_model: 32, heads: 2, context_length: 64, dropout: 0.1}}
"""
ALL = "pretrain.live={every: 2, documents: 100000, tokens: 1000000}"
SOME = "pretrain.live={every: 2, documents: 3, tokens: 40}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    (folder / "text").mkdir()
    for name in ("bisect", "chunk", "cmd", "code", "codeop", "colorsys", "compileall", "copy", "csv", "dis", "enum"):
        module = Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py"
        if module.exists():
            shutil.copy(module, folder / "text")
    run(folder, folder / "off", "pretrain.live={share: 0}")
    return folder


def run(place: Path, out: Path, *overrides: str) -> Path:
    recipe.run(recipe.loads(TEXT.replace("PLACE", str(place / "text")), overrides=overrides), out)
    return out / "pretrain"


def curve(stage: Path) -> list[dict]:
    timed = ("seconds", "tokens_per_second", "input_wait")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(stage / "metrics.jsonl")]


def weights(stage: Path) -> dict:
    return {name: each.tolist() for name, each in load_file(stage / "model" / "model.safetensors").items()}


def test_the_last_number_is_the_result_and_training_is_the_same(place: Path, tmp_path: Path) -> None:
    stage = run(place, tmp_path / "on", ALL)
    rows = read_jsonl(stage / "heldout.jsonl")
    assert [row["step"] for row in rows] == [1, 3, 5] and [row["tokens_seen"] for row in rows] == [512, 1024, 1536]
    results = json.loads((stage / "results.json").read_text())
    after = results["bits_per_byte"]["after"]
    assert [rows[-1][f"bits_per_byte{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [after["value"], after["low"], after["high"]], rel=1e-6
    )
    assert rows[-1]["documents"] == after["n"] and rows[-1]["bits_per_byte"] < rows[0]["bits_per_byte"]
    samples = read_jsonl(stage / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in samples] == [(s, p) for s in (1, 3, 5) for p in ("def ", "import ")]
    assert [row["text"] for row in samples[-2:]] == [each["text"] for each in results["samples"]]
    without = place / "off" / "pretrain"
    assert not (without / "heldout.jsonl").exists() and not (without / "samples.jsonl").exists()
    assert curve(stage) == curve(without) and weights(stage) == weights(without)
    made = [json.loads((each / "provenance.json").read_text())["outputs"] for each in (stage, without)]
    assert made[0] == made[1] and "samples.jsonl" not in made[0], "what was shown is no part of what was made"
    (shown,) = [each for each in snapshot(tmp_path / "on")["stages"] if each["name"] == "pretrain"]
    bits = next(each for each in shown["curves"] if each["key"] == "bits_per_byte")
    assert bits["step"] == [1, 3, 5] and all(a < b < c for a, b, c in zip(bits["low"], bits["value"], bits["high"]))
    assert [each["step"] for each in shown["samples"]] == [3, 3, 5, 5]


def test_what_is_shown_of_averaged_weights_is_what_is_saved(place: Path, tmp_path: Path) -> None:
    averaged = "pretrain.ema=0.9"
    stage, without = (
        run(place, tmp_path / "on", ALL, averaged),
        run(place, tmp_path / "off", "pretrain.live={share: 0}", averaged),
    )
    assert curve(stage) == curve(without) == curve(place / "off" / "pretrain") and weights(stage) == weights(without)
    assert weights(stage) != weights(place / "off" / "pretrain")
    after = json.loads((stage / "results.json").read_text())["bits_per_byte"]["after"]["value"]
    assert read_jsonl(stage / "heldout.jsonl")[-1]["bits_per_byte"] == pytest.approx(after, rel=1e-6)


def test_other_settings_of_it_are_the_same_stage(place: Path, capsys) -> None:
    run(place, place / "off", SOME)
    assert "pretrain: finished before, skipped" in capsys.readouterr().err


def test_after_a_kill_every_step_is_there_once(place: Path, tmp_path: Path, monkeypatch) -> None:
    fit = pretrain.fit

    def killed(*given, on_step, **named):
        def step_and_die(step, metrics):
            on_step(step, metrics)
            if step == 3:
                raise KeyboardInterrupt

        return fit(*given, on_step=step_and_die, **named)

    monkeypatch.setattr(pretrain, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / "cut", SOME)
    assert [row["step"] for row in read_jsonl(tmp_path / "cut/pretrain/heldout.jsonl")] == [1, 3]
    monkeypatch.setattr(pretrain, "fit", fit)
    stage = run(place, tmp_path / "cut", SOME)  # from the checkpoint before step 2
    whole = run(place, tmp_path / "whole", SOME)
    for name in ("heldout.jsonl", "samples.jsonl"):
        assert (stage / name).read_bytes() == (whole / name).read_bytes()
    assert weights(stage) == weights(place / "off" / "pretrain")


def test_time_decides_within_its_share(place: Path, tmp_path: Path, monkeypatch) -> None:
    """A clock on which a step takes 10 seconds and a measurement 1: with a share of 4% one in 25 seconds."""
    from lmlab.train import live

    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    written: list[int] = []
    seen = live.Live(
        None, LiveConfig(share=0.04), nn.Identity(), None, pretrain.Ranks(), lambda step: step, None, None  # type: ignore[arg-type]
    )  # fmt: skip
    seen._forget = lambda step: None  # type: ignore[method-assign]

    def write(step, model):
        now[0] += 1.0
        written.append(step)

    seen._write = write  # type: ignore[method-assign]
    for step in range(12):
        now[0] += 10.0
        seen(step, {})
    assert written == [1, 4, 7, 10]


def test_what_cannot_be_measured_does_not_stop_training(place: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def fails(*_):
        raise Failed("logits are not numbers")

    monkeypatch.setattr(pretrain.Heldout, "after", fails)
    with pytest.raises(Failed, match="logits are not numbers"):  # the measurement after training is not optional
        run(place, tmp_path / "out", SOME)
    assert len(curve(tmp_path / "out" / "pretrain")) == 6
    assert "pretrain: step 1 could not be measured: logits are not numbers" in capsys.readouterr().err


MARKS = "tokenizer.extra_tokens=['[MASK]', '[sMASK]', '[gMASK]', '<|startofpiece|>', '<|endofpiece|>']"


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [("encoder-decoder", "span-corruption"), ("prefix-decoder, position: glm-2d", "blank-infilling")],
)
def test_other_formats_are_measured_too(place: Path, tmp_path: Path, architecture: str, objective: str) -> None:
    shape = f"pretrain.model={{architecture: {architecture}, layers: 1, d_model: 32, heads: 2, context_length: 64}}"
    stage = run(place, tmp_path / "out", SOME, MARKS, shape, f"pretrain.objective={objective}")
    rows = read_jsonl(stage / "heldout.jsonl")
    assert len(rows) == 3 and all(0 < row["bits_per_byte"] < 20 for row in rows)
    assert len(read_jsonl(stage / "samples.jsonl")) == 6


def test_some_documents_are_spread_over_all() -> None:
    class Held:
        def __len__(self):
            return 10

        def document(self, index):
            return [index] * 30

    found = list(Some(Held(), LiveConfig(documents=4, tokens=20)))
    assert [each[0] for each in found] == [0, 2, 5, 7] and {len(each) for each in found} == {20}
    assert len(Some(Held(), LiveConfig(documents=50))) == 10


def test_settings_are_checked() -> None:
    with pytest.raises(Refused, match="pretrain.live.every: Input should be greater than or equal to 1"):
        recipe.check(parse("corpus: {}\ntokenizer: {}\npretrain: {live: {every: 0}}", "recipe"), "recipe")
