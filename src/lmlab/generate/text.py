"""Text from tokens as they come: whole characters only, and nothing that may turn out to be part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decodes(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


class TextStream:
    """Feed token ids with `push`, get the text that is certain; `flush` gives the rest when the answer has ended.

    A byte-level piece may be half a character: it waits for the other half. The end of the text waits while it could be
    the beginning of a stop string. All that was given adds up to `text`.
    """

    def __init__(self, tokenizer: Decodes, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text = ""
        self.stopped = False
        self._ids: list[int] = []
        self._read = 0
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that this token makes certain, perhaps none. After `stopped`, all text before the stop string is
        out."""
        self._ids.append(token_id)
        # The tokens before are decoded along, because some tokenizers write a piece otherwise at the start of a text.
        before = self.tokenizer.decode(self._ids[: self._read])
        now = self.tokenizer.decode(self._ids)
        if now.endswith("\ufffd") or len(now) == len(before):
            return ""  # a token that writes nothing is no context: what follows would look like the start of a text
        self._ids, self._read = self._ids[self._read :], len(self._ids) - self._read
        return self._release(now[len(before) :])

    def flush(self) -> str:
        """What was held back, at the end of an answer; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        before = self.tokenizer.decode(self._ids[: self._read])
        rest = self.tokenizer.decode(self._ids)[len(before) :] if len(self._ids) > self._read else ""
        self._ids, self._read = [], 0
        out = self._release(rest)
        if not self.stopped:
            self.text += self._held
            out, self._held = out + self._held, ""
        return out

    def _release(self, new: str) -> str:
        self._held += new
        found = [at for at in (self._held.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped = True
            cut = min(found)
        else:
            cut = len(self._held) - _overlap(self._held, self.stop)
        out, self._held = self._held[:cut], "" if found else self._held[cut:]
        self.text += out
        return out


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of the stop strings."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
