"""`lmlab generate` with the flags of every decoding method, and what is refused."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import lmlab
from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = train(["the cat sat on the mat, 12 + 30 = 42\n"] * 20, 300)
    config = ModelConfig(layers=2, d_model=32, heads=4, vocab_size=tokenizer.vocab_size, context_length=48)
    network = Transformer(config).initialise(3)
    with torch.no_grad():
        network.embedding.weight *= 20
    path = tmp_path_factory.mktemp("run") / "model"
    save_model(path, network, tokenizer)
    return str(path)


def ask(folder: str, *flags: str) -> dict:
    found = CliRunner().invoke(app, ["generate", folder, "the cat", "--max-new-tokens", "8", *flags, "--json"])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return json.loads(found.stdout)


def test_flags_are_the_library_s_settings(folder: str) -> None:
    model = lmlab.load(folder)
    greedy = ask(folder)
    assert greedy["text"] == model.generate("the cat", 8)
    assert {"prompt", "text", "ids", "logprobs", "finish_reason"} == set(greedy)
    drawn = ask(folder, "--temperature", "2", "--seed", "3", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01")
    assert drawn["text"] == model.generate("the cat", 8, 2.0, 3, top_k=50, top_p=0.9, min_p=0.01) != greedy["text"]
    penalised = ask(folder, "--repetition-penalty", "3", "--frequency-penalty", "9", "--presence-penalty", "1")
    more = {"repetition_penalty": 3.0, "frequency_penalty": 9.0, "presence_penalty": 1.0}
    assert penalised["text"] == model.generate("the cat", 8, **more)
    assert len(set(penalised["ids"])) == len(penalised["ids"])
    stop = greedy["text"][3:5]
    assert ask(folder, "--stop", stop)["text"] == greedy["text"][: greedy["text"].find(stop)]
    assert [len(top) for top in ask(folder, "--top-logprobs", "3")["top_logprobs"]] == [3] * 8
    assert ask(folder, "--precision", "int8")["ids"]


def test_the_other_methods(folder: str, tmp_path: Path) -> None:
    greedy = ask(folder)
    beams = ask(folder, "--beams", "3", "--length-penalty", "0")
    scores = [each["score"] for each in beams["hypotheses"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert scores[0] >= sum(greedy["logprobs"]) - 1e-4
    assert ask(folder, "--contrastive", "0")["ids"] == greedy["ids"]
    drafted = ask(folder, "--draft", folder)
    assert drafted["ids"] == greedy["ids"] and drafted["draft"]["acceptance"] == 1.0
    assert ask(folder, "--regex", "(yes|no)")["text"] in ("yes", "no")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["a", "b"]}', encoding="utf-8")
    assert json.loads(ask(folder, "--json-schema", str(schema))["text"]) in ("a", "b")
    assert json.loads(ask(folder, "--json-schema", '{"enum": [1, 2]}')["text"]) in (1, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beams", "2", "--contrastive", "0.5"], "--beams and --contrastive exclude each other"),
        (["--beams", "2", "--temperature", "1"], "--beams chooses by itself and does not take temperature"),
        (["--precision", "int7"], "--precision int7: expected float32, bfloat16, int8, int4"),
        (["--truncate", "middle"], "truncate is middle; expected left, right or None"),
        (["--json-schema", "nowhere.json"], "expected a JSON schema or a file that holds one"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: str, flags: list[str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        ask(folder, *flags)


def test_an_unknown_setting_is_named_with_the_nearest(folder: str) -> None:
    with pytest.raises(Refused, match="'min_q' is no setting of sampling.*min_p"):
        lmlab.load(folder).generate("a", min_q=1)


def test_the_page_s_commands_and_its_python_work(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("lmlab generate ") and " api:" not in line]
    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line.replace("runs/demo", folder))[1:]
        found = CliRunner().invoke(app, [*words, "--max-new-tokens", "16"])
        assert found.exit_code == 0, f"{line}: {found.exception or found.output}"
    load = lmlab.load
    monkeypatch.setattr(lmlab, "load", lambda name: load(folder if name == "runs/demo" else name))
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(code, {})
