"""The terminal chat: piped lines, commands, and Ctrl-C, also on a real pseudo-terminal."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lmlab.errors import Refused
from lmlab.serve.generation import TooLongError
from lmlab.serve.models import continues_text, name_of
from lmlab.serve.terminal import Conversation, chat, printable, stream_to


def piped(models, text, **settings):
    sink, notes = io.StringIO(), io.StringIO()
    chat(models, source=io.StringIO(text), sink=sink, notes=notes, **settings)
    return sink.getvalue(), notes.getvalue()


def test_each_piped_line_gets_one_line(make_model):
    model = make_model()
    out, notes = piped({"ppo": model}, "hello\n\nquick fox\n", temperature=0, seed=3)
    assert out == "HELLO\nQUICK FOX\n"
    assert notes == ""
    assert model.engine.prompts[1].startswith(
        "<|user|>\nhello<|end|>\n<|assistant|>\nHELLO<|end|>\n<|user|>\nquick fox"
    )
    assert [s.seed for s in model.engine.samplings] == [3, 4]


def test_line_ends_of_an_answer_are_written_out(make_model, tokenizer):
    model = make_model()
    model.engine._tokens = lambda said: iter(tokenizer.encode("a\nb"))
    assert piped({"m": model}, "x")[0] == "a\\nb\n"


def test_commands(make_model):
    models = {"sft": make_model(), "ppo": make_model()}
    out, notes = piped(
        models, "one\n/reset\ntwo\n/model sft\nthree\n/temperature 0.2\nfour\n/tokens 2\nfive\n/quit\nsix\n"
    )
    assert out == "ONE\nTWO\nTHREE\nFOUR\nFI\n"
    assert notes == "forgotten\ntalking to sft\ntemperature 0.2\nat most 2 new tokens\n"
    assert "one" not in models["ppo"].engine.prompts[1]
    assert "two" in models["sft"].engine.prompts[0]
    assert [s.temperature for s in models["sft"].engine.samplings] == [0.7, 0.2, 0.2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/modle x", "no command /modle; did you mean '/model'?"),
        ("/model sf", "no model 'sf'; did you mean 'sft'?"),
        ("/model", "  sft\n* ppo"),
        ("/temperature hot", "a number from 0 to 2, found 'hot' (now 0.7)"),
        ("/temperature nan", "a number from 0 to 2"),
        ("/tokens 0", "a whole number from 1 on"),
        ("/help", "/temperature"),
    ],
)
def test_what_a_command_says(make_model, line, said):
    models = {"sft": make_model(), "ppo": make_model()}
    assert said in (Conversation(models, "ppo", 0.7, 8, None).command(line) or "")


def test_a_long_conversation_drops_its_oldest_turns(make_model):
    model = make_model(context=60)
    out, _ = piped({"m": model}, "".join(f"message {i}\n" for i in range(9)))
    assert out.count("\n") == 9
    assert "message 0" not in model.engine.prompts[-1]
    assert "message 8" in model.engine.prompts[-1]
    with pytest.raises(TooLongError, match="context is 60 tokens"):
        piped({"m": model}, "z" * 100)


def test_a_pretrained_model_is_given_the_text_alone(make_model):
    model = make_model()
    out, _ = piped({"pretrain": model}, "the quick\nbrown\n")
    assert model.engine.prompts == ["the quick", "brown"]
    assert out == "THE QUICK\nBROWN\n"
    assert continues_text("pretrain", model)
    assert not continues_text("sft", model)


def test_no_such_model(make_model):
    with pytest.raises(Refused, match="did you mean 'ppo'"):
        chat({"ppo": make_model()}, name="pppo")
    with pytest.raises(Refused, match="no model"):
        chat({})


def test_names(tmp_path):
    assert name_of(tmp_path / "sft" / "model") == "sft"
    assert name_of(tmp_path / "sft") == "sft"
    assert name_of("hf:owner/name") == "owner/name"


@pytest.fixture
def interruptible():
    """A shell starts what runs in its background with SIGINT ignored, and tests inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_answer_only(make_model, wait_until, interruptible):
    model = make_model(context=100_000, pause=0.005)
    conversation = Conversation({"m": model}, "m", 0.7, 50_000, None)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt():
        wait_until(model.engine.started.is_set)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    sink = io.StringIO()
    stream_to(conversation, "count", sink)
    thread.join()
    assert sink.getvalue().endswith(" [stopped]\n")
    assert model.engine.closed.is_set()
    assert model.engine.made < 50_000
    assert conversation.messages[-1]["role"] == "assistant"
    assert conversation.messages[-1]["content"].startswith("1")
    assert "".join(conversation.ask("hello")) == "HELLO"


def test_a_refused_message_does_not_end_the_chat(make_model):
    sink = io.StringIO()
    conversation = Conversation({"m": make_model(context=40)}, "m", 0.7, 20, None)
    stream_to(conversation, "z" * 100, sink)
    assert "context is 40 tokens" in sink.getvalue()
    assert conversation.messages == []


def test_nothing_reaches_the_terminal_that_could_steer_it():
    assert printable("a\x1b[31mb\x07\r\x9b2J\u202ec\n\td é 字 \ud800") == "a[31mb2Jc\n\td é 字 "


CHILD = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches this process
double = runpy.run_path(sys.argv[1])
from lmlab.serve.terminal import chat
from lmlab.text.tokenizer import train
model = double["FakeModel"](train(["a few words"], 300), context=100_000, pause=0.01)
chat({"sft": model, "ppo": model}, temperature=0, max_new_tokens=50_000)
print("LEFT BY ITSELF")
"""


def test_on_a_real_terminal(wait_until, interruptible):
    """Type, receive, press Ctrl-C in an answer and at the prompt, choose a model, leave with Ctrl-D."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(Path(__file__).with_name("conftest.py"))],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    shown = bytearray()

    def read():
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # the other end is closed
                return
            shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()

    def expect(text, seconds=60):
        wait_until(lambda: text in shown, seconds)
        del shown[: shown.index(text) + len(text)]

    try:
        expect(b"ppo > ")
        os.write(leader, b"hello\n")
        expect(b"HELLO\r\n")
        expect(b"ppo > ")
        os.write(leader, b"count\n")
        expect(b"11 12 13")
        os.write(leader, b"\x03")
        expect(b" [stopped]\r\n")
        expect(b"ppo > ")
        os.write(leader, b"\x03")
        expect(b"(/quit or Ctrl-D leaves)")
        expect(b"ppo > ")
        os.write(leader, b"/model sft\n")
        expect(b"sft > ")
        os.write(leader, b"\x04")
        expect(b"LEFT BY ITSELF")
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.wait()
        reader.join(timeout=10)
        os.close(leader)
