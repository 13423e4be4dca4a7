"""The one renderer: messages to text by the tokenizer's own Jinja template, to ids, and to what of them is trained.

Training, evaluation, serving and export all call this. Three things are made sure of:
- special tokens come from the template alone: their strings inside a message stay plain text;
- trained spans are found by rendering prefixes of the conversation, so any template works without markers in it, and a
  template that rewrites earlier turns is refused rather than masked wrongly;
- the whole conversation is tokenised once, so no token differs between training and use at a seam between turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmlab.errors import Refused
from lmlab.text.tokenizer import CHAT_TEMPLATE, Tokenizer

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}; other keys reach the template as they are."""

_PRIVATE = range(0xE000, 0xF900)
"""Unicode's private use area: where stand-ins for special-token strings in messages are taken from."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, which some templates hold as markers: rendered as its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """A sandbox with what public templates are written for: trimmed blocks, break and continue."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def conversation_text(messages: Sequence[Message]) -> str:
    """A conversation that asks for an answer, by the template of our own tokenizers: what names a prompt where a
    server's template, which the model gets, is not to be seen."""
    template = _environment().from_string(CHAT_TEMPLATE.read_text(encoding="utf-8"), {"raise_exception": _raise})
    return template.render(messages=[dict(message) for message in messages], add_generation_prompt=True)


class Renderer:
    """Renders conversations for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises Refused if the tokenizer has no chat template, or one that is not Jinja."""
        if tokenizer.chat_template is None:
            raise Refused("tokenizer: has no chat template: expected chat_template.jinja beside tokenizer.json")
        self.tokenizer = tokenizer
        try:
            self._template = _environment().from_string(tokenizer.chat_template, {"raise_exception": _raise})
        except jinja2.TemplateError as error:
            raise Refused(f"chat template: is not valid Jinja: {error}") from None
        by_length = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation. Special-token strings that stand in messages look like the template's own here:
        to get tokens, use `encode`, which keeps them apart."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.tokenizer.named_tokens,
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise Refused(f"chat template: cannot render these messages: {error}") from None

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        """The ids of a conversation; equal to transformers' `apply_chat_template` wherever no message holds the string
        of a special token."""
        safe, stand_ins = self._disarm(messages)
        return self._tokens(self.render(safe, add_generation_prompt), stand_ins, [])[0]

    def encode_trained(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """(ids, mask) of equal length: mask is True on the tokens of every assistant turn, up to and including the
        token that ends the turn. A token that crosses the seam before an answer (an answer that begins with white
        space) is not trained. Raises Refused where the template rewrites earlier turns, or nothing is trained.
        """
        safe, stand_ins = self._disarm(messages)
        text = self.render(safe)
        spans = [self._turn(safe, i, text) for i, m in enumerate(safe) if m["role"] == "assistant"]
        ids, mask = self._tokens(text, stand_ins, spans)
        if not any(mask):
            roles = ", ".join(str(message.get("role")) for message in messages) or "none"
            raise Refused(
                f"conversation: no token to train: expected an assistant turn with text, found turns: {roles}"
            )
        return ids, mask

    def _turn(self, messages: Sequence[Message], index: int, text: str) -> tuple[int, int]:
        """The characters of an assistant turn in the whole text: what comes after the prompt that asks for it, up to
        its last special token (what a template puts after that, such as a line feed, is never generated)."""
        before = self.render(messages[:index], add_generation_prompt=True)
        after = self.render(messages[: index + 1])
        if not (text.startswith(after) and after.startswith(before)):
            raise Refused(
                f"chat template: turn {index + 1} is rendered otherwise alone than within the conversation (the "
                "template rewrites earlier turns); train one row a turn, each ending with the turn that is trained"
            )
        ends = [found.end() for found in self._special.finditer(after, len(before))]
        return len(before), ends[-1] if ends else len(after)

    def _disarm(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Messages in which each special-token string is one private character that stands nowhere in them, and what
        each of those characters stands for."""
        used: set[str] = set()
        for message in messages:
            used.update(*_strings(message))
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        sign_of: dict[str, str] = {}

        def sign(found: re.Match[str]) -> str:
            if found[0] not in sign_of:
                sign_of[found[0]] = next(free)
            return sign_of[found[0]]

        safe = [_mapped(message, lambda text: self._special.sub(sign, text)) for message in messages]
        return safe, {character: special for special, character in sign_of.items()}

    def _tokens(
        self, text: str, stand_ins: Mapping[str, str], spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[bool]]:
        """Ids of a rendered text, special tokens read from it, and whether each lies within one of the spans."""
        ids: list[int] = []
        mask: list[bool] = []
        flags = bytearray(len(text))
        for low, high in spans:
            flags[low:high] = b"\1" * (high - low)
        for start, piece, specials in self._pieces(text, stand_ins):
            inside = flags[start : start + len(piece)]
            if not specials:
                # One stand-in becomes several characters, all of them inside the span or all outside.
                plain = [stand_ins.get(character, character) for character in piece]
                inside = bytes(flag for flag, string in zip(inside, plain) for _ in string)
                encoding = self.tokenizer.encoding("".join(plain))
            else:
                encoding = self.tokenizer.encoding(piece, specials=True)
            ids += encoding.ids
            mask += [low < high and all(inside[low:high]) for low, high in encoding.offsets]
        return ids, mask

    def _pieces(self, text: str, stand_ins: Mapping[str, str]) -> Iterator[tuple[int, str, bool]]:
        """(start, piece, whether special tokens are read in it). Without stand-ins the text is one piece, exactly as
        transformers tokenises it; with them, what lies between two special tokens is a piece of plain text."""
        if not stand_ins:
            yield 0, text, True
            return
        at = 0
        for found in self._special.finditer(text):
            if found.start() > at:
                yield at, text[at : found.start()], False
            yield found.start(), found[0], True
            at = found.end()
        if at < len(text):
            yield at, text[at:], False


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of plain nested data with `change` applied to its strings (not to keys)."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(each, change) for each in value]
    return value
