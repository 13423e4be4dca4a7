"""The page, as a file or served on this machine by the standard library's server."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lmlab.errors import LmlabError, Refused
from lmlab.report.live.snapshot import snapshot

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", "localhost", "[::1]")


def page(data: dict[str, Any] | None = None) -> str:
    """The page: with `data` it shows that and asks for nothing; without, it follows the server that it came from."""
    text = (HERE / "watch.html").read_text(encoding="utf-8")
    # "</" inside a script would end it
    embedded = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")
    parts = {
        "STYLE": (HERE.parent / "templates" / "style.css").read_text(encoding="utf-8"),
        "SCRIPT": (HERE / "watch.js").read_text(encoding="utf-8"),
        "DATA": embedded,
    }
    for name, part in parts.items():
        text = text.replace(f"/*{name}*/", part, 1)
    return text


def watch(run_dir: Path, port: int = 8001, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve the page of a run on this machine until interrupted. Port 0 takes any free one.

    Raises Refused if there is no such run, or the port is taken.
    """
    snapshot(run_dir)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(run_dir))
    except (OSError, OverflowError) as error:
        raise Refused(f"watch: port {port} cannot be opened: {error}; --port 0 takes a free one") from None
    with server:
        if on_ready is not None:
            on_ready(f"http://127.0.0.1:{server.server_address[1]}/")
        server.serve_forever(poll_interval=0.2)


def _handler(run_dir: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """`/` is the page, `/data` the snapshot; nothing else is served, and to no other host name than this machine's."""

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in LOCAL:
                self._answer(HTTPStatus.BAD_REQUEST, "text/plain", f"this server does not answer to the name '{host}'")
            elif self.path == "/":
                self._answer(HTTPStatus.OK, "text/html", page())
            elif self.path == "/data":
                try:
                    self._answer(HTTPStatus.OK, "application/json", json.dumps(snapshot(run_dir), allow_nan=False))
                except LmlabError as error:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain", str(error))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "only / and /data are here")

        def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
            body = text.encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the page asks every two seconds."""

    return Handler
