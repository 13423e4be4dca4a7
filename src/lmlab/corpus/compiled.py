"""Compiling hot loops with numba, with a cache on disk that survives an unwritable package directory."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def _private_cache() -> Path | None:
    """A folder of our own under the temporary directory, or None where somebody else holds that name.

    numba's cache is code that will be run, so a folder which others can write must not be used.
    """
    folder = Path(tempfile.gettempdir()) / f"lmlab-numba-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    safe = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if safe else None


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` without the GIL. The machine code is kept on disk: beside the source, else in the user's
    cache directory (numba's own order), else in a private temporary folder, else not at all.

    Kernels that call each other stand in one file: numba's cache looks only at the file of the outermost function.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "no locator available": neither the package nor the user's cache directory can be written
        folder = _private_cache()
        if folder is not None:
            settings: Any = numba.config
            settings.CACHE_DIR = str(folder)
        return numba.njit(cache=folder is not None, nogil=True)(function)
