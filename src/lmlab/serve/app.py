"""The application: the API and the chat page over a set of models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmlab.errors import LmlabError, Refused
from lmlab.serve import api, page
from lmlab.serve.errors import ApiError, error_body
from lmlab.serve.schema import explain
from lmlab.serve.worker import Worker

if TYPE_CHECKING:
    from lmlab.generate.handle import Model


def create_app(models: dict[str, Model], *, hosts: Collection[str] | None = None) -> FastAPI:
    """The application that serves `models` ({name: model}, the last one first in the page).

    `hosts`: the host names it answers to, None for any. A server on this machine should name them: otherwise a page
    from elsewhere can make its own name point here and read the answers. Raises Refused if there is no model.
    """
    if not models:
        raise Refused("serve: no model to serve; train one, or name a model directory")
    worker = Worker()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(title="lmlab", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.worker = worker
    app.include_router(api.make_router(models, worker, started=int(time.time())))
    app.include_router(page.make_router(models))
    app.mount("/static", page.static_files(), name="static")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        running, waiting = worker.load
        return {"status": "ok", "models": list(models), "running": running, "waiting": waiting}

    @app.exception_handler(ApiError)
    @app.exception_handler(LmlabError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        found = api.as_api_error(error)
        return JSONResponse(found.body, found.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        found = explain(error)
        return JSONResponse(found.body, found.status)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(error_body(message, status=error.status_code), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        found = api.as_api_error(error)
        return JSONResponse(found.body, found.status)

    app.add_middleware(Guard, hosts=None if hosts is None else frozenset(hosts))
    return app


class Guard:
    """Refuses other host names, and puts the security headers on every answer."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = page.CONTENT_SECURITY_POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        host = host_name(Headers(scope=scope).get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            error = error_body(f"this server does not answer to the name '{host}'", status=400)
            await JSONResponse(error, 400)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


def host_name(host: str) -> str:
    """The name in a Host header, without the port: `[::1]:80` is `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
