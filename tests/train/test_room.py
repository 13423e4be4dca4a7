"""What cannot fit into memory is refused before the first step, with settings that make it fit and change nothing else."""

import re
import shutil
import sysconfig
from pathlib import Path

import pytest
import yaml

from lmlab import recipe
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.train import pretrain, room
from lmlab.train.pretrain_config import PretrainConfig
from lmlab.train.room import Step, room_for

SHAPE = ModelConfig(layers=4, d_model=128, heads=4, vocab_size=512, context_length=128)


def step_of(ranks: int = 1, **settings) -> Step:
    return Step(SHAPE, PretrainConfig.model_validate(settings), "float32", "math", 32, 128, ranks)


def least(step: Step, recompute: str) -> float:
    return min(step.need(**each).total for each in step.changes() if each["recompute"] == recompute)


def test_what_fits_is_said_with_its_parts(capsys) -> None:
    step = step_of(ema=0.9)
    need = step.need()
    room_for("pretrain", step, round(1.1 * need.total))
    room_for("pretrain", step, 2**40)
    near, far = capsys.readouterr().err.splitlines()
    assert near.startswith(f"memory: about {need.total / 2**20:.0f} MiB of ")
    assert re.match(r"memory: at most about \d+ MiB of 1024.0 GiB that are free \(weights", far)
    for said in (near, far):
        assert all(f"{part} " in said for part in ("weights", "gradients", "optimizer", "average", "activations"))
    room_for("pretrain", step, None)  # where it is not known what there is


WIDE = {
    "vocab_size": 5000,
    "activation": "geglu",
    "norm_placement": "sandwich",
    "qk_norm": True,
    "attention_softcap": 5.0,
}
SHAPES = {
    "plain": {},
    "long": {"context_length": 1024, "heads": 8},
    "much in it": WIDE,
    "dropout": {"dropout": 0.1, "norm": "layernorm", "position": "relative-bias"},
    "experts": {"moe": {"experts": 4, "top_k": 2, "every": 1}},
    "encoder-decoder": {"architecture": "encoder-decoder"},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bound_is_one(name: str, precision: str) -> None:
    shape = ModelConfig.model_validate(SHAPE.model_dump() | SHAPES[name])
    for kernel in ("math", "sdpa"):
        step = Step(shape, PretrainConfig(), precision, kernel, 8, shape.context_length, 1)
        need, bound = step.need(), step.bound()
        for part in ("weights", "gradients", "optimizer"):
            assert bound[part] == pytest.approx(getattr(need, part))
        assert need.activations < bound["activations"], (need.activations, bound["activations"])


@pytest.mark.parametrize(
    ("between", "wanted"), [("none", {"micro_batches"}), ("full", {"micro_batches", "parallel.recompute"})]
)
def test_what_does_not_fit_is_refused_and_the_advice_makes_it_fit(between: str, wanted: set[str]) -> None:
    step = step_of()
    upper = step.need().total if between == "none" else least(step, "none")
    available = round((upper + least(step, between)) / 2)
    with pytest.raises(
        Refused, match="pretrain: a step needs about .* are free: set .*nothing else changes"
    ) as refused:
        room_for("pretrain", step, available)
    advice = dict(re.findall(r"pretrain\.([\w.]+)=(\w+)", str(refused.value)))
    assert advice.keys() == wanted
    given: dict = {"micro_batches": int(advice["micro_batches"])}
    if "parallel.recompute" in advice:
        given["parallel"] = {"recompute": advice["parallel.recompute"]}
    room_for("pretrain", step_of(**given), available)


def test_what_no_setting_can_fit_says_so() -> None:
    with pytest.raises(Refused, match="set fewer tokens a step, a shorter context or a smaller model"):
        room_for("mine", step_of(), 2**20)


def test_ranks_divide_what_they_divide() -> None:
    alone, two = step_of().need(), step_of(2, parallel={"zero": 3}).need()
    assert two.weights == alone.weights / 2 and two.optimizer == alone.optimizer / 2
    assert two.activations < 0.75 * alone.activations
    context = step_of(2, parallel={"context": 2}).need()
    assert context.weights == alone.weights and context.activations < 0.75 * alone.activations


def test_ranks_of_one_machine_share_what_is_free(monkeypatch) -> None:
    monkeypatch.setattr(room.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(room, "memory_here", lambda: {"available": 1000})
    assert room.free() == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert room.free() == 250
    monkeypatch.setattr(room, "memory_here", lambda: {"available": None})
    assert room.free() is None


def test_pretraining_is_refused_before_its_first_step(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "text").mkdir()
    for name in ("bisect", "chunk", "cmd", "code", "codeop", "colorsys", "compileall", "copy", "csv"):
        path = Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py"
        if path.exists():
            shutil.copy(path, tmp_path / "text")
    model = {"layers": 1, "d_model": 32, "heads": 2, "context_length": 64}
    settings = {
        "corpus": {"heldout_fraction": 0.3, "sources": [{"name": "text", "path": str(tmp_path / "text"), "extract": "code"}]},
        "tokenizer": {"vocab_size": 400},
        "pretrain": {"minutes": None, "steps": 2, "precision": "float32", "kernel": "math", "compile": False, "before": False,
                     "baselines": False, "prompts": [], "model": model},
    }  # fmt: skip
    monkeypatch.setattr(pretrain, "free", lambda: 2**20)
    with pytest.raises(Refused, match="pretrain: a step needs about"):
        recipe.run(recipe.loads(yaml.safe_dump(settings, sort_keys=False)), tmp_path / "run")
    assert not (tmp_path / "run/pretrain/metrics.jsonl").exists()
    monkeypatch.undo()
    recipe.run(recipe.loads(yaml.safe_dump(settings, sort_keys=False)), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.index("plan: 1 layers") < said.rindex("memory: about ") < said.index("pretrain: done")
