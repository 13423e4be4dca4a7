"""Outbound links of Reddit-style submissions, as WebText chose its pages: those that people gave at least 3 karma.

A list of wanted addresses is kept as sorted 64-bit hashes: 8 bytes an address (WebText had 45 million links: 360 MB). At that
size a page that is not wanted is kept by a collision with probability 45e6 / 2^64 = 2e-12.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from lmlab.corpus.readers.records import DAMAGED, Limits, Reject, lines, open_bytes
from lmlab.corpus.source import SourceConfig
from lmlab.errors import Refused

# Where a link leads to no text: the forum itself, and hosts of pictures and films.
_HOSTS = re.compile(
    r"(^|\.)(reddit\.com|redd\.it|redditmedia\.com|imgur\.com|gfycat\.com|giphy\.com|tenor\.com|youtube\.com|youtu\.be"
    r"|vimeo\.com|streamable\.com|twitch\.tv|soundcloud\.com|spotify\.com|instagram\.com|tinypic\.com|photobucket\.com)$"
)
_MEDIA = re.compile(r"\.(jpe?g|png|gif|gifv|webp|svg|bmp|mp[34]|webm|mov|avi|wav|ogg|pdf|zip|gz|exe)$", re.IGNORECASE)


def canonical(url: str) -> str | None:
    """An address as it is compared: without scheme, `www.`, fragment and a slash at the end; None if it is none."""
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").removeprefix("www.")
        port = f":{parts.port}" if parts.port not in (None, 80, 443) else ""
    except ValueError:
        return None
    if parts.scheme.lower() not in ("http", "https") or "." not in host:
        return None
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{port}{parts.path.rstrip('/')}{query}"


def outbound(url: str) -> str | None:
    """Why a submission's address is no link to a text elsewhere; None if it is one."""
    if (plain := canonical(url)) is None:
        return "no address"
    host = plain.split("/", 1)[0].split("?", 1)[0].split(":", 1)[0]
    if _HOSTS.search(host):
        return "leads to the forum itself or to pictures or films"
    return "a picture, film or archive" if _MEDIA.search(plain.split("?", 1)[0]) else None


def addresses(path: Path, karma: int, limits: Limits) -> Iterator[str | Reject]:
    """The addresses of a list (one a line) or of submissions (JSON Lines); of those, the outbound links with at least
    `karma`. Addresses may come twice."""
    from lmlab.corpus.readers.reddit import submission

    number = 0
    try:
        with open_bytes(path, limits) as stream:
            for number, line in lines(stream, limits.record):
                if line is None:
                    yield Reject(path.name, number, f"longer than {limits.record:,} bytes")
                elif not (text := line.strip()):
                    continue
                elif not text.startswith(b"{"):
                    yield text.decode("utf-8", "replace")
                elif isinstance(found := submission(line), str):
                    yield Reject(path.name, number, found)
                elif not found.own and found.score >= karma and outbound(found.url) is None:
                    yield found.url
    except DAMAGED as error:
        yield Reject(path.name, number + 1, f"cut off or damaged: {error}")


def _hash(plain: str) -> int:
    return int.from_bytes(hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def files_of(path: str, where: str) -> list[Path]:
    """The files that hold wanted addresses. Raises Refused where there are none."""
    place = Path(path).expanduser()
    found = sorted(each for each in place.rglob("*") if each.is_file()) if place.is_dir() else [place]
    if not found or not all(each.is_file() for each in found):
        raise Refused(f"{where}: '{path}': expected a file of addresses, or submissions")
    return found


class Wanted:
    """A set of addresses."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes

    def __contains__(self, url: str) -> bool:
        if (plain := canonical(url)) is None:
            return False
        key = np.uint64(_hash(plain))
        place = int(np.searchsorted(self.hashes, key))
        return place < len(self.hashes) and bool(self.hashes[place] == key)

    @staticmethod
    def of(source: SourceConfig, limits: Limits) -> Wanted | None:
        """The addresses that a source's pages must be among; None where all are welcome."""
        if not source.web.urls:
            return None
        files = files_of(source.web.urls, f"source '{source.name}': web.urls")
        dated = tuple((each, each.stat().st_mtime_ns) for each in files)
        return _wanted(dated, source.web.karma, limits)


@functools.lru_cache(maxsize=4)
def _wanted(files: tuple[tuple[Path, int], ...], karma: int, limits: Limits) -> Wanted:
    """Loaded once a process, in blocks that are made unique: memory is that of the distinct addresses."""
    whole = np.zeros(0, np.uint64)
    block: list[int] = []

    def merge(whole: np.ndarray) -> np.ndarray:
        return np.union1d(whole, np.array(block, np.uint64))

    for path, _ in files:
        for each in addresses(path, karma, limits):
            if isinstance(each, str) and (plain := canonical(each)):
                block.append(_hash(plain))
                if len(block) >= 1 << 20:
                    whole, block[:] = merge(whole), []
    return Wanted(merge(whole))


def links(paths: list[Path], karma: int, out: Path, limits: Limits | None = None) -> dict[str, int]:
    """Write the distinct outbound links of submissions with at least `karma`, sorted, one a line; returns the counts.

    Memory is that of the distinct links' hashes and one sorted run.
    """
    from lmlab.corpus.readers.spill import Sorter

    limits = limits or Limits()
    counts = {"links": 0, "distinct": 0, "broken": 0}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    with Sorter(out.parent) as sorter, temporary.open("w", encoding="utf-8") as file:
        for path in paths:
            for each in addresses(path, karma, limits):
                if isinstance(each, Reject):
                    counts["broken"] += 1
                elif plain := canonical(each):
                    counts["links"] += 1
                    sorter.add(plain.encode("utf-8", "replace"), each.strip().encode("utf-8", "replace"))
        last = None
        for key, url in sorter:
            if key != last:
                file.write(url.decode("utf-8") + "\n")
                counts["distinct"] += 1
            last = key
    temporary.replace(out)
    return counts
