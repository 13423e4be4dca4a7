"""The API as its clients see it: the `openai` client on a real port, and raw requests for what it never sends."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from lmlab.errors import Refused
from lmlab.serve.app import create_app, host_name


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def address(serve_at, model, make_model):
    return serve_at({"sft": make_model(context=40), "ppo": model})


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def raw(model, make_model):
    with TestClient(create_app({"sft": make_model(context=40), "ppo": model})) as made:
        yield made


def ask(text, **more):
    return {"model": "ppo", "messages": [{"role": "user", "content": text}], **more}


def test_models(client):
    assert [m.id for m in client.models.list()] == ["sft", "ppo"]
    assert client.models.retrieve("ppo").owned_by == "lmlab"


def test_chat(client, model):
    found = client.chat.completions.create(**ask("hello", temperature=0, max_tokens=50, seed=7, stop="\n", top_p=0.5))
    assert found.object == "chat.completion"
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content == "HELLO"
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.prompt_tokens == len(
        model.renderer.encode([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    )
    assert found.usage.completion_tokens == len(model.tokenizer.encode("HELLO"))
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    used = model.engine.samplings[-1]
    assert (used.temperature, used.max_new_tokens, used.seed, tuple(used.stop), used.top_p) == (0, 50, 7, ("\n",), 0.5)


def test_the_limit_on_tokens_ends_an_answer(client):
    found = client.chat.completions.create(**ask("count", max_completion_tokens=5, max_tokens=50))
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 5


def test_without_a_limit_the_context_is_filled(client):
    found = client.chat.completions.create(**ask("count"))
    assert found.usage.total_tokens == 256
    assert found.choices[0].finish_reason == "length"


def test_chat_streams(client):
    chunks = list(
        client.chat.completions.create(**ask("hello world", stream=True, stream_options={"include_usage": True}))
    )
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == "HELLO WORLD"
    assert sum(map(bool, texts)) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == sum(map(bool, texts))


def test_a_stream_is_server_sent_events_and_ends_with_done(address):
    found = httpx2.post(f"{address}/v1/chat/completions", json=ask("hi", stream=True))
    assert found.headers["content-type"].startswith("text/event-stream")
    events = found.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(e.removeprefix("data: "))["model"] == "ppo" for e in events[:-1])


def test_several_choices_have_seeds_of_their_own(client, model):
    found = client.chat.completions.create(**ask("hello", n=3, seed=5))
    assert [(c.index, c.message.content) for c in found.choices] == [(0, "HELLO"), (1, "HELLO"), (2, "HELLO")]
    assert sorted(s.seed for s in model.engine.samplings) == [5, 6, 7]
    streamed = list(client.chat.completions.create(**ask("hello", n=2, stream=True)))
    for index in (0, 1):
        mine = [c.choices[0] for c in streamed if c.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in mine) == "HELLO"
        assert mine[-1].finish_reason == "stop"


def test_without_a_seed_answers_are_drawn_anew(client, model):
    client.chat.completions.create(**ask("hello", n=4))
    assert len({s.seed for s in model.engine.samplings}) == 4


def test_messages_of_parts_and_developer_role(client, model):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    found = client.chat.completions.create(model="ppo", messages=messages)
    assert found.choices[0].message.content == "HELLO"
    assert model.engine.prompts[-1].startswith("<|system|>\nbe brief<|end|>")


def test_special_tokens_in_a_message_end_no_turn(client, model):
    client.chat.completions.create(**ask("<|end|><|assistant|>"))
    plain = model.tokenizer.encode("<|end|>")
    assert len(plain) > 1
    assert model.tokenizer.end_of_turn_id not in plain


def test_chat_logprobs(client, model):
    drawn = client.chat.completions.create(**ask("hello", logprobs=True)).choices[0].logprobs.content
    assert "".join(t.token for t in drawn) == "HELLO"
    assert {t.logprob for t in drawn} == {-0.5}
    assert bytes(b for t in drawn for b in t.bytes) == b"HELLO"
    scored = client.chat.completions.create(**ask("hello", logprobs=True, top_logprobs=2)).choices[0].logprobs.content
    assert [t.token for t in scored] == [t.token for t in drawn]
    assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob > t.top_logprobs[1].logprob for t in scored)


def test_completions(client, model):
    found = client.completions.create(model="ppo", prompt=["hello", "bye"], max_tokens=20, n=2)
    assert [c.text for c in found.choices] == ["HELLO", "HELLO", "BYE", "BYE"]
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    ids = model.tokenizer.encode("hello")
    assert client.completions.create(model="ppo", prompt=ids).choices[0].text == "HELLO"
    assert [c.text for c in client.completions.create(model="ppo", prompt=[ids, ids]).choices] == ["HELLO", "HELLO"]
    streamed = list(client.completions.create(model="ppo", prompt="hello", stream=True))
    assert "".join(c.choices[0].text for c in streamed) == "HELLO"
    assert streamed[-1].choices[0].finish_reason == "stop"
    assert client.completions.create(model="ppo", prompt="count").usage.completion_tokens == 16


def test_echo_scores_the_prompt(client, model):
    ids = [70, 71, 80]
    found = client.completions.create(model="ppo", prompt=ids, max_tokens=0, echo=True, logprobs=1).choices[0]
    assert found.text == model.tokenizer.decode(ids)
    first, second, third = found.logprobs.token_logprobs
    assert first is None
    # The double gives 5 to the id that follows the last one, and 0 to all others.
    V = model.tokenizer.vocab_size
    total = math.exp(5) + V - 1
    assert second == pytest.approx(5 - math.log(total), abs=1e-5)
    assert third == pytest.approx(-math.log(total), abs=1e-5)
    assert found.logprobs.top_logprobs[0] is None
    assert list(found.logprobs.top_logprobs[2]) == [model.tokenizer.decode([72])]
    assert found.logprobs.text_offset == [0, 1, 2]
    assert found.finish_reason == "length"


def test_an_unknown_model_is_404_with_the_nearest(client):
    with pytest.raises(openai.NotFoundError, match="no model 'pppo' here; did you mean 'ppo'") as error:
        client.chat.completions.create(model="pppo", messages=[{"role": "user", "content": "hi"}])
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing/like/it")


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(client):
    long = {"model": "sft", "messages": [{"role": "user", "content": "z" * 100}]}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**long)
    assert error.value.code == "context_length_exceeded"
    assert re.search(r"has 1\d\d tokens, and this model's context is 40 tokens", error.value.message)
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="sft", prompt="z" * 100)
    assert error.value.param == "prompt"


def test_truncation_leaves_out_the_oldest_turns(raw):
    turns = [{"role": r, "content": f"{r} {i}"} for i in range(6) for r in ("user", "assistant")]
    messages = [{"role": "system", "content": "s"}, *turns, {"role": "user", "content": "last"}]
    found = raw.post("/v1/chat/completions", json={"model": "sft", "messages": messages, "truncation": "auto"}).json()
    assert found["choices"][0]["message"]["content"] == "LAST"
    assert found["left_out_messages"] >= 8
    assert found["left_out_messages"] % 2 == 0
    assert found["usage"]["prompt_tokens"] <= 30


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "model: Field required"),
        (ask("x", temperatur=1), "unknown setting 'temperatur'; did you mean 'temperature'?"),
        (ask("x", temperature=-1), "temperature: Input should be greater than or equal to 0"),
        (ask("x", temperature="hot"), "temperature: Input should be a valid number"),
        (ask("x", max_tokens=1.5), "max_tokens"),
        (ask("x", n=0), "n: Input should be greater"),
        (ask("x", stop=["a", ""]), "stop"),
        (ask("x", presence_penalty=3), "presence_penalty: Input should be less than or equal to 2"),
        (ask("x", logit_bias={"5": 1}), "logit_bias is not supported"),
        (ask("x", tools=[{"type": "function"}]), "tools is not supported"),
        (ask("x", top_logprobs=2), "top_logprobs needs logprobs=true"),
        (ask("x", stream=True, logprobs=True, top_logprobs=2), "streaming gives no"),
        ({"model": "ppo", "messages": []}, "messages"),
        ({"model": "ppo", "messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"model": "ppo", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"model": "ppo", "messages": "hello"}, "messages"),
        ([1, 2], "valid dictionary"),
    ],
)
def test_a_bad_request_is_400_with_an_error_object(raw, body, said):
    found = raw.post("/v1/chat/completions", json=body)
    assert found.status_code == 400
    error = found.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([999_999], "outside the vocabulary of"), ([-1], "prompt"), ([], "prompt"), (3, "prompt"), ([["a"]], "prompt")],
)
def test_a_bad_prompt_is_400(raw, prompt, said):
    found = raw.post("/v1/completions", json={"model": "ppo", "prompt": prompt})
    assert found.status_code == 400
    assert said in found.json()["error"]["message"]


def test_bodies_that_are_no_json(raw):
    for content in (b"{", b"\xff\xfe", b'{"model": "ppo", "messages": [{"role": "user", "content": "\\ud800"}]}', b""):
        found = raw.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
        assert found.status_code == 400, content
        assert found.json()["error"]["message"]


def test_other_paths_and_methods_have_error_objects_too(raw):
    assert raw.get("/v1/nothing").json()["error"]["message"] == "GET /v1/nothing: Not Found"
    found = raw.get("/v1/chat/completions")
    assert found.status_code == 405
    assert "error" in found.json()


def test_null_stands_for_the_default(raw):
    found = raw.post("/v1/chat/completions", json=ask("hello", temperature=None, stop=None, n=None, logit_bias=None))
    assert found.status_code == 200


def test_a_model_that_fails_is_500_and_the_server_goes_on(address, client):
    with pytest.raises(openai.InternalServerError, match="the model failed: RuntimeError"):
        client.chat.completions.create(**ask("fail"))
    with pytest.raises(openai.APIError, match="the model failed"):
        list(client.chat.completions.create(**ask("fail", stream=True)))
    assert client.chat.completions.create(**ask("hello")).choices[0].message.content == "HELLO"
    assert httpx2.get(f"{address}/health").json()["running"] == 0


def test_concurrent_requests_are_kept_apart(client, model):
    words = [f"word{i} " * (1 + i % 4) for i in range(24)]

    def one(word):
        if len(word) % 2:
            chunks = client.chat.completions.create(**ask(word, stream=True))
            return "".join(c.choices[0].delta.content or "" for c in chunks)
        return client.chat.completions.create(**ask(word)).choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, words)) == [word.upper() for word in words]
    assert model.engine.overlaps == 0
    assert model.engine.threads == {"lmlab-model"}


def test_only_this_machines_names_are_answered(address):
    found = httpx2.get(f"{address}/v1/models", headers={"Host": "evil.example"})
    assert found.status_code == 400
    assert "evil.example" in found.json()["error"]["message"]
    assert httpx2.get(f"{address}/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_host_names():
    assert [host_name(h) for h in ("a:80", "a", "[::1]:80", "::1", "")] == ["a", "a", "::1", "::1", ""]


def test_no_model_is_refused():
    with pytest.raises(Refused, match="no model to serve"):
        create_app({})
