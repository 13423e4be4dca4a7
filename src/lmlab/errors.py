"""The errors a user meets. Each is one message: where, what was found, what is expected, the nearest right thing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LmlabError(Exception):
    """Base of every error that lmlab raises on purpose. The command line prints it without a traceback."""

    exit_status = 1


class Refused(LmlabError):
    """Bad input, found before any work started. Exit status 2."""

    exit_status = 2


class Failed(LmlabError):
    """Work that started and could not be finished; what was finished before stays. Exit status 1."""


class Stopped(Failed):
    """Told to stop (SIGTERM), saved, and ready to go on. Exit status 143, 128 and the signal's number."""

    exit_status = 143


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint such as ``; did you mean 'layers'?`` or, with nothing near, the known words."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f" (known: {', '.join(names)})" if names else ""
