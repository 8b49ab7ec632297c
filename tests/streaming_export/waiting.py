"""Waiting in tests: always for something that happens, and never for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE = 30  # seconds after which a test gives up waiting for what must happen, on a busy machine


class Running:
    """A function in a thread of its own: what it returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, name="test", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as exc:
            self.error = exc

    def ends(self, within: float = PATIENCE) -> bool:
        """Whether it has ended within so many seconds."""
        self._thread.join(within)
        return not self._thread.is_alive()


def eventually(condition: Callable[[], object]) -> bool:
    """Whether a condition becomes true; for conditions without an event."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
