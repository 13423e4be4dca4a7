"""The engine: generate, stream, score. Tokens in, tokens out; text where there is a tokenizer.

What a request gives depends on the request and the weights alone (float32, one processor): its random numbers come
from its own seed, and no operation's result for a row depends on the rows beside it (see weights.py and attention.py).
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

from lmlab.errors import Refused
from lmlab.generate import score as scoring
from lmlab.generate.answers import Completion, Hypothesis, Piece
from lmlab.generate.batching import Request, Scheduler
from lmlab.generate.constrain import Grammars
from lmlab.generate.decoders import AnyDecoder, decoder_for
from lmlab.generate.infill import Blank, Blanks
from lmlab.generate.sampling import Sampling
from lmlab.generate.score import Cost, Scored
from lmlab.generate.search import Beam, Contrastive, Found, beam_search, contrastive_search
from lmlab.generate.speculative import Tally, speculate
from lmlab.generate.text import TextStream
from lmlab.generate.weights import Precision
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import Tokenizer

__all__ = ["Beam", "Completion", "Contrastive", "Cost", "Engine", "Hypothesis", "Piece", "Sampling", "Scored", "Tally"]


class Engine:
    """Answers requests over one model. For use from one thread at a time; streams that are open share its batch."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        precision: Precision = "float32",
        max_batch: int = 32,
        stop_ids: Sequence[int] | None = None,
        start_id: int | None = None,
        decoder_start_id: int | None = None,
        prefix_cache_bytes: int = 256 << 20,
        compile: bool = False,
    ) -> None:
        """`stop_ids` end an answer unless a request says otherwise, `start_id` stands before a document's first token;
        both default to the tokenizer's (end of document, end of turn) and to none without a tokenizer.

        Of an encoder-decoder a prompt goes to the encoder, and the answer begins after `decoder_start_id`, by default
        the tokenizer's padding token, as T5 has it (1910.10683). Of a prefix decoder the prompt is the prefix; with position
        glm-2d the answer fills a blank of it (`Sampling.blank`), after `decoder_start_id`, by default <|startofpiece|>.
        `prefix_cache_bytes`: memory for the beginnings of prompts, which requests that begin alike share. `compile`: a
        decoding step of fixed shapes, compiled by torch (compiled.py); the first steps then take long.
        """
        if max_batch < 1:
            raise Refused(f"max_batch is {max_batch}; expected 1 or more")
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise Refused(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: they do not "
                "belong together"
            )
        self.model, self.tokenizer, self.precision, self.max_batch = model, tokenizer, precision, max_batch
        if stop_ids is None:
            stop_ids = () if tokenizer is None else (tokenizer.eos_id, tokenizer.end_of_turn_id)
        self.blanks = Blanks(tokenizer, decoder_start_id) if model.config.position == "glm-2d" else None
        self.stop_ids = frozenset((*stop_ids, *(() if self.blanks is None else self.blanks.stop_ids)))
        self.start_id = tokenizer.eos_id if start_id is None and tokenizer is not None else start_id
        if decoder_start_id is None:
            decoder_start_id = self.start_id if tokenizer is None else tokenizer.pad_id
        self.decoder_start_id, self.prefix_cache_bytes = decoder_start_id, prefix_cache_bytes
        self.compile = compile
        self._decoders: dict[str, AnyDecoder] = {}
        self._decoder(precision)

    @functools.cached_property
    def _scheduler(self) -> Scheduler:
        return Scheduler(self._decoder(self.precision), self.max_batch, self.prefix_cache_bytes)

    @functools.cached_property
    def _grammars(self) -> Grammars:
        if self.tokenizer is None:
            raise Refused("regex and json_schema need a tokenizer, and this model has none")
        return Grammars(self.tokenizer, self.model.config.vocab_size)

    def release(self) -> None:
        """Give the model's own float32 weights back to the system: what generates and scores is laid out already, in
        the engine's precision. `refresh`, and scoring in another precision, are refused from then on."""
        if self._decoders:
            self.model.to("meta")

    @property
    def released(self) -> bool:
        """Whether the model's own weights are gone."""
        return self.model.embedding.weight.is_meta

    def refresh(self) -> None:
        """Take over the model's weights after they have changed."""
        if self.released:
            raise Refused("refresh: the model's float32 weights were given back (release)")
        for decoder in self._decoders.values():
            decoder.refresh()
        if "_scheduler" in self.__dict__:
            self._scheduler.shared.clear()

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens computed so far; samples of one prompt count it once."""
        return self._scheduler.prefilled_tokens

    @property
    def cache_bytes(self) -> int:
        """Memory that the cache of keys and values holds now."""
        return 0 if self._scheduler.cache is None else self._scheduler.cache.bytes

    def free(self) -> None:
        """Give back the cache of keys and values, kept beginnings included (training needs the memory, say). Open
        streams must be closed before."""
        if self._scheduler.active:
            raise Refused("free: answers are under way; close their streams first")
        self._scheduler.cache = None
        self._scheduler.shared.clear()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """Answer prompts (ids), each with its settings or all with the same. Equal prompts share their prefill.

        Raises Refused, before any work, where a prompt is empty, holds an unknown id or does not fit the context;
        Failed where a request's logits are not numbers. An answer that would outgrow the context ends there (`length`).
        """
        settings = _each(sampling or Sampling(), len(prompts))
        requests = [
            self._request(f"prompt {index}", prompt, each)
            for index, (prompt, each) in enumerate(zip(prompts, settings))
        ]
        self._scheduler.submit(requests)
        try:
            while not all(request.done for request in requests):
                self._scheduler.step()
                for request in requests:
                    if request.error is not None:
                        raise request.error
        finally:
            self._scheduler.drop(requests)
        return [self._completion(request) for request in requests]

    def stream(self, prompt: Sequence[int], sampling: Sampling | None = None) -> Iterator[Piece]:
        """One answer token by token. Closing the iterator stops the work. Raises as `generate` does, Refused at once.

        Taking a piece from one stream moves all open streams on by a token; the others keep theirs until they are
        asked.
        """
        request = self._request("prompt", prompt, sampling or Sampling(), streaming=True)
        pieces: deque[Piece] = deque()
        request.on_token = lambda text, token_id, logprob: pieces.append(Piece(text, token_id, logprob))
        return self._stream(request, pieces)

    def _stream(self, request: Request, pieces: deque[Piece]) -> Iterator[Piece]:
        self._scheduler.submit([request])
        try:
            while pieces or not request.done:
                if not pieces:
                    self._scheduler.step()
                    continue
                yield pieces.popleft()
            if request.error is not None:
                raise request.error
        finally:
            self._scheduler.drop([request])

    def beam_search(self, prompts: Sequence[Sequence[int]], beam: Beam | None = None) -> list[list[Hypothesis]]:
        """The `n_best` hypotheses of each prompt (ids), best first. Raises as `generate` does."""
        beam = beam or Beam()
        sampling = Sampling(beam.max_new_tokens, stop_ids=beam.stop_ids)
        requests = [self._request(f"prompt {index}", prompt, sampling) for index, prompt in enumerate(prompts)]
        decoder = self._decoder(self.precision)
        found = beam_search(decoder, requests, beam, self.max_batch)
        return [[self._hypothesis(each) for each in hypotheses] for hypotheses in found]

    def contrastive_search(
        self, prompts: Sequence[Sequence[int]], settings: Contrastive | None = None
    ) -> list[Completion]:
        """An answer to each prompt (ids) by contrastive search. Raises as `generate` does."""
        settings = settings or Contrastive()
        sampling = Sampling(settings.max_new_tokens, stop_ids=settings.stop_ids)
        requests = [self._request(f"prompt {index}", prompt, sampling) for index, prompt in enumerate(prompts)]
        decoder = self._decoder(self.precision)
        found = contrastive_search(decoder, requests, settings, self.max_batch)
        return [self._hypothesis(each).completion for each in found]

    def speculate(
        self,
        prompts: Sequence[Sequence[int]],
        draft: Engine,
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        tokens: int = 4,
    ) -> tuple[list[Completion], Tally]:
        """Answers as `generate` gives them, with a smaller model that proposes `tokens` tokens at a time; and how many
        were accepted. Greedy answers are the same; sampled ones are distributed the same, with other draws.

        Raises Refused where the models' vocabularies differ, and as `generate` does.
        """
        ours, theirs = self.model.config.vocab_size, draft.model.config.vocab_size
        same = self.tokenizer is None or draft.tokenizer is None
        if not (same or self.tokenizer.fingerprint == draft.tokenizer.fingerprint) or ours != theirs:  # type: ignore[union-attr]
            raise Refused(
                f"speculate: the two models need one tokenizer; found vocabularies of {ours} and {theirs} tokens"
                f"{'' if ours != theirs else ', of different tokenizers'}"
            )
        if tokens < 1:
            raise Refused(f"speculate: tokens is {tokens}; expected 1 or more")
        settings = _each(sampling or Sampling(), len(prompts))
        if any(each.constrained for each in settings):
            raise Refused("speculate: regex and json_schema are not known here; use generate")
        requests = [self._request(f"prompt {i}", p, s) for i, (p, s) in enumerate(zip(prompts, settings))]
        for i, request in enumerate(requests):
            blank = request.source if isinstance(request.source, Blank) else None
            part = request.said if blank is None else request.prompt[: blank.source]
            place, starts = (None, None) if blank is None else (blank.place, request.prompt[blank.source :])
            one = Sampling(1, blank=place, decoder_start_ids=starts)
            draft._request(f"draft model: prompt {i}", part, one)
        tally = Tally()
        decoders = self._decoder(self.precision), draft._decoder(draft.precision)
        speculate(*decoders, requests, tokens, tally, self.max_batch)
        for request in requests:
            if request.error is not None:
                raise request.error
        return [self._completion(request) for request in requests], tally

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """Log-probability of each continuation given its context (ids). Pairs that share a context compute it once.

        An empty context means the start of a document. Raises Refused where a pair does not fit the model's context.
        """
        start = self.decoder_start_id if self.model.config.has_encoder else None
        return scoring.score_pairs(self._decoder(self.precision), pairs, self.start_id, start, self.blanks)

    def score_documents(
        self,
        documents: Sequence[Sequence[int]],
        window: int | None = None,
        stride: int | None = None,
        *,
        precision: Precision | None = None,
    ) -> list[float]:
        """-log P of each document in nats (not a mean), over sliding windows; the first token is given the
        end-of-document token. `window` defaults to the model's context, `stride` to half the window. For bits per byte.
        """
        window = window or self.model.config.context_length
        vocabulary = self.model.config.vocab_size
        for index, ids in enumerate(documents):
            scoring.check_ids(f"document {index}", ids, vocabulary)
        decoder = self._decoder(precision or self.precision)
        return scoring.score_documents(decoder, documents, window, stride or max(1, window // 2), self.start_id)

    def score_tokens(
        self, documents: Sequence[Sequence[int]], window: int | None = None, stride: int | None = None
    ) -> list[list[float]]:
        """-log P of every token of each document in nats; windows and defaults as in `score_documents`."""
        window = window or self.model.config.context_length
        for index, ids in enumerate(documents):
            scoring.check_ids(f"document {index}", ids, self.model.config.vocab_size)
        settings = (window, stride or max(1, window // 2), self.start_id)
        return scoring.score_tokens(self._decoder(self.precision), documents, *settings)

    def precision_cost(self, documents: Sequence[Sequence[int]], precision: Precision | None = None) -> Cost:
        """What a precision (default the engine's) costs on documents (ids), beside float32."""
        for index, ids in enumerate(documents):
            scoring.check_ids(f"document {index}", ids, self.model.config.vocab_size)
        size = None
        if self.tokenizer is not None:
            size = sum(len(self.tokenizer.decode(ids, skip_special=False).encode()) for ids in documents)
        decoders = self._decoder("float32"), self._decoder(precision or self.precision)
        return scoring.cost(*decoders, documents, self.model.config.context_length, self.start_id, size)

    def _decoder(self, precision: Precision) -> AnyDecoder:
        if precision not in self._decoders:
            if self.released:
                raise Refused(
                    f"the model is held in {self.precision} only, its float32 weights were given back: load it in "
                    f"float32 to score in {precision}"
                )
            self._decoders[precision] = decoder_for(self.model, precision, self.compile)
        return self._decoders[precision]

    def _request(self, name: str, prompt: Sequence[int], sampling: Sampling, streaming: bool = False) -> Request:
        config, ids, source = self.model.config, tuple(prompt), None
        if not ids:
            raise Refused(
                f"{name}: is empty; expected at least one token (a document begins with the end-of-document one)"
            )
        scoring.check_ids(name, ids, config.vocab_size)
        if config.has_encoder:
            source = _cut(ids, config.context_length, sampling.truncate)
            if len(source) > config.context_length:
                raise Refused(f"{name}: has {len(ids)} tokens, and the encoder reads {config.context_length} at most")
            ids = self._decoder_start(name, sampling)
        elif self.blanks is not None:
            ids, source = self.blanks.opened(name, ids, sampling.blank, sampling.decoder_start_ids)
            scoring.check_ids(f"{name}: decoder_start_ids", ids[source.source :], config.vocab_size)
        elif sampling.blank is not None:
            raise Refused(f"{name}: blank belongs to position glm-2d; this model has {config.position}")
        wanted = 1 if sampling.max_new_tokens else 0
        if len(ids) + wanted > config.context_length and source is None:
            ids = _cut(ids, max(1, config.context_length - sampling.max_new_tokens), sampling.truncate)
        room = config.context_length - len(ids)
        if room < wanted:
            raise Refused(
                f"{name}: has {len(ids)} tokens, and the model's context is {config.context_length} tokens for prompt "
                "and answer together"
            )
        if sampling.stop and self.tokenizer is None:
            raise Refused(f"{name}: stop strings need a tokenizer, and this model has none; use stop_ids")
        text = None
        if self.tokenizer is not None and (streaming or sampling.stop):
            text = TextStream(self.tokenizer, sampling.stop)
        stop_ids = self.stop_ids if sampling.stop_ids is None else frozenset(sampling.stop_ids)
        constraint = None
        if sampling.constrained:
            constraint = self._grammars.start(name, sampling, stop_ids)
        return Request(ids, sampling, min(sampling.max_new_tokens, room), stop_ids, name, source, text, constraint)

    def _decoder_start(self, name: str, sampling: Sampling) -> tuple[int, ...]:
        start = sampling.decoder_start_ids
        if start is None and self.decoder_start_id is not None:
            start = (self.decoder_start_id,)
        if not start:
            raise Refused(
                f"{name}: an encoder-decoder needs the token that its answer begins after; expected decoder_start_id "
                "of the engine or decoder_start_ids of the request"
            )
        scoring.check_ids(f"{name}: decoder_start_ids", start, self.model.config.vocab_size)
        return start

    def _hypothesis(self, found: Found) -> Hypothesis:
        ids = list(found.ids)
        said = ids[:-1] if found.stopped else ids
        text = "" if self.tokenizer is None else self.tokenizer.decode(said)
        reason: Literal["stop", "length"] = "stop" if found.stopped else "length"
        return Hypothesis(Completion(ids, text, list(found.logprobs), reason), found.score)

    def _completion(self, request: Request) -> Completion:
        assert request.finish_reason is not None
        text = ""
        if request.text is not None:
            text = request.text.text
        elif self.tokenizer is not None:
            ended = bool(request.ids) and request.ids[-1] in request.stop_ids
            text = self.tokenizer.decode(request.ids[:-1] if ended else request.ids)
        top = request.top if request.sampling.top_logprobs else None
        return Completion(request.ids, text, request.logprobs, request.finish_reason, top)


def _cut(ids: tuple[int, ...], length: int, truncate: Literal["left", "right"] | None) -> tuple[int, ...]:
    """At most `length` ids, as was asked; all of them where nothing was."""
    if truncate is None or len(ids) <= length:
        return ids
    return ids[-length:] if truncate == "left" else ids[:length]


def _each(sampling: Sampling | Sequence[Sampling], count: int) -> Sequence[Sampling]:
    if isinstance(sampling, Sampling):
        return [sampling] * count
    if len(sampling) != count:
        raise Refused(f"generate: {count} prompts and {len(sampling)} settings; expected one for all or one each")
    return sampling
