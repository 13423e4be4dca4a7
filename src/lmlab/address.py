"""Models behind an OpenAI-compatible address, as commands and recipes name them: `api:NAME@http://host:port/v1`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lmlab.errors import Refused

PREFIX = "api:"
KEY = "LMLAB_API_KEY"
"""The environment variable of the key. A key stands nowhere else: not in a recipe, a file or a log."""


@dataclass(frozen=True)
class Address:
    """`name` is what the server calls the model, `url` the base that /completions and /chat/completions follow."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}@{self.url}"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, which no proxy leads to."""
        return self.host in ("localhost", "127.0.0.1", "::1")

    @property
    def key(self) -> str | None:
        """LMLAB_API_KEY; OpenAI's own variable goes to OpenAI's own host only."""
        return os.environ.get(KEY) or (os.environ.get("OPENAI_API_KEY") if self.host == "api.openai.com" else None)


def is_address(reference: str | Path) -> bool:
    return str(reference).startswith(PREFIX)


def parse_address(reference: str) -> Address:
    """Raises Refused where it is not spelt `api:NAME@URL`."""
    expected = "expected api:NAME@URL, such as api:my-model@http://localhost:8000/v1"
    text = reference.removeprefix(PREFIX)
    cut = max(text.rfind("@http://"), text.rfind("@https://"))
    name, url = text[:cut], text[cut + 1 :].rstrip("/")
    if cut < 1 or not reference.startswith(PREFIX):
        raise Refused(f"model '{reference}': {expected}")
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise Refused(f"model '{reference}': its address cannot be read; {expected}") from None
    if not good:
        raise Refused(f"model '{reference}': its address names no host; {expected}")
    if parts.username is not None or parts.query or parts.fragment:
        # Not repeated: it may hold what must not be shown.
        raise Refused(
            f"model 'api:{name.partition('://')[0]}@...': an address holds no password and no query; a key comes from {KEY}"
        )
    return Address(name, url)
