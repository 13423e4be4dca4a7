"""A model behind an OpenAI-compatible address, in the place of a local one where only text is needed.

`generate` and `score` go to /completions, `chat` to /chat/completions, where the server's own template turns messages
into tokens. One request a prompt, several at a time. What such a server has no word for is refused by name; what it may
not keep to (a seed, settings that are not OpenAI's) is sent, and said once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar

from lmlab.address import Address
from lmlab.errors import Refused
from lmlab.generate.answers import Piece, Reply
from lmlab.generate.client import Client, Patience, Wait
from lmlab.generate.sampling import Sampling, one_each, stops_of
from lmlab.generate.score import Scored
from lmlab.progress import say
from lmlab.text.tokenizer import Tokenizer

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]

STANDARD = ("top_p", "frequency_penalty", "presence_penalty")
"""Settings of `Sampling` that OpenAI's API has under the same names, sent where they are not at their default."""

EXTENSIONS = ("top_k", "min_p", "repetition_penalty")
"""Settings that it has not, by the names that vLLM and lmlab's server give them."""

_PLAIN = Sampling()


@dataclass
class Usage:
    """What was asked of a server so far, by its own count of tokens."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __str__(self) -> str:
        return (
            f"{self.requests:,} requests ({self.retries:,} retries), {self.prompt_tokens:,} tokens of prompts, "
            f"{self.completion_tokens:,} of answers"
        )


class RemoteModel:
    """The calls of `handle.Model` that need text only. `usage` counts tokens, as the server does."""

    def __init__(
        self,
        address: Address,
        *,
        parallel: int = 32,
        tokenizer: Tokenizer | None = None,
        patience: Patience | None = None,
    ) -> None:
        """`parallel`: requests under way at once. `tokenizer`: the model's own, if it is at hand: `score` then sends ids,
        cut where the local model's are."""
        if parallel < 1:
            raise Refused(f"max_batch is {parallel}; expected 1 or more")
        self.address, self.parallel = address, parallel
        self.client = Client(address, patience)
        self._usage, self._lock = Usage(), threading.Lock()
        self._tokenizer = tokenizer
        self._said: set[str] = set()

    @property
    def usage(self) -> Usage:
        self._usage.retries = self.client.retries
        return self._usage

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        **more: Any,
    ) -> Any:
        """As `handle.Model.generate`. The server takes an empty prompt as it will."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        more |= {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings = one_each(len(texts), seed, stop, **more)
        answers = [reply.text for reply in self.complete(texts, settings)]
        return answers[0] if isinstance(prompts, str) else answers

    def complete(self, texts: Sequence[str], settings: Sequence[Sampling]) -> list[Reply]:
        """Texts continued, each by its settings. Raises Refused and Failed as `Client.post`, with the prompt's number."""
        bodies = [{"prompt": text, **self._body(each)} for text, each in zip(texts, settings, strict=True)]
        return self._all("/completions", bodies, lambda choice: choice["text"])

    def converse(self, conversations: Sequence[Messages], settings: Sequence[Sampling]) -> list[Reply]:
        """The assistant's next turn of each conversation. Raises as `complete`."""
        bodies = [
            {"messages": [dict(message) for message in messages], **self._body(each)}
            for messages, each in zip(conversations, settings, strict=True)
        ]
        return self._all("/chat/completions", bodies, lambda choice: choice["message"].get("content") or "")

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
    ) -> str:
        """As `handle.Model.chat`."""
        settings = Sampling(max_new_tokens, temperature, top_k, top_p, seed, stop=stops_of(stop))
        return self.converse([messages], [settings])[0].text

    def chat_stream(
        self,
        messages: Messages,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
    ) -> Iterator[Piece]:
        """The same as it comes. Pieces have no token (-1, NaN): a server may put several into one. Closing the iterator
        closes the connection, at which servers stop their work."""
        settings = Sampling(max_new_tokens, temperature, top_k, top_p, seed, stop=stops_of(stop))
        body = {
            "messages": [dict(message) for message in messages],
            **self._body(settings),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return self._stream(body)

    def _stream(self, body: Mapping[str, Any]) -> Iterator[Piece]:
        usage: Any = None
        for event in self.client.events("the conversation", "/chat/completions", body):
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                text = (choice.get("delta") or {}).get("content")
                if text:
                    yield Piece(text, -1, math.nan)
        self._count(usage)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """As `handle.Model.score`, by the log-probabilities that the server gives of a prompt (`echo`).

        Without a tokenizer, context and continuation are tokenised together by the server; a pair whose border falls
        inside a token is refused. Raises Refused where the server does not give such log-probabilities.
        """
        if self._tokenizer is None:
            prompts: list[Any] = [context + continuation for context, continuation in pairs]
        else:
            cut = [self._tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1)]
            prompts = [[*context, *continuation] for context, continuation in zip(*cut)]
        body = {"model": self.address.name, "max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 1}

        def scored(index: int) -> Callable[[Wait], Scored]:
            def job(give_up: Wait) -> Scored:
                name = f"pair {index}"
                context, continuation = pairs[index]
                if not continuation:
                    return Scored(0.0, True, 0)
                found = self.client.post(name, "/completions", {**body, "prompt": prompts[index]}, give_up)
                self._count(found.get("usage"))
                length = len(context) if self._tokenizer is None else len(cut[0][index])
                return _continuation(
                    f"{self.address}: {name}", _choice(name, found), length, self._tokenizer is not None
                )

            return job

        return self._parallel([scored(index) for index in range(len(pairs))])

    def logits(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a server gives no logits."""
        self._refuse("logits")

    @property
    def engine(self) -> NoReturn:
        self._refuse("engine")

    @property
    def network(self) -> NoReturn:
        self._refuse("network")

    @property
    def tokenizer(self) -> NoReturn:
        self._refuse("tokenizer")

    @property
    def renderer(self) -> NoReturn:
        self._refuse("renderer")

    def _refuse(self, what: str) -> NoReturn:
        raise Refused(
            f"{self.address}: {what}: needs the weights; a model behind an address gives text and scores only"
        )

    def _body(self, sampling: Sampling) -> dict[str, Any]:
        """The settings of a request. Raises Refused naming what cannot be asked for."""
        sent = {"max_new_tokens", "temperature", "seed", "stop", *STANDARD, *EXTENSIONS}
        for field in fields(Sampling):
            if field.name not in sent and getattr(sampling, field.name) != getattr(_PLAIN, field.name):
                raise Refused(
                    f"{self.address}: {field.name}: is not known to an OpenAI-compatible server; leave it out"
                )
        body: dict[str, Any] = {
            "model": self.address.name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        given = [name for name in (*STANDARD, *EXTENSIONS) if getattr(sampling, name) != getattr(_PLAIN, name)]
        body |= {name: getattr(sampling, name) for name in given}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.temperature > 0:
            body["seed"] = sampling.seed % 2**63
            self._say("seed: is sent, but a server may ignore it: the same seed need not give the same text")
        for name in given:
            if name in EXTENSIONS:
                self._say(f"{name}: is no setting of OpenAI's API; it is sent as vLLM and lmlab name it, and a server that "
                          "does not know it may ignore it")  # fmt: skip
        return body

    def _say(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            say(f"{self.address}: {note}")

    def _all(self, path: str, bodies: Sequence[dict[str, Any]], text_of: Callable[[Any], str]) -> list[Reply]:
        def job(index: int) -> Callable[[Wait], Reply]:
            def ask(give_up: Wait) -> Reply:
                name = f"prompt {index}" if path == "/completions" else f"conversation {index}"
                found = self.client.post(name, path, bodies[index], give_up)
                counts = self._count(found.get("usage"))
                choice = _choice(f"{self.address}: {name}", found)
                try:
                    text = str(text_of(choice))
                except (KeyError, TypeError, AttributeError):
                    raise Refused(f"{self.address}: {name}: the answer's choice holds no text: {choice}") from None
                return Reply(text, str(choice.get("finish_reason") or "stop"), *counts)

            return ask

        return self._parallel([job(index) for index in range(len(bodies))])

    def _parallel(self, jobs: Sequence[Callable[[Wait], T]]) -> list[T]:
        """Results in the jobs' order. After an error no other job is begun, and none waits to try again."""
        stop = threading.Event()
        with ThreadPoolExecutor(max(1, min(self.parallel, len(jobs))), "lmlab-api") as pool:
            running: list[Future[T]] = [pool.submit(job, stop.wait) for job in jobs]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
                for each in running:
                    if each in done and (error := each.exception()) is not None:
                        raise error
                return [each.result() for each in running]
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _count(self, found: Any) -> tuple[int, int]:
        """(tokens of the prompt, of the answer) that a server says it used; 0 where it does not say."""
        counts = [
            found.get(name) if isinstance(found, dict) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        prompt, completion = (each if isinstance(each, int) else 0 for each in counts)
        with self._lock:
            self._usage.requests += 1
            self._usage.prompt_tokens += prompt
            self._usage.completion_tokens += completion
        return prompt, completion


def _choice(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Refused(f"{name}: expected an answer with choices, found the keys {', '.join(found) or 'none'}")
    return choices[0]


def _continuation(name: str, choice: Mapping[str, Any], length: int, in_tokens: bool) -> Scored:
    """The score of what follows the first `length` characters (or tokens) of an echoed prompt."""
    found = choice.get("logprobs") or {}
    columns: list[Any] = [found.get(key) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")]
    tokens, logprobs, tops, offsets = columns
    if not tokens or not logprobs or not tops or (not in_tokens and not offsets):
        raise Refused(
            f"{name}: the server gives no log-probabilities of the prompt (echo with logprobs), so it cannot score; "
            "lmlab's and vLLM's do"
        )
    if in_tokens:
        first = length
    else:
        first = next((place for place, at in enumerate(offsets) if at >= length), len(offsets))
        begins = offsets[first] if first < len(offsets) else -1
        if begins != length:
            raise Refused(
                f"{name}: the border between context and continuation falls inside token {max(first - 1, 0)} of the "
                "server's; move white space to the continuation, or give the model's tokenizer"
            )
    if any(each is None for each in logprobs[first:]):
        raise Refused(f"{name}: the server gives the first token of a text no log-probability; expected a context")
    values = [float(each) for each in logprobs[first:]]
    greedy = all(value >= max(top.values(), default=value) for value, top in zip(values, tops[first:]) if top)
    return Scored(math.fsum(values), greedy, len(values))
