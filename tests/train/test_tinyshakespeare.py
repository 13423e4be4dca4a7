"""The recipe `tinyshakespeare` on a text of the user's own, small."""

import json
from pathlib import Path

from lmlab import recipe

LINES = "".join(
    f"KING {name}:\nSpeak, {name}, and say {n} words of {n * n}.\n\n" for n in range(700) for name in ("JOHN", "LEAR")
)


def test_the_recipe_trains_on_the_characters_of_any_text(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(LINES)
    given = [f"corpus.sources[0].path={tmp_path / 'mine.txt'}", "corpus.cut_bytes=2048", "pretrain.steps=30"]
    small = [
        "pretrain.model.layers=1",
        "pretrain.model.d_model=32",
        "pretrain.model.heads=1",
        "pretrain.prompts=[]",
        "pretrain.baselines=false",
    ]
    recipe.run(recipe.load("tinyshakespeare", [*given, *small]), tmp_path / "run")
    corpus = json.loads((tmp_path / "run/corpus/results.json").read_text())
    assert corpus["documents"]["heldout"] >= 4 and corpus["documents"]["train"] > 12, corpus
    found = json.loads((tmp_path / "run/pretrain/results.json").read_text())
    assert found["tokens"] == 30 * 768
    text = json.loads((tmp_path / "run/tokenizer/results.json").read_text())
    assert text["vocabulary"]["size"] == 262 and text["bytes_per_token"]["heldout"]["value"] == 1.0
    assert found["bits_per_byte"]["after"]["value"] < 0.8 * found["bits_per_byte"]["before"]["value"]
