"""A real, tiny, untrained Transformer behind the API: what is served is what the model itself says."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import torch

from lmlab.generate.handle import load
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.run import write_json
from lmlab.serve.generation import Finished, answer, make_sampling
from lmlab.serve.models import load_models
from lmlab.serve.terminal import Conversation

MESSAGES = [{"role": "user", "content": "hello to the world"}]


@pytest.fixture(scope="module")
def run_dir(tokenizer, tmp_path_factory):
    """A run with two finished language models and a reward model, which nobody can talk to."""
    run = tmp_path_factory.mktemp("run")
    shape = ModelConfig(
        layers=2, d_model=32, heads=2, vocab_size=tokenizer.vocab_size, context_length=96, tie_embeddings=False
    )
    for seed, name in enumerate(("sft", "ppo", "reward")):
        network = Transformer(shape).initialise(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(12)  # or its answers are one token over and over
        save_model(run / name / "model", network, tokenizer)
        write_json(run / name / "provenance.json", {})
    write_json(run / "run.json", {"stages": {name: {"kind": name} for name in ("sft", "reward", "ppo")}})
    return run


@pytest.fixture(scope="module")
def models(run_dir):
    return load_models(run_dir)


@pytest.fixture
def client(serve_at, models):
    with openai.OpenAI(base_url=f"{serve_at(models)}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_run_gives_its_language_models_in_order(models, run_dir):
    assert list(models) == ["sft", "ppo"]
    assert list(load_models(run_dir / "sft")) == ["sft"]
    assert list(load_models(run_dir / "sft" / "model")) == ["sft"]


def test_greedy_text_is_the_models_own(client, models, run_dir):
    for name in models:
        alone = load(run_dir / name)
        expected = alone.generate(["the quick brown"], max_new_tokens=12, temperature=0.0)
        found = client.completions.create(model=name, prompt="the quick brown", max_tokens=12, temperature=0)
        assert found.choices[0].text == expected[0]
    a, b = (
        client.completions.create(model=n, prompt="the", max_tokens=9, temperature=0).choices[0].text for n in models
    )
    assert a != b


def test_streamed_and_whole_answers_agree_and_a_seed_repeats_them(client):
    settings = {"model": "ppo", "messages": MESSAGES, "max_tokens": 20, "temperature": 1.0, "seed": 11}
    whole = client.chat.completions.create(**settings).choices[0].message.content
    chunks = client.chat.completions.create(**settings, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    other = client.chat.completions.create(**settings | {"seed": 12}).choices[0].message.content
    assert other != whole


def test_answers_at_the_same_time_are_those_given_alone(client):
    def one(seed):
        return client.chat.completions.create(
            model=("sft", "ppo")[seed % 2], messages=MESSAGES, max_tokens=15, temperature=1.0, seed=seed
        ).choices[0].message.content  # fmt: skip

    alone = [one(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == alone


def test_stopping_one_answer_leaves_the_others_as_they_are(models):
    model = models["ppo"]
    prompt = model.renderer.encode(MESSAGES, add_generation_prompt=True)
    settings = [make_sampling(30, temperature=1.0, seed=seed) for seed in range(4)]
    alone = [completion.ids for completion in model.engine.generate([prompt] * 4, settings)]
    running = [answer(model, prompt, each) for each in settings]
    found = [[next(each).token_id for each in running] for _ in range(3)]
    running[0].close()
    running[2].close()
    for index in (1, 3):
        rest = [piece.token_id for piece in running[index] if not isinstance(piece, Finished)]
        assert [row[index] for row in found] + rest == alone[index]


def test_a_stop_string_ends_the_answer_before_it(client):
    settings = {"model": "ppo", "prompt": "the quick", "max_tokens": 30, "temperature": 0}
    text = client.completions.create(**settings).choices[0].text
    stop = text[6:8]
    cut = text[: text.index(stop)]
    found = client.completions.create(**settings, stop=stop).choices[0]
    assert found.text == cut
    assert found.finish_reason == "stop"
    # The same where the limit falls on the token that completes the stop string.
    limits = range(1, 31)
    each = [client.completions.create(**settings | {"max_tokens": n}, stop=stop).choices[0] for n in limits]
    reasons = [one.finish_reason for one in each]
    assert reasons == sorted(reasons)
    assert {one.text for one, reason in zip(each, reasons) if reason == "stop"} == {cut}
    assert all(cut.startswith(one.text[: len(cut)]) for one in each)
    assert reasons[0] == "length"


def test_echoed_log_probabilities_are_those_of_score(client, models):
    context, continuation = "the quick", " brown fox"
    model = models["ppo"]
    prompt = [*model.tokenizer.encode(context), *model.tokenizer.encode(continuation)]
    found = client.completions.create(model="ppo", prompt=prompt, max_tokens=0, echo=True, logprobs=1).choices[0]
    summed = sum(found.logprobs.token_logprobs[len(model.tokenizer.encode(context)) :])
    assert summed == pytest.approx(model.score([(context, continuation)])[0].logprob, abs=1e-3)


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_scored_and_drawn_log_probabilities_agree(client, temperature):
    settings = {"model": "ppo", "messages": MESSAGES, "max_tokens": 8, "temperature": temperature, "seed": 1}
    drawn = client.chat.completions.create(**settings, logprobs=True).choices[0].logprobs.content
    scored = client.chat.completions.create(**settings, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [t.token for t in drawn] == [t.token for t in scored]
    assert [t.logprob for t in drawn] == pytest.approx([t.logprob for t in scored], abs=1e-3)


def test_the_terminal_says_what_the_api_says(client, models):
    conversation = Conversation(models, "sft", temperature=0.0, max_new_tokens=10, seed=0)
    found = client.chat.completions.create(model="sft", messages=MESSAGES, max_tokens=10, temperature=0)
    assert "".join(conversation.ask(MESSAGES[0]["content"])) == found.choices[0].message.content


def test_the_server_as_a_program_ends_on_ctrl_c_in_the_middle_of_an_answer(run_dir):
    program = (
        "import sys; from lmlab.serve import load_models, serve;"
        "serve(load_models(sys.argv[1]), port=0, on_ready=lambda at: print(at, flush=True))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(run_dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        body = {"model": "ppo", "messages": MESSAGES, "stream": True, "n": 64, "temperature": 2}
        with httpx2.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=30) as streamed:
            lines = streamed.iter_lines()
            next(lines)
            child.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx2.TransportError):
                list(lines)
        _, errors = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    assert "chat page" in errors
    assert "Traceback" not in errors
