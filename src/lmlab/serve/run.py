"""Starts the server on this machine."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from lmlab.errors import Refused
from lmlab.progress import say

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from lmlab.generate.handle import Model

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def serve(
    models: dict[str, Model],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve `models` until interrupted. Port 0 takes any free port. `on_ready` is called with the address once the
    port is open. Raises Refused if the port is taken, the host is not this machine's, or the extra [serve] is missing.
    """
    try:
        importlib.import_module("uvicorn")
        from lmlab.generate.remote import RemoteModel
        from lmlab.serve.app import create_app
    except ModuleNotFoundError as error:
        raise Refused(f"serve: {error.name} is not installed; install the extra: pip install 'lmlab[serve]'") from None

    for name, model in models.items():
        if isinstance(model, RemoteModel):
            raise Refused(f"serve: {name} is served already, at {model.address.url}; expected a model of this machine")
    opened = open_port(host, port)
    with opened:
        local = is_loopback(opened)
        app = create_app(models, hosts=LOCAL_NAMES | {host} if local else None)
        address = f"http://{f'[{host}]' if ':' in host else host}:{opened.getsockname()[1]}"
        say(f"serving {', '.join(models)}")
        say(f"  chat page       {address}/")
        say(f"  OpenAI's API    {address}/v1")
        if not local:
            say("  note: everyone who can reach this machine can use it; there is no password")
        say("Ctrl-C stops it")
        if on_ready is not None:
            on_ready(address)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends in good order and then raises it once more
            make_server(app).run(sockets=[opened])


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server that, when it is stopped, stops the answers under way first, so that it does not wait for them."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.worker.close(wait=False)
            await super().shutdown(sockets)

    return Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Refused with what is wrong, and a free port where that one is taken."""
    if not 0 <= port <= 65535:
        raise Refused(f"serve: port {port}: expected 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise Refused(f"serve: host '{host}': not an address of this machine ({error})") from None
    found = socket.socket(family, kind, protocol)
    try:
        # So that a server can start again at once; it does not let two listen on one port.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(128)
    except OSError as error:
        found.close()
        free = free_port(host) if port else None
        hint = "" if free is None else f"; choose another with --port (free now: {free})"
        raise Refused(f"serve: port {port} on {host} cannot be opened: {error.strerror}{hint}") from None
    return found


def free_port(host: str) -> int | None:
    """A port of this host that is free now, or None where the host cannot be bound at all."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(place)
            return trial.getsockname()[1]
    except OSError:
        return None


def is_loopback(opened: socket.socket) -> bool:
    """Can only this machine reach the socket?"""
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback
