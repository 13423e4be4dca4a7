"""Chat in the terminal: answers stream, Ctrl-C stops the answer and not the program; piped lines are answered too."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from lmlab.errors import LmlabError, Refused, nearest
from lmlab.serve import generation
from lmlab.serve.models import continues_text

if TYPE_CHECKING:
    from lmlab.generate.answers import Piece
    from lmlab.generate.handle import Model

COMMANDS = {
    "/help": "show this",
    "/reset": "forget the conversation",
    "/model": "NAME: talk to another stage's model (no NAME: list them)",
    "/temperature": "X: 0 takes the likeliest token each time, higher is freer",
    "/tokens": "N: at most N new tokens an answer",
    "/quit": "leave (Ctrl-D too)",
}


@dataclass
class Conversation:
    """The state of a chat: who is asked, how, and what was said."""

    models: Mapping[str, Model]
    name: str
    temperature: float
    max_new_tokens: int
    seed: int | None
    messages: list[dict[str, str]] = field(default_factory=list)
    answers: int = 0

    @property
    def model(self) -> Model:
        """The model that is talked to now."""
        return self.models[self.name]

    def ask(self, text: str) -> Iterator[str]:
        """Stream the answer to a message. What was said so far, a stopped answer too, stays in the conversation.

        A model that was only pretrained is given the message alone, as a text to continue.
        Raises TooLongError if the message alone leaves no room in the context.
        """
        text = text.encode("utf-8", "replace").decode()  # a terminal's bytes that are no UTF-8 come as lone surrogates
        messages = [*self.messages, {"role": "user", "content": text}]
        # Each answer of a seeded chat has its own seed, or the same question would always get the same answer.
        seed = None if self.seed is None else self.seed + self.answers
        answer = self._answer(text, messages, seed)
        self.answers += 1
        said: list[str] = []
        try:
            with generation.closing(answer) as items:
                for item in items:
                    if not isinstance(item, generation.Finished):
                        said.append(item.text)
                        yield item.text
        finally:
            self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    def _answer(
        self, text: str, messages: list[dict[str, str]], seed: int | None
    ) -> Iterator[Piece | generation.Finished]:
        from lmlab.generate.remote import RemoteModel

        model = self.model
        if isinstance(model, RemoteModel):
            sampling = generation.make_sampling(self.max_new_tokens, temperature=self.temperature, seed=seed)
            return model.chat_stream(messages, self.max_new_tokens, self.temperature, sampling.seed)
        if continues_text(self.name, model):
            ids = model.tokenizer.encode(text) or [model.tokenizer.eos_id]
        else:
            ids, _ = generation.chat_prompt(model, messages, self.max_new_tokens, shorten=True)
        room = generation.room(model, ids, self.max_new_tokens)
        sampling = generation.make_sampling(room, temperature=self.temperature, seed=seed)
        return generation.answer(model, ids, sampling)

    def command(self, line: str) -> str | None:
        """Do what a line that starts with / says and return what to show; None means leave."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "/quit":
            return None
        if word == "/help":
            return "\n".join(f"{name:13} {what}" for name, what in COMMANDS.items())
        if word == "/reset":
            self.messages = []
            return "forgotten"
        if word == "/model":
            return self._choose(rest)
        if word == "/temperature":
            return self._set_temperature(rest)
        if word == "/tokens":
            return self._set_tokens(rest)
        return f"no command {word}{nearest(word, COMMANDS)}"

    def _choose(self, name: str) -> str:
        if not name:
            return "\n".join(f"{'*' if each == self.name else ' '} {each}" for each in self.models)
        if name not in self.models:
            return f"no model '{name}'{nearest(name, self.models)}"
        self.name = name
        return f"talking to {name}" + (
            " (it continues text, it was not taught to chat)" if continues_text(name, self.model) else ""
        )

    def _set_temperature(self, text: str) -> str:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 2:
            return f"/temperature takes a number from 0 to 2, found '{text}' (now {self.temperature:g})"
        self.temperature = value
        return f"temperature {value:g}"

    def _set_tokens(self, text: str) -> str:
        if not text.isdecimal() or int(text) < 1:
            return f"/tokens takes a whole number from 1 on, found '{text}' (now {self.max_new_tokens})"
        self.max_new_tokens = int(text)
        return f"at most {self.max_new_tokens} new tokens"


def chat(
    models: Mapping[str, Model],
    *,
    name: str | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int | None = None,
    source: TextIO | None = None,
    sink: TextIO | None = None,
    notes: TextIO | None = None,
) -> None:
    """Talk to `models` ({name: model}; `name`, or else the last one, answers first) until /quit or the end of input.

    On a terminal the answers stream. Otherwise each line of `source` is one message of one conversation (lines that
    start with / are commands), and each answer is one line of `sink`, its line ends written as \\n; what is not an
    answer goes to `notes` (standard error). Raises Refused where there is no such model, and what a message that is
    not from a terminal raises.
    """
    source, sink, notes = source or sys.stdin, sink or sys.stdout, notes or sys.stderr
    if not models:
        raise Refused("chat: no model to talk to")
    name = list(models)[-1] if name is None else name
    if name not in models:
        raise Refused(f"chat: no model '{name}'{nearest(name, models)}")
    conversation = Conversation(models, name, temperature, max_new_tokens, seed)
    if source.isatty() and sink.isatty():
        _talk(conversation, sink)
    else:
        _answer_lines(conversation, source, sink, notes)


def _answer_lines(conversation: Conversation, source: TextIO, sink: TextIO, notes: TextIO) -> None:
    for line in source:
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        if text.startswith("/"):
            note = conversation.command(text)
            if note is None:
                return
            print(note, file=notes)
            continue
        answer = printable("".join(conversation.ask(text)))
        print(answer.replace("\n", "\\n"), file=sink, flush=True)


def _talk(conversation: Conversation, sink: TextIO) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (its import gives `input` line editing and history)
    print(f"talking to {conversation.name}; /help lists the commands, Ctrl-C stops an answer", file=sink)
    while True:
        try:
            text = input(f"\n{conversation.name} > ")
        except EOFError:
            print(file=sink)
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)", file=sink)
            continue
        if not text.strip():
            continue
        if text.startswith("/"):
            note = conversation.command(text)
            if note is None:
                return
            print(note, file=sink)
            continue
        stream_to(conversation, text, sink)


def stream_to(conversation: Conversation, text: str, sink: TextIO) -> None:
    """Show an answer as it comes. Ctrl-C ends the answer only; what lmlab refuses is shown, and the chat goes on."""
    try:
        with generation.closing(conversation.ask(text)) as pieces:
            for piece in pieces:
                sink.write(printable(piece))
                sink.flush()
        print(file=sink)
    except KeyboardInterrupt:
        print(" [stopped]", file=sink)
    except LmlabError as error:
        print(f"{error}", file=sink)


# Control characters but line feed and tab, lone surrogates, and the signs that turn the direction of writing.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text without what could move the cursor, recolour or retitle the terminal, or reorder what it shows."""
    return _UNPRINTABLE.sub("", text)
