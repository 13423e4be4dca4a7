"""A model behind an address, against a server that fails in every way: what is tried again, and what is said."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import lmlab
from lmlab.address import Address, is_address, parse_address
from lmlab.errors import Failed, Refused
from lmlab.generate.client import Patience
from lmlab.generate.remote import RemoteModel
from lmlab.generate.sampling import Sampling

QUICK = Patience(attempts=4, timeout=5.0, limit=20.0, first=0.01)
Answer = tuple[int, dict[str, str], str | bytes]


class Server:
    """Answers the n-th request by `answers[n]` (the last one from then on), or by a function of its path and body."""

    def __init__(self) -> None:
        self.answers: list[Answer] | Callable[[str, dict], Answer] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.inside = self.most = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    place = len(server.bodies)
                    server.bodies.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                    server.times.append(time.monotonic())
                    server.inside += 1
                    server.most = max(server.most, server.inside)
                answers = server.answers
                made = answers(self.path, body) if callable(answers) else answers[min(place, len(answers) - 1)]
                status, headers, text = made
                data = text.encode() if isinstance(text, str) else text
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with lock:
                    server.inside -= 1
                with contextlib.suppress(OSError):  # the client may have gone: that is what some tests are about
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def model(self, **settings: Any) -> RemoteModel:
        return RemoteModel(Address("m", self.url), patience=QUICK, **settings)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def text(said: str, **more: Any) -> Answer:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    choice = {"text": said, "message": {"content": said}, "finish_reason": "stop", **more}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage})


def refusal(status: int, said: str = "no", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": said}})


def test_addresses_are_spelt_in_one_way() -> None:
    found = parse_address("api:org/name@v2@https://host:81/v1/")
    assert found == Address("org/name@v2", "https://host:81/v1") and str(found) == "api:org/name@v2@https://host:81/v1"
    assert is_address("api:x@http://y") and not is_address("runs/demo")
    for wrong in ("api:x", "api:@http://y", "api:x@y/v1", "api:x@http:///v1", "api:x@http://y:no/v1"):
        with pytest.raises(Refused, match="expected api:NAME@URL"):
            parse_address(wrong)


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    for url in ("http://me:secret@host/v1", "http://host/v1?key=secret"):
        with pytest.raises(Refused, match="LMLAB_API_KEY") as error:
            lmlab.load(f"api:x@{url}")
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_tried_again_with_longer_waits(server: Server, status: int) -> None:
    server.answers = [refusal(status), refusal(status), refusal(status), text("yes")]
    model = server.model()
    assert model.generate("x") == "yes"
    waits = [b - a for a, b in zip(server.times, server.times[1:])]
    assert len(waits) == 3 and all(least <= wait for least, wait in zip((0.01, 0.02, 0.04), waits))
    assert (model.usage.requests, model.usage.retries) == (1, 3)
    assert (model.usage.prompt_tokens, model.usage.completion_tokens) == (3, 2)


def test_retry_after_is_kept_to(server: Server) -> None:
    server.answers = [refusal(429, **{"Retry-After": "0.3"}), text("yes")]
    assert server.model().generate("x") == "yes"
    assert server.times[1] - server.times[0] >= 0.3


def test_a_wait_past_the_time_limit_is_an_error_at_once(server: Server) -> None:
    server.answers = [refusal(429, "slow down", **{"Retry-After": "3600"})]
    with pytest.raises(Failed, match=r"prompt 0: POST /completions: 429 .*slow down; waiting 3600 s more"):
        server.model().generate("x")
    assert len(server.bodies) == 1


def test_after_the_last_attempt_the_error_says_which_request(server: Server) -> None:
    server.answers = lambda path, body: refusal(500, "broke") if body["prompt"] == "b" else text("yes")
    with pytest.raises(Failed, match=r"api:m@http://.*: prompt 1: POST /completions: 500 .*broke \(after 4 attempts\)"):
        server.model().generate(["a", "b", "c"])


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_request_at_fault_is_refused_and_not_repeated(server: Server, status: int) -> None:
    server.answers = [refusal(status, "no such thing")]
    with pytest.raises(Refused, match=f"{status} .*no such thing"):
        server.model().generate("x")
    assert len(server.bodies) == 1


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.answers = [(307, {"Location": f"{server.url}/elsewhere"}, "")]
    with pytest.raises(Refused, match="redirects are not followed"):
        server.model().generate("x")
    assert len(server.bodies) == 1


def test_the_key_goes_into_the_header_and_nowhere_else(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_API_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    server.answers = [refusal(401, "Incorrect API key provided: sk-very-secret")]
    with pytest.raises(Refused, match=r"\*\*\*; LMLAB_API_KEY is set") as error:
        server.model().generate("x")
    assert "sk-very-secret" not in str(error.value) and server.keys == ["Bearer sk-very-secret"]
    assert "sk-very-secret" not in json.dumps(server.bodies)
    monkeypatch.delenv("LMLAB_API_KEY")
    with pytest.raises(Refused, match="LMLAB_API_KEY is not set"):
        server.model().generate("x")
    assert server.keys[-1] is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<html>hello</html>", "expected a JSON object, found '<html>hello</html>'"),
        ("[1]", "expected a JSON object"),
        ('{"choices": []}', "expected an answer with choices"),
        ('{"object": "x"}', "found the keys object"),
        ('{"choices": [{"no": 1}]}', "holds no text"),
    ],
)
def test_an_answer_of_another_form_is_an_error(server: Server, body: str, said: str) -> None:
    server.answers = [(200, {}, body)]
    with pytest.raises((Failed, Refused)) as error:
        server.model().generate("x")
    assert said in str(error.value) and "prompt 0" in str(error.value)


def test_a_cut_answer_is_asked_for_again(server: Server) -> None:
    server.answers = [(200, {"Content-Length": "500"}, '{"choices": ['), text("yes")]
    assert server.model().generate("x") == "yes"
    server.answers = [(200, {"Content-Length": "500"}, '{"choices": [')]
    with pytest.raises(Failed, match="the connection broke"):
        server.model().generate("x")


def test_nobody_listening(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(Failed, match="cannot be reached: .*refused.* \\(after 4 attempts\\)"):
        server.model().generate("x")


def test_a_server_that_says_nothing_times_out(server: Server) -> None:
    def asleep(path: str, body: dict) -> Answer:
        time.sleep(0.5)
        return text("late")

    server.answers = asleep
    model = RemoteModel(Address("m", server.url), patience=Patience(attempts=2, timeout=0.1, limit=5, first=0.01))
    with pytest.raises(Failed, match="timed out"):
        model.generate("x")
    assert len(server.bodies) == 2


def events(*pieces: str, end: str = "data: [DONE]\n\n") -> str:
    lines = [f"data: {json.dumps({'choices': [{'delta': {'content': each}}]})}\n\n" for each in pieces]
    return "".join([": a comment\n\n", *lines, end])


def test_streams(server: Server) -> None:
    usage = f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 4, 'completion_tokens': 2}})}\n\ndata: [DONE]\n\n"
    server.answers = [refusal(503), (200, {}, events("a", "é", end=usage))]
    model = server.model()
    pieces = model.chat_stream([{"role": "user", "content": "x"}])
    assert [piece.text for piece in pieces] == ["a", "é"]
    assert (model.usage.prompt_tokens, model.usage.completion_tokens, model.usage.retries) == (4, 2, 1)


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (events("a", "b", end=""), {}, "the stream was cut after 2 events"),
        (events("a", end='data: {"choi'), {}, "expected a JSON object"),
        (events("a", end='data: {"error": {"message": "out of memory"}}\n\n'), {}, "an error: out of memory"),
        (events("a", end=""), {"Content-Length": "5000"}, "the stream was cut after 1 events"),
    ],
)
def test_a_stream_that_was_begun_is_not_begun_again(server: Server, body: str, headers: dict, said: str) -> None:
    server.answers = [(200, headers, body)]
    seen = []
    with pytest.raises(Failed, match=said):
        for piece in server.model().chat_stream([{"role": "user", "content": "x"}]):
            seen.append(piece.text)
    assert seen[0] == "a" and len(server.bodies) == 1


def test_requests_go_side_by_side_and_answers_stay_in_order(server: Server) -> None:
    def slow(path: str, body: dict) -> Answer:
        time.sleep(0.05 if body["prompt"] == "0" else 0.01)
        return text(body["prompt"])

    server.answers = slow
    names = [str(n) for n in range(12)]
    assert server.model(parallel=4).generate(names) == names
    assert 2 <= server.most <= 4


def test_after_an_error_the_rest_is_not_asked(server: Server) -> None:
    server.answers = [refusal(400, "bad")]
    with pytest.raises(Refused, match="prompt 0"):
        server.model(parallel=1).generate(["x"] * 30)
    assert len(server.bodies) < 5


def test_what_is_sent(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [text("yes")]
    model = server.model()
    model.generate("x", 5)
    assert server.bodies[-1] == {"model": "m", "prompt": "x", "max_tokens": 5, "temperature": 0.0}
    assert capsys.readouterr().err == ""
    for _ in range(2):
        model.generate("x", 5, 0.5, 7, top_p=0.9, top_k=3, stop="end", min_p=0.1, presence_penalty=0.5)
    more = {"temperature": 0.5, "seed": 7, "top_p": 0.9, "top_k": 3, "stop": ["end"], "min_p": 0.1}
    assert server.bodies[-1] == {"model": "m", "prompt": "x", "max_tokens": 5, **more, "presence_penalty": 0.5}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and "seed: is sent, but a server may ignore it" in said[0]
    assert any("top_k: is no setting of OpenAI's API" in line for line in said)


@pytest.mark.parametrize(
    "settings",
    [{"regex": "a"}, {"json_schema": "{}"}, {"truncate": "left"}, {"stop_ids": (1,)}, {"top_logprobs": 2}],
)
def test_what_a_server_has_no_word_for_is_refused_by_name(server: Server, settings: dict) -> None:
    with pytest.raises(Refused, match=f"{next(iter(settings))}: is not known to an OpenAI-compatible server"):
        server.model().generate("x", **settings)
    assert not server.bodies


def test_what_needs_the_weights_is_refused_by_name(server: Server) -> None:
    model = server.model()
    for name in ("engine", "tokenizer", "renderer", "network"):
        with pytest.raises(Refused, match=f"{name}: needs the weights"):
            getattr(model, name)
    with pytest.raises(Refused, match="logits: needs the weights"):
        model.logits([[1]])
    with pytest.raises(Refused, match="precision, device and compile are the server's choice"):
        lmlab.load(f"api:m@{server.url}", precision="int8")


SCORED = {"tokens": ["a", " b", " c"], "token_logprobs": [None, -1.0, -0.5], "text_offset": [0, 1, 3],
          "top_logprobs": [None, {" x": -0.2}, {" c": -0.5}]}  # fmt: skip


def test_scores_by_echo(server: Server) -> None:
    server.answers = [text("a b c", logprobs=SCORED)]
    found = server.model().score([("a b", " c"), ("a", " b c"), ("a", "")])
    assert [(each.logprob, each.greedy, each.tokens) for each in found] == [
        (-0.5, True, 1),
        (-1.5, False, 2),
        (0, True, 0),
    ]
    assert len(server.bodies) == 2 and server.bodies[0]["echo"] and server.bodies[0]["max_tokens"] == 0
    with pytest.raises(Refused, match="falls inside token 1"):
        server.model().score([("a ", "b c")])
    with pytest.raises(Refused, match="no log-probability; expected a context"):
        server.model().score([("", "a b c")])
    server.answers = [text("a b c")]
    with pytest.raises(Refused, match="pair 0: the server gives no log-probabilities of the prompt"):
        server.model().score([("a b", " c")])


def test_conversations_have_their_own_path(server: Server) -> None:
    server.answers = lambda path, body: text(path)
    turns = [{"role": "user", "content": "x"}]
    assert server.model().chat(turns) == "/v1/chat/completions"
    assert server.model().converse([turns], [Sampling(3)])[0].tokens == 2
