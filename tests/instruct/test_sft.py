"""The fine-tuning stage, end to end on a tiny model, cut off and taken up again."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lmlab import measure
from lmlab.config import parse, validate
from lmlab.errors import Refused
from lmlab.instruct import sft
from lmlab.instruct.families import HELD_OUT, SEEN
from lmlab.instruct.sft import STAGE, SftConfig
from lmlab.model.config import ModelConfig
from lmlab.model.store import load_model, save_model
from lmlab.model.transformer import Transformer
from lmlab.progress import Metrics
from lmlab.run import Context, write_json
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer

SETTINGS = {
    "families": ["copy", "count", "function", "find"],
    "rows": 6,
    "micro_tokens": 256,
    "max_length": 128,
    "test_items": 4,
    "samples": 1,
    "measure_precision": False,
    "train": {"steps": 6, "checkpoint_steps": 2, "optimizer": {"learning_rate": 0.003}},
}


@pytest.fixture(scope="module")
def places(renderer: Renderer, tmp_path_factory):
    """A pretrained model's directory and a corpus' directory."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    shape = ModelConfig(
        layers=1, d_model=32, heads=2, vocab_size=renderer.tokenizer.vocab_size, context_length=256, dropout=0.1
    )
    save_model(folder / "pretrain" / "model", Transformer(shape).initialise(0), renderer.tokenizer)
    text = "".join(
        f"def make_{i}(first, other_{i})\n    Make the thing number {chr(97 + i % 26)}.\n\n" for i in range(80)
    )
    rows = [{"id": "0", "source": "docstrings", "path": "a.py", "split": "train", "text": text, "keep": True}]
    (folder / "corpus" / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus" / "documents" / "part-00000.parquet")
    return {"model": folder / "pretrain", "corpus": folder / "corpus"}


def context_of(places, out, **settings) -> Context:
    out.mkdir(exist_ok=True)
    write_json(out / "state.json", {})
    config = SftConfig.model_validate({**SETTINGS, **settings})
    return Context("sft", "sft", config, dict(places), out, 3, Metrics(out))


def made(out) -> dict[str, bytes]:
    names = ["before.json", "results.json", "model/model.safetensors", "model/tokenizer.json", "model/config.json"]
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(places, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    headline = STAGE.run(context_of(places, out))
    return out, headline


def test_it_scores_seen_and_held_out_families_before_and_after(whole) -> None:
    out, headline = whole
    results = json.loads((out / "results.json").read_text())
    scores = results["exact_match"]
    assert set(scores) == {"seen", "unseen", "families"}
    assert set(scores["families"]) == {"copy", "count", "function", *HELD_OUT}
    for part, n in (("seen", 12), ("unseen", 12)):
        for when in ("before", "after"):
            score = scores[part][when]
            assert set(score) == {"value", "low", "high", "n"}
            assert score["n"] == n
            assert score == measure.proportion(round(score["value"] * n), n).to_json()
    assert headline == {f"exact_match_{part}": scores[part]["after"]["value"] for part in ("seen", "unseen")}
    for name, verdicts in results["verdicts"].items():
        assert sum(verdicts["after"].values()) == 4
        assert verdicts["after"]["right"] == round(scores["families"][name]["after"]["value"] * 4)
    assert [row["family"] for row in results["samples"]] == ["copy", "count", "function", *HELD_OUT]
    assert {"prompt", "answer", "output", "verdict", "before", "verdict_before"} <= set(results["samples"][0])
    assert "make_" in next(row for row in results["samples"] if row["family"] == "function")["prompt"]


def test_it_leaves_a_model_that_opens_and_has_learnt(whole, places) -> None:
    out, _ = whole
    network = load_model(out / "model")
    before = load_model(places["model"] / "model")
    assert Tokenizer.load(out / "model").fingerprint == Tokenizer.load(places["model"] / "model").fingerprint
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["loss"] == lines[0]["answers"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


@pytest.mark.parametrize("step", [0, 3, 5])
def test_cut_off_in_training_it_ends_the_same(whole, places, tmp_path, monkeypatch, step) -> None:
    fit = sft.fit

    def cut(*arguments, **named):
        def on_step(done, metrics):
            if done == step:
                raise Killed

        return fit(*arguments, on_step=on_step, **named)

    out = tmp_path / "out"
    monkeypatch.setattr(sft, "fit", cut)
    with pytest.raises(Killed):
        STAGE.run(context_of(places, out))
    monkeypatch.undo()
    asked = []
    answer = sft.answer
    monkeypatch.setattr(sft, "answer", lambda *given: asked.append(1) or answer(*given))
    STAGE.run(context_of(places, out))
    assert made(out) == made(whole[0])
    assert len(asked) == 1, "the scores from before training are taken up, not made again"


def test_cut_off_after_training_it_ends_the_same(whole, places, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    for name in ("save_model", "_scores"):
        monkeypatch.setattr(sft, name, lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            STAGE.run(context_of(places, out))
        assert not (out / "results.json").exists()
        monkeypatch.undo()
    STAGE.run(context_of(places, out))
    assert made(out) == made(whole[0])


def test_minutes_are_turned_into_steps_once(places, tmp_path) -> None:
    out = tmp_path / "out"
    context = context_of(places, out, minutes=0.002, families=["copy"], heldout_families=[], test_items=1)
    STAGE.run(context)
    plan = json.loads((out / "plan.json").read_text())
    assert plan["steps"] == max(1, int(60 * 0.002 / plan["seconds_a_step"]["float32"]))
    results = json.loads((out / "results.json").read_text())
    assert results["training"]["steps"] == plan["steps"]
    assert results["exact_match"]["unseen"]["after"]["n"] == 0


def test_the_fastest_precision_is_taken_and_written_down(places, tmp_path, monkeypatch) -> None:
    speeds = {"float32": 2.0, "float32-onednn": 3.0, "bfloat16": 1.0}
    monkeypatch.setattr(sft, "_seconds", lambda *given: speeds[given[-1]])
    config = SftConfig.model_validate({**SETTINGS, "measure_precision": True, "minutes": 1})
    plan = sft._plan(config, *[None] * 3)  # type: ignore[arg-type]
    assert plan == {"steps": 60, "precision": "bfloat16", "minutes": 1.0, "seconds_a_step": speeds}


def test_plain_text_beside_the_answers_is_a_term_of_its_own(places, tmp_path) -> None:
    out = tmp_path / "out"
    STAGE.run(context_of(places, out, text_share=0.5, families=["copy"], heldout_families=[], test_items=1))
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(line["answers"] + 0.1 * line["text"])
    without = {"model": places["model"]}
    with pytest.raises(Refused, match="has no training document"):
        STAGE.run(context_of(without, tmp_path / "two", text_share=0.5, families=["copy"], test_items=1))


def test_training_does_not_depend_on_the_micro_batches(places, tmp_path) -> None:
    networks = []
    for positions in (64, 4096):
        out = tmp_path / str(positions)
        train = {**SETTINGS["train"], "steps": 1, "optimizer": {"learning_rate": 1e-6}}
        STAGE.run(context_of(places, out, micro_tokens=positions, train=train, test_items=1, families=["copy"]))
        networks.append(json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["answers"])
    # Dropout draws otherwise for other shapes, so the losses are near and not equal.
    assert networks[0] == pytest.approx(networks[1], rel=0.02)


def test_a_setting_leaves_the_defaults_of_the_others() -> None:
    given = SftConfig.model_validate({"train": {"optimizer": {"betas": [0.9, 0.99]}}})
    assert given.train.steps == SftConfig().train.steps
    assert given.train.schedule == SftConfig().train.schedule
    assert given.train.optimizer.learning_rate == SftConfig().train.optimizer.learning_rate != 3e-4
    assert given.train.optimizer.name == "muon"


def test_defaults_train_all_but_the_held_out_families() -> None:
    config = SftConfig()
    assert config.trained == SEEN
    assert config.tested == (*SEEN, *HELD_OUT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("families: [copi]", "families: there is no family 'copi'; did you mean 'copy'"),
        ("heldout_families: [fnid]", "did you mean 'find'"),
        ("weights: {swap: 2}", "weights: 'swap' is not trained"),
        ("families: [swap]", "none is left to train on"),
        ("families: [copy]\nweights: {copy: 0}", "none is left to train on"),
        ("families: [copy, sort]\nweights: {copy: -1, sort: 3}", "cannot be negative"),
        ("train: {step: 3}", "unknown key; did you mean 'steps'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message) -> None:
    document = parse(settings, "recipe")
    with pytest.raises(Refused, match=message):
        validate(SftConfig, document.data, document)
