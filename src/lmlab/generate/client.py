"""Requests to an OpenAI-compatible server: tried again where that may help, within a time limit, each error with its request.

Only the standard library is used. The key goes into one header and nowhere else.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib import error, request

from lmlab.address import KEY, Address
from lmlab.errors import Failed, LmlabError, Refused

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""

LARGEST = 64 << 20
"""Bytes of an answer; a larger one is none."""

Wait = Callable[[float], bool]
"""(seconds) -> whether to give up."""


@dataclass(frozen=True)
class Patience:
    """`timeout`: seconds that a connection may say nothing. `limit`: seconds of one request, its attempts together.
    `first`: seconds before the second attempt; each wait after it is twice as long, with up to a quarter more by chance,
    so that requests that failed together do not come back together. A server's Retry-After replaces a shorter wait."""

    attempts: int = 6
    timeout: float = 120.0
    limit: float = 600.0
    first: float = 0.5


class _NoRedirect(request.HTTPRedirectHandler):
    """A redirect could take the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Client:
    """Posts JSON to one address. Threads may share it."""

    def __init__(self, address: Address, patience: Patience | None = None) -> None:
        self.address, self.patience = address, patience or Patience()
        self._key = address.key
        self.retries = 0
        self._lock = threading.Lock()
        proxies = [request.ProxyHandler({})] if address.is_local else []
        self._opener = request.build_opener(_NoRedirect(), *proxies)

    def post(self, what: str, path: str, body: Mapping[str, Any], wait: Wait | None = None) -> dict[str, Any]:
        """The JSON object that the server answers with; `what` names the request in errors.

        Raises Refused where the server says that the request is at fault (400, 401, 404 and their like), Failed where it
        cannot be reached, keeps failing, or answers with something else.
        """
        return self._attempt(what, path, body, wait or _sleep, self._whole)

    def events(self, what: str, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a stream of server-sent events, up to [DONE]. Opening it is tried again, as `post`; what was
        begun is not. Closing the iterator closes the connection. Raises as `post`, and Failed where the stream is cut."""
        response = self._attempt(what, path, body, _sleep, lambda response, _: response, close=False)
        count = 0
        with response:
            try:
                for line in response:
                    text = line.decode("utf-8", "replace").strip()
                    if not text.startswith("data:"):
                        continue
                    data = text[5:].strip()
                    if data == "[DONE]":
                        return
                    found = self._object(what, path, data)
                    if "error" in found:
                        raise Failed(self._named(what, path, f"the stream ended with an error: {_message(found)}"))
                    count += 1
                    yield found
            except (OSError, http.client.HTTPException) as problem:
                raise Failed(
                    self._named(what, path, f"the stream was cut after {count} events: {_cause(problem)}")
                ) from None
        raise Failed(self._named(what, path, f"the stream was cut after {count} events, before [DONE]"))

    def _attempt(
        self,
        what: str,
        path: str,
        body: Mapping[str, Any],
        wait: Wait,
        take: Callable[[Any, float], Any],
        close: bool = True,
    ) -> Any:
        end = time.monotonic() + self.patience.limit
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        pause, asked, last = self.patience.first, 0.0, ""
        for attempt in range(1, self.patience.attempts + 1):
            if attempt > 1:
                seconds = max(asked, pause * random.uniform(1, 1.25))
                pause *= 2
                if time.monotonic() + seconds > end:
                    raise Failed(
                        self._named(what, path, f"{last}; waiting {seconds:.0f} s more would pass the time limit")
                    )
                with self._lock:
                    self.retries += 1
                if wait(seconds):
                    raise Failed(self._named(what, path, f"given up: {last}"))
            asked = 0.0
            try:
                post = request.Request(f"{self.address.url}{path}", data, headers, method="POST")
                timeout = max(0.001, min(self.patience.timeout, end - time.monotonic()))
                response = self._opener.open(post, timeout=timeout)
                if not close:
                    return take(response, end)
                with response:
                    return self._object(what, path, take(response, end))
            except error.HTTPError as problem:
                last, asked = self._status(problem), _retry_after(problem.headers.get("Retry-After"))
                if problem.code not in AGAIN:
                    raise self._refusal(what, path, problem.code, last) from None
            except error.URLError as problem:
                last = f"cannot be reached: {_cause(problem.reason)}"
                if isinstance(problem.reason, (ssl.SSLCertVerificationError, socket.gaierror)):
                    raise Failed(self._named(what, path, last)) from None
            except (OSError, http.client.HTTPException) as problem:
                last = f"the connection broke: {_cause(problem)}"
        raise Failed(self._named(what, path, f"{last} (after {self.patience.attempts} attempts)"))

    def _whole(self, response: Any, end: float) -> str:
        found = bytearray()
        while part := response.read1(1 << 16):
            found += part
            if len(found) > LARGEST:
                raise OSError(f"the answer is longer than {LARGEST:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {self.patience.limit:g} s")
        if response.length:
            raise http.client.IncompleteRead(bytes(found), response.length)
        return found.decode("utf-8", "replace")

    def _object(self, what: str, path: str, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Failed(self._named(what, path, f"expected a JSON object, found {self._clean(text[:80])!r}"))
        return found

    def _status(self, problem: error.HTTPError) -> str:
        try:
            text = problem.read(1 << 16).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        try:
            text = _message(json.loads(text))
        except (ValueError, AttributeError):
            text = text.strip()
        return f"{problem.code} {problem.reason}{': ' if text else ''}{self._clean(text)[:500]}"

    def _refusal(self, what: str, path: str, code: int, said: str) -> LmlabError:
        if 300 <= code < 400:
            said += (
                "; redirects are not followed, since they could take the key elsewhere: give the address it leads to"
            )
        if code in (401, 403):
            said += f"; {KEY} is {'set' if self._key else 'not set'}"
        return (Refused if code < 500 else Failed)(self._named(what, path, said))

    def _named(self, what: str, path: str, said: str) -> str:
        return f"{self.address}: {what}: POST {path}: {said}"

    def _clean(self, text: str) -> str:
        """A server may repeat the key."""
        return text.replace(self._key, "***") if self._key else text


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _message(found: Any) -> str:
    """The words of an error body: OpenAI's {"error": {"message"}}, and what others write."""
    inner = found.get("error", found)
    said = inner.get("message") if isinstance(inner, dict) else inner
    return str(said or found.get("message") or found.get("detail") or json.dumps(found))


def _cause(problem: Any) -> str:
    return (
        "timed out"
        if isinstance(problem, TimeoutError) and not str(problem)
        else str(problem) or type(problem).__name__
    )


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, section 10.2.3); 0 where there is none."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
