"""A small double of a model, and a real server on a free port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import uvicorn

from lmlab.generate.engine import Piece
from lmlab.serve.app import create_app
from lmlab.serve.run import LOCAL_NAMES, make_server, open_port
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import Tokenizer, train


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Special tokens, bytes, and a few merges."""
    return train(["the quick brown fox says hello to the quiet world " * 3], 300)


class FakeEngine:
    """Answers a message with its own text in capitals; one that starts with `count` is answered 1 2 3 ... without end.

    It notes what it was asked, what it made, which threads used it and whether two ever did at the same time.
    """

    def __init__(self, tokenizer: Tokenizer, pause: float) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset({tokenizer.eos_id, tokenizer.end_of_turn_id})
        self.pause = pause
        self.made = 0
        self.closed = threading.Event()
        self.started = threading.Event()
        self.samplings: list = []
        self.prompts: list[str] = []
        self.threads: set[str] = set()
        self.overlaps = 0
        self._inside = threading.Lock()

    def stream(self, prompt: list[int], sampling) -> Iterator[Piece]:
        text = self.tokenizer.decode(prompt, skip_special=False)
        self.prompts.append(text)
        self.samplings.append(sampling)
        said = text.rpartition("<|user|>\n")[2].partition("<|end|>")[0]
        if said == "fail":
            raise RuntimeError("the model broke")
        self.closed.clear()
        try:
            for number, token in enumerate(self._tokens(said)):
                if number == sampling.max_new_tokens:
                    return
                with_others = not self._inside.acquire(blocking=False)
                self.overlaps += with_others
                time.sleep(self.pause)
                self.threads.add(threading.current_thread().name)
                self.made += 1
                if not with_others:
                    self._inside.release()
                self.started.set()
                yield Piece(self.tokenizer.decode([token]), token, -0.5)
        finally:
            self.closed.set()

    def _tokens(self, said: str) -> Iterator[int]:
        if said.startswith("count"):
            number = 0
            while True:
                number += 1
                yield from self.tokenizer.encode(f"{number} ")
        yield from self.tokenizer.encode(said.upper())


class FakeModel:
    """The interface of a loaded model, without weights: the id after the last one is the likeliest next token."""

    def __init__(self, tokenizer: Tokenizer, context: int = 256, pause: float = 0.0) -> None:
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer)
        self.engine = FakeEngine(tokenizer, pause)
        self.network = SimpleNamespace(config=SimpleNamespace(context_length=context))

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        V = self.tokenizer.vocab_size
        return 5.0 * torch.nn.functional.one_hot((input_ids + 1) % V, V).float()


@pytest.fixture
def make_model(tokenizer: Tokenizer) -> Callable[..., FakeModel]:
    """make_model(context=256, pause=0.0)"""
    return lambda **settings: FakeModel(tokenizer, **settings)


@pytest.fixture
def serve_at() -> Iterator[Callable[..., str]]:
    """serve_at(models) -> the address of a server of them; it is stopped after the test."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(models: dict) -> str:
        opened = open_port("127.0.0.1", 0)
        app = create_app(models, hosts=LOCAL_NAMES)
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        until(lambda: server.started)
        return f"http://127.0.0.1:{opened.getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=10)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is true; fail if it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """wait_until(condition, seconds=20)"""
    return until
