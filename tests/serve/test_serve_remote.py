"""The whole round: lmlab's own server on a local port, and lmlab.load of its address. What comes back is the model's."""

from __future__ import annotations

import io
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch
from typer.testing import CliRunner

import lmlab
from lmlab import recipe
from lmlab.cli import app
from lmlab.errors import Refused
from lmlab.evaluate.compare import compare_places
from lmlab.generate.handle import Model
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.serve import chat, load_models, serve
from lmlab.serve.terminal import printable
from lmlab.text.tokenizer import Tokenizer

TURNS = [{"role": "user", "content": "hello to the world"}]
PAIRS = [
    ("the quick brown", " fox says"),
    ("the quick brown", " world"),
    ("say hello", " to the quiet world"),
    ("é", " ü"),
]


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    shape = ModelConfig(layers=2, d_model=32, heads=2, vocab_size=tokenizer.vocab_size, context_length=1024)
    network = Transformer(shape).initialise(5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12)
    place = tmp_path_factory.mktemp("model") / "tiny"
    save_model(place, network, tokenizer)
    return place


@pytest.fixture
def address(serve_at, folder) -> str:
    return f"api:tiny@{serve_at({'tiny': lmlab.load(folder)})}/v1"


def test_text_is_the_local_model_s(address: str, folder) -> None:
    here, there = lmlab.load(folder), lmlab.load(address)
    prompts = ["the quick", "hello to", ""]
    assert there.generate(prompts, 12) == here.generate(prompts, 12)
    drawn = {"max_new_tokens": 12, "temperature": 0.9, "seed": [3, 4, 5], "top_k": 40, "min_p": 0.001}
    assert there.generate(prompts, **drawn) == here.generate(prompts, **drawn)
    punished = {"repetition_penalty": 3.0, "frequency_penalty": 1.5, "presence_penalty": 1.0}
    assert there.generate(prompts, 12, **punished) == here.generate(prompts, 12, **punished)
    assert there.generate(prompts, 12, **punished) != here.generate(prompts, 12)
    text = here.generate("the quick", 12)
    assert there.generate("the quick", 12, stop=text[3:5]) == text[: text.find(text[3:5])]
    assert there.chat(TURNS, 12) == here.chat(TURNS, 12)
    assert "".join(piece.text for piece in there.chat_stream(TURNS, 12)) == here.chat(TURNS, 12)
    assert there.usage.completion_tokens > 0 and there.usage.prompt_tokens > 0  # type: ignore[attr-defined]


def test_scores_are_the_local_model_s(address: str, folder) -> None:
    here = lmlab.load(folder)
    words = ["the quick brown", "fox", "hello", "the world", "says", "quiet", "to", "the"]
    tried = [(word, here.generate(word, 1)) for word in words]
    greedy = next(pair for pair in tried if pair[1] and here.score([pair])[0].greedy)
    split = [("the qui", "ck fox"), ("a", ""), greedy]
    for there, pairs in (
        (lmlab.load(address), PAIRS),
        (lmlab.load(address, tokenizer=folder), [*PAIRS, *split]),
    ):
        for a, b in zip(there.score(pairs), here.score(pairs), strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
            assert (a.greedy, a.tokens) == (b.greedy, b.tokens)
    with pytest.raises(Refused, match="falls inside token"):
        lmlab.load(address).score([split[0]])


def ask(*words: str) -> dict:
    found = CliRunner().invoke(app, [*words, "--json"])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return json.loads(found.stdout)


def test_lmlab_generate(address: str, folder) -> None:
    here = ask("generate", str(folder), "the quick", "--max-new-tokens", "7")
    there = ask("generate", address, "the quick", "--max-new-tokens", "7")
    assert (there["text"], there["finish_reason"]) == (here["text"], here["finish_reason"])
    assert there["ids"] is None and there["usage"]["requests"] == 1 and there["usage"]["completion_tokens"] == 7
    for flags in (["--beams", "2"], ["--contrastive", "0.5"], ["--precision", "int8"], ["--draft", "x"]):
        with pytest.raises(Refused, match="needs the weights"):
            ask("generate", address, "the quick", *flags)
    with pytest.raises(Refused, match="its weights are needed here"):
        ask("model", "show", address)


def test_the_page_s_commands_work(address: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    named = "api:my-model@http://localhost:8000/v1"
    lines = [line for line in page.splitlines() if named in line and line.startswith(("lmlab generate", "lmlab eval"))]
    assert len(lines) == 2
    for line in lines:
        assert ask(*shlex.split(line.replace(named, address).replace("--items 32", "--items 1"))[1:])


def test_lmlab_eval_gives_the_local_model_s_results(address: str, folder, tmp_path) -> None:
    tasks = "copy/shots=1,arithmetic/shots=0/steps/vote=2"
    for name, place in (("here", str(folder)), ("there", address)):
        ask("eval", place, "--tasks", tasks, "--items", "3", "--out", str(tmp_path / name))
    here, there = (
        [json.loads(line) for line in (tmp_path / name / "items.jsonl").open()] for name in ("here", "there")
    )
    same = ("id", "task", "prompt", "output", "parsed", "score", "tokens", "finish_reason", "prompt_tokens", "shots")
    assert [[row[key] for key in same] for row in here] == [[row[key] for key in same] for row in there]
    found = compare_places(tmp_path / "here", tmp_path / "there")
    assert all(unit["difference"]["value"] == 0 for unit in found["stages"]["tiny"].values())


def test_a_recipe_evaluates_an_address(address: str, tmp_path) -> None:
    text = f"""
evaluate:
  from: {{models: ["{address}"]}}
  families: [copy]
  heldout_families: []
  items: 2
  shots: [0]
"""
    done = recipe.run(recipe.loads(text), tmp_path / "run")
    results = json.loads((done / "evaluate" / "results.json").read_text())
    assert list(results["stages"]) == [address]
    assert json.loads((done / "evaluate" / "provenance.json").read_text())["inputs"]["models"] == {address: address}
    recipe.run(recipe.loads(text), tmp_path / "run")  # finished: nothing is asked again
    with pytest.raises(Refused, match="expected api:NAME@URL"):
        recipe.loads(text.replace("@http", "/http"))
    with pytest.raises(Refused, match="needs weights"):
        recipe.loads(f"sft: {{from: {{model: '{address}'}}}}")


def test_lmlab_chat(address: str, folder) -> None:
    said = io.StringIO()
    chat(load_models(address), temperature=0.0, max_new_tokens=12, source=io.StringIO(TURNS[0]["content"]), sink=said)
    assert printable(lmlab.load(folder).chat(TURNS, 12)) in said.getvalue()
    with pytest.raises(Refused, match="is served already"):
        serve(load_models(address), port=0)


def test_logits_that_are_no_numbers_stop_the_request_and_not_the_server(serve_at, tokenizer: Tokenizer) -> None:
    shape = ModelConfig(
        layers=1, d_model=16, heads=2, vocab_size=tokenizer.vocab_size, context_length=64, tie_embeddings=False
    )
    network = Transformer(shape).initialise(0)
    (token,) = tokenizer.encode("~")
    with torch.no_grad():
        network.embedding.weight[token] = float("nan")
    url = serve_at({"tiny": Model(network, tokenizer)})
    good = {"model": "tiny", "prompt": "the quick", "max_tokens": 20, "temperature": 0}
    with httpx2.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        before = client.post("/v1/completions", json=good).json()["choices"][0]["text"]
        bodies = [good, good | {"prompt": "the ~"}, good, good | {"prompt": "~", "stream": True}]
        found = list(pool.map(lambda body: client.post("/v1/completions", json=body), bodies))
        for answer in (found[0], found[2], client.post("/v1/completions", json=good)):
            assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == before
        assert found[1].status_code == 500 and "are not numbers" in found[1].json()["error"]["message"]
        assert "are not numbers" in found[3].text
        assert client.get("/health").json() == {"status": "ok", "models": ["tiny"], "running": 0, "waiting": 0}


def test_offsets_count_characters_where_a_token_is_a_part_of_one(serve_at, folder, tokenizer: Tokenizer) -> None:
    model: Model = lmlab.load(folder)
    there = lmlab.load(f"api:tiny@{serve_at({'tiny': model})}/v1")
    body = {"model": "tiny", "prompt": "é fox ü the", "max_tokens": 0, "echo": True, "logprobs": 1}
    found = there.client.post("x", "/completions", body)["choices"][0]["logprobs"]  # type: ignore[attr-defined]
    ids = tokenizer.encode(body["prompt"])
    assert len(ids) > len(body["prompt"].split()) + 2
    for place, offset in enumerate(found["text_offset"]):
        assert offset == len(tokenizer.decode(ids[:place]).rstrip("\ufffd"))
