"""The whole life, small: it runs, a second run does nothing, and a life killed at random moments ends with the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STAGES = ("corpus", "tokenizer", "pretrain", "sft", "reward", "ppo", "evaluate", "report")
TIMES = {
    "seconds",
    "tokens_per_second",
    "input_wait",
    "measured",
    "finished",
    "machine",
    "started",
    "created",
    "time",
    "created_at",
}


def write_corpus(folder: Path) -> None:
    """Some modules of the standard library, as a user's folder of code."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(p.name for p in library.glob("[a-h]*.py"))[:60]:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(library / name, folder / name)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("life")
    write_corpus(folder / "text")
    text = (Path(__file__).parent / "tiny.yaml").read_text().replace("CORPUS", str(folder / "text"))
    (folder / "tiny.yaml").write_text(text)
    return folder / "tiny.yaml"


def command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "lmlab", "run", str(recipe), "--out", str(out)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def life(recipe) -> Path:
    out = recipe.parent / "whole"
    subprocess.run(command(recipe, out), check=True, env=ENVIRONMENT)
    return out


def timeless(value):
    """A JSON value without what the clock wrote."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES and "second" not in k}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def fingerprints(out: Path) -> dict[str, str]:
    """What a life left, by file: weights and Parquet by their bytes, results by their values without times."""
    found = {}
    for path in sorted(out.rglob("*")):
        inside = str(path.relative_to(out))
        if path.suffix in (".safetensors", ".parquet", ".bin") or path.name in ("items.jsonl", "tokenizer.json"):
            if "checkpoints" not in inside:
                found[inside] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in ("results.json", "report.json"):
            value = timeless(json.loads(path.read_text()))
            if inside == "report.json":
                assert value.pop("run") == out.name
            text = json.dumps(value, sort_keys=True)
            found[inside] = hashlib.sha256(text.replace(str(out), "RUN").encode()).hexdigest()
    return found


def test_the_whole_life_leaves_what_it_should(life):
    run = json.loads((life / "run.json").read_text())
    assert [name for name, stage in run["stages"].items() if stage["status"] == "done"] == list(STAGES)
    report = json.loads((life / "report.json").read_text())["stages"]
    scores = [report["pretrain"]["bits_per_byte"][k] for k in ("before", "after", "xz", "ngram")]
    scores += [report["sft"]["exact_match"][k][when] for k in ("seen", "unseen") for when in ("before", "after")]
    scores += [report["ppo"][k][when] for k in ("reward", "rule_score", "kl") for when in ("before", "after")]
    scores.append(report["reward"]["pair_accuracy"])
    for score in scores:
        assert set(score) >= {"value", "low", "high", "n"} and score["low"] <= score["value"] <= score["high"]
        assert score["n"] >= 1
    assert all(isinstance(report[name]["seconds"], float) for name in STAGES if name != "report")
    after, before = report["pretrain"]["bits_per_byte"]["after"], report["pretrain"]["bits_per_byte"]["before"]
    assert after["value"] < before["value"]
    assert not list(life.rglob("*.pkl")) and not list(life.rglob("*.pt")) and not list(life.rglob("*.tmp"))


def test_a_second_run_does_nothing(recipe, life):
    before = fingerprints(life)
    again = subprocess.run(command(recipe, life), check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert again.stderr.count("skipped") == len(STAGES)
    assert fingerprints(life) == before


@pytest.mark.parametrize("seed", [0, 1])
def test_a_life_killed_at_random_moments_ends_with_the_same_bits(recipe, life, seed, tmp_path):
    """SIGKILL after random seconds, again and again, at least once in each stage that takes long enough to be hit."""
    out = tmp_path / f"killed-{seed}"
    chance = random.Random(seed)
    hit: set[str] = set()
    for _ in range(200):
        process = subprocess.Popen(
            command(recipe, out), env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wanted = next((stage for stage in STAGES[:-1] if stage not in hit), None)
        killed = wait_and_kill(process, out, wanted, chance)
        if killed:
            hit.add(killed)
        elif process.returncode == 0:
            break
    assert process.returncode == 0
    assert len(hit) >= 5, hit
    found, wanted = fingerprints(out), fingerprints(life)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def wait_and_kill(process: subprocess.Popen, out: Path, wanted: str | None, chance: random.Random) -> str | None:
    """Let the stage `wanted` work for a random while, then kill the process; the stage that was hit, or None."""
    deadline = None
    while process.poll() is None:
        if wanted is not None and deadline is None and (out / wanted / "state.json").exists():
            deadline = time.monotonic() + chance.expovariate(1 / 1.0)
        if deadline is not None and time.monotonic() >= deadline:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return wanted if process.returncode == -signal.SIGKILL else None
        time.sleep(0.01)
    return None


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo"])
def test_each_stage_opens_in_transformers(life, stage):
    """The same logits and the same greedy text from transformers as from us."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import lmlab

    folder = life / stage / "model"
    theirs, ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), lmlab.load(folder)
    ids = ours.tokenizer.encode("def open(file, mode):\n    return ")
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        written = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    assert (ours.logits([ids]) - expected).abs().max() < 1e-4
    (text,) = ours.generate(["def open(file, mode):\n    return "], max_new_tokens=20)
    assert text == ours.tokenizer.decode(written)
    theirs_tokenizer = AutoTokenizer.from_pretrained(folder)
    assert theirs_tokenizer("def open(file)").input_ids == ours.tokenizer.encode("def open(file)")


def test_the_reward_model_opens_as_a_classifier(life):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(life / "reward" / "model").eval()
    assert model.config.num_labels == 1
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 1)


def test_commands_answer_over_a_finished_run(life):
    def ask(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "lmlab", *words], env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(ask("corpus", "inspect", str(life), "--json"))
    assert json.loads(ask("model", "show", str(life), "--json"))["parameters"]["total"] > 0
    assert json.loads(ask("generate", str(life), "def ", "--max-new-tokens", "5", "--json"))["prompt"] == "def "
    assert json.loads(ask("report", str(life), "--json"))["stages"]
    compared = json.loads(ask("compare", str(life / "evaluate"), str(life / "evaluate"), "--json"))
    assert compared


def test_a_grid_runs_arms_and_seeds(recipe, tmp_path):
    text = (
        "\n".join(line for line in recipe.read_text().split("sft:")[0].splitlines())
        + "\ngrid: {pretrain.model.activation: [swiglu, gelu]}\nseeds: [0, 1]\n"
    )
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    out = tmp_path / "runs"
    subprocess.run(command(path, out), check=True, env=ENVIRONMENT)
    results = list(out.rglob("pretrain/results.json"))
    assert len({str(p) for p in results}) == 4
    subprocess.run([sys.executable, "-m", "lmlab", "report", str(out)], check=True, env=ENVIRONMENT)
    assert (out / "report.html").exists()
