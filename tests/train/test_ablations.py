"""A shipped ablation from end to end, small: every arm is measured in longer windows, and the command says what it found."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.report import write_report

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Overrides that make a recipe tiny, on files of its own."""
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(24):
        lines = [
            f"{WORDS[(n + i) % 10]}_{i * n} = {WORDS[(n * i) % 10]}({n}, {i})  # the {i}th of them\n" for i in range(14)
        ]
        (folder / f"{n}.py").write_text("".join(lines))
    return [
        f"corpus.sources=[{{name: text, path: {folder}}}]",
        "corpus.heldout_fraction=0.2",
        "corpus.near_duplicates.enabled=false",
        "corpus.decontamination.enabled=false",
        "tokenizer.vocab_size=400",
        "pretrain.steps=3",
        "pretrain.batch_tokens=64",
        "pretrain.model={layers: 1, d_model: 16, heads: 2, context_length: 16, qk_norm: true}",
    ]


def test_positions_from_recipe_to_report(settings: list[str], tmp_path: Path) -> None:
    out, arms = tmp_path / "run", ["rope", "learned", "alibi"]
    chosen = "arms={rope: {}, learned: {pretrain.model.position: learned}, alibi: {pretrain.model.position: alibi}}"
    result = CliRunner().invoke(
        app, ["run", "ablations/position", *settings, chosen, "seeds=[0, 1]", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["arms"], found["first"], found["failed"]) == (arms, "rope", {})
    assert found["main"] == "pretrain.bits_per_byte.after" and list(found["summary"]) == arms
    assert all(row["n"] == 2 for row in found["summary"].values()) and found["summary"]["alibi"]["difference"]["n"] == 2
    for arm in arms:
        bits = json.loads((out / arm / "seed-0/pretrain/results.json").read_text())["bits_per_byte"]
        assert list(bits["by_length"]) == ["16", "32", "64", "128"] and "before" not in bits
        cannot = [length for length, it in bits["by_length"].items() if isinstance(it, str)]
        assert cannot == (["32", "64", "128"] if arm == "learned" else [])
    assert (out / "alibi/seed-1/tokenizer").is_symlink()
    page, _ = write_report(out)
    assert "The same text in longer windows" in page.read_text()
    data = json.loads((out / "report.json").read_text())
    assert "pretrain.bits_per_byte.by_length.128" in data["arms"]["alibi"]["difference"]


def test_equal_seeds_see_equal_batches(settings: list[str], tmp_path: Path) -> None:
    """Arms of equal settings and seed end alike, whatever ran between them; another seed does not."""
    arms = "arms={a: {}, b: {pretrain.model.norm: layernorm}, c: {pretrain.checkpoint_steps: 2}}"
    result = CliRunner().invoke(
        app, ["run", "ablations/norm-kind", *settings, arms, "seeds=[0, 1]", "--out", str(tmp_path / "run"), "--json"]
    )
    assert result.exit_code == 0, result.output
    values = {arm: row["values"] for arm, row in json.loads(result.stdout)["summary"].items()}
    assert values["a"] == values["c"] and values["a"] != values["b"] and values["a"][0] != values["a"][1]


def test_an_arm_that_diverges_is_listed_and_the_rest_is_shown(settings: list[str], tmp_path: Path) -> None:
    arms = "arms={tame: {}, wild: {pretrain.optimizer.learning_rate: 1e38, pretrain.clip: 0}}"
    words = ["run", "ablations/norm-kind", *settings, arms, "seeds=[0]", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and "tame" in result.stdout and "mean over seeds" in result.stdout
    assert "1 of 2 runs failed" in str(result.exception) and "wild/seed-0: pretrain: the" in str(result.exception)
