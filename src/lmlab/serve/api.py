"""The OpenAI-compatible API: /v1/models, /v1/chat/completions, /v1/completions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lmlab.errors import LmlabError, Refused, nearest
from lmlab.serve import generation
from lmlab.serve.bodies import Answer, Body, ChatBody, CompletionBody
from lmlab.serve.errors import ApiError
from lmlab.serve.generation import Finished, TokenScore
from lmlab.serve.schema import ChatRequest, CompletionRequest
from lmlab.serve.worker import BusyError, Work, Worker

if TYPE_CHECKING:
    from lmlab.generate.engine import Piece
    from lmlab.generate.handle import Model

log = logging.getLogger("lmlab.serve")
STOPPED = ApiError("the answer was stopped before its end", status=503, code="stopped")


@dataclass(frozen=True)
class Plan:
    """What one request makes the worker do: a job for each choice, in the order of their indices."""

    model: Model
    prompts: list[list[int]]
    starts: list[Callable[[], Iterator[Piece | Finished]]]
    prefixes: list[str]
    """Text that stands before each choice's new text: the prompt, where it is echoed."""


def plan(
    model: Model, request: ChatRequest | CompletionRequest, prompts: Sequence[list[int]], echoes: Sequence[str] | None
) -> Plan:
    """Check the prompts against the context and make the jobs: `n` choices a prompt, each with a seed of its own."""
    scored = request.logprobs is not None and request.logprobs is not False
    if request.stream and (request.top or echoes is not None):
        raise ApiError("streaming gives no echo and no top log-probabilities; set stream to false or leave them out")
    starts, prefixes = [], []
    for place, ids in enumerate(prompts):
        new_tokens = generation.room(model, ids, request.new_tokens)
        score_from = None
        if scored and (request.top or echoes is not None):
            score_from = 0 if echoes is not None else len(ids)
        for choice in range(request.n):
            sampling = generation.make_sampling(
                new_tokens,
                temperature=request.temperature,
                seed=None if request.seed is None else request.seed + choice,
                top_p=request.top_p,
                top_k=request.top_k,
                stop=request.stop,
                **{name: getattr(request, name) for name in generation.PENALTIES},
            )
            job = partial(generation.answer, model, ids, sampling, score_from=score_from, top=request.top)
            starts.append(job)
            prefixes.append("" if echoes is None else echoes[place])
    return Plan(model, list(prompts), starts, prefixes)


def plan_chat(model: Model, request: ChatRequest) -> tuple[Plan, int]:
    """The plan of a conversation, and how many of its messages were left out."""
    messages = [message.plain() for message in request.messages]
    shorten = request.truncation == "auto"
    ids, left_out = generation.chat_prompt(model, messages, request.new_tokens, shorten=shorten)
    return plan(model, request, [ids], None), left_out


def plan_completion(model: Model, request: CompletionRequest) -> Plan:
    """The plan of prompts given as text or as ids. An empty text starts a document: its prompt is the end of one."""
    prompts, echoes = [], []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            prompts.append(model.tokenizer.encode(prompt) or [model.tokenizer.eos_id])
            echoes.append(prompt)
            continue
        if max(prompt) >= model.tokenizer.vocab_size:
            raise ApiError(
                f"prompt: token {max(prompt)} is outside the vocabulary of {model.tokenizer.vocab_size}", param="prompt"
            )
        prompts.append(prompt)
        echoes.append(model.tokenizer.decode(prompt, skip_special=False))
    return plan(model, request, prompts, echoes if request.echo else None)


def piece_scores(model: Model, piece: Piece) -> list[TokenScore]:
    """The score of a token as it was drawn."""
    return [TokenScore(piece.token_id, generation.token_text(model, piece.token_id), piece.logprob)]


async def whole(work: Work, todo: Plan, body: Body) -> JSONResponse:
    """Wait for all choices."""
    answers = [Answer(prefix) for prefix in todo.prefixes]
    async for index, item in work:
        each = answers[index]
        if isinstance(item, Finished):
            each.reason = item.reason
            each.scores = each.scores if item.scores is None else item.scores
        else:
            each.text += item.text
            each.tokens += 1
            each.scores += piece_scores(todo.model, item) if body.with_scores else []
    if any(each.reason is None for each in answers):
        raise STOPPED
    return JSONResponse(body.whole(answers, sum(map(len, todo.prompts))))


async def chunks(work: Work, todo: Plan, body: Body, include_usage: bool) -> AsyncIterator[str]:
    """Server-sent events: a chunk an item, then [DONE]. An error on the way is the last event."""
    tokens = finished = 0
    lengths = [0] * len(todo.starts)
    try:
        for index in range(len(todo.starts)):
            if (first := body.opening(index)) is not None:
                yield event(first)
        async for index, item in work:
            if isinstance(item, Finished):
                finished += 1
                yield event(body.closing(index, item.reason))
                continue
            tokens += 1
            if item.text or body.with_scores:
                scores = piece_scores(todo.model, item) if body.with_scores else []
                yield event(body.chunk(index, item.text, scores, lengths[index]))
                lengths[index] += len(item.text)
        if finished < len(todo.starts):
            raise STOPPED
        if include_usage:
            yield event(body.counts(sum(map(len, todo.prompts)), tokens))
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status is sent already, so the error has to be an event
        yield event(as_api_error(error).body)


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def as_api_error(error: Exception) -> ApiError:
    """The answer to any exception: the sender's fault (400), too much work (503), or ours (500, logged)."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(str(error), status=503, code="busy")
    if isinstance(error, generation.TooLongError):
        return ApiError(str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, Refused):
        return ApiError(str(error))
    log.error("a request failed", exc_info=error)
    known = str(error) if isinstance(error, LmlabError) else f"{type(error).__name__} (see the server's log)"
    return ApiError(f"the model failed: {known}", status=500)


async def _cancel_on_disconnect(request: Request, work: Work) -> None:
    """Wait for the client to go away (or to have its answer), then stop the work."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.cancel()


async def respond(
    request: Request, worker: Worker, todo: Plan, body: Body, options: ChatRequest | CompletionRequest
) -> Response:
    """Run a plan and answer, whole or streamed. However it ends, no work of it goes on."""
    work = worker.open(todo.starts)
    watch = asyncio.create_task(_cancel_on_disconnect(request, work))

    async def close() -> None:
        work.cancel()
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch

    if not options.stream:
        try:
            return await whole(work, todo, body)
        except Exception as error:
            raise as_api_error(error) from None
        finally:
            await close()

    async def stream() -> AsyncIterator[str]:
        try:
            async for each in chunks(work, todo, body, options.stream_options.include_usage):
                yield each
        finally:
            await close()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


def make_router(models: Mapping[str, Model], worker: Worker, started: int) -> APIRouter:
    """The routes under /v1."""
    router = APIRouter(prefix="/v1")

    def chosen(name: str) -> Model:
        if name not in models:
            raise ApiError(
                f"no model '{name}' here{nearest(name, models)}", status=404, param="model", code="model_not_found"
            )
        return models[name]

    def card(name: str) -> dict[str, Any]:
        context = generation.context_length(models[name])
        return {"id": name, "object": "model", "created": started, "owned_by": "lmlab", "context_length": context}

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in models]}

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        chosen(name)
        return card(name)

    @router.post("/chat/completions")
    async def chat(options: ChatRequest, request: Request) -> Response:
        todo, left_out = await run_in_threadpool(plan_chat, chosen(options.model), options)
        extra = {"left_out_messages": left_out} if left_out else {}
        body = ChatBody(options.model, with_scores=options.logprobs, extra=extra)
        return await respond(request, worker, todo, body, options)

    @router.post("/completions")
    async def completions(options: CompletionRequest, request: Request) -> Response:
        try:
            todo = await run_in_threadpool(plan_completion, chosen(options.model), options)
        except generation.TooLongError as error:
            raise _named_prompt(error) from None
        body = CompletionBody(options.model, with_scores=options.logprobs is not None)
        return await respond(request, worker, todo, body, options)

    return router


def _named_prompt(error: generation.TooLongError) -> ApiError:
    """A too long prompt of the older API, whose setting has another name."""
    found = as_api_error(error)
    found.param = "prompt"
    return found
