"""SIGTERM while training: what schedulers send before they end a job. The step is finished, the run saved, and left."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Stop:
    """Within the block SIGTERM only sets `asked`. In a thread other than the main one, which cannot handle signals, nothing
    changes."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
