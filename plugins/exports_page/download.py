"""Downloads that never look complete unless they are: how bytes get from a thread to a socket."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from streaming_export import ExportError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds within which a browser must read what was sent; otherwise the download ends.
STALLED_SECONDS = 30.0

_RETRY_SECONDS = 10  # how long a refused client should wait

_CANCEL_AGAIN_SECONDS = 2.5  # a cancel between two statements stops neither

# Threads of our own: those of Airflow's routes must never wait for a download.
_reading = anyio.CapacityLimiter(16)
_ending = anyio.CapacityLimiter(32)


class Reading(Protocol):
    """The source of a download. Only one thread at a time uses it, except for `cancel`."""

    def open(self) -> tuple[int, dict[str, str]]:
        """Begin.

        :returns: status and headers of the answer.
        :raises ExportError: if there will be nothing to read.
        """

    def read(self) -> bytes:
        """The next bytes; b"" at the end, after all are verified.

        :raises ExportError: if they are wrong, or reading failed.
        """

    def cancel(self) -> None:
        """Make `open` or `read` end soon; from any thread, also repeatedly."""

    def close(self) -> None:
        """Close all connections."""


class Slots:
    """Limits the number of concurrent downloads in this process.

    :param limit: the maximum.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0

    @property
    def free(self) -> bool:
        """Whether one more may start."""
        return self._taken < self.limit

    def take(self) -> None:
        """Take a slot."""
        self._taken += 1

    def give(self) -> None:
        """Give a slot back."""
        self._taken -= 1


class Download(Response):
    """The response that streams a `Reading`.

    The headers are sent with the first bytes, so that a failure before has its own status. A
    later failure can only be shown by closing the connection without the end that HTTP requires (see `_break`).
    In any case, all connections to the source are closed before that.

    :param reading: the source of the bytes.
    :param slots: the limit that it counts against.
    :param name: what is downloaded, for the log.
    :param refused: returns the response if the source can't be opened.
    """

    def __init__(self, reading: Reading, slots: Slots, name: str, refused: Callable[[Exception], Response]) -> None:
        super().__init__()
        self._reading, self._slots, self._name, self._refused = reading, slots, name, refused
        self._begun = self._complete = False
        self._sent, self._why = 0, ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not self._slots.free:
            await too_many(self._slots)(scope, receive, send)
            return
        self._slots.take()
        start, answer, self._ended = time.monotonic(), None, anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._until_gone, receive, group.cancel_scope)
                answer = await self._stream(send)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                with contextlib.suppress(Exception):
                    await _in_thread(self._reading.close, _ending)
                self._slots.give()
                self._log(time.monotonic() - start)
        if self._begun and not self._complete:
            await _break(send)
        if answer is not None:
            await answer(scope, receive, send)

    async def _stream(self, send: Send) -> Response | None:
        """Send all bytes; returns another response if nothing was sent."""
        try:
            status, headers = await _in_thread(self._reading.open, _reading)
            chunk = await _in_thread(self._reading.read, _reading)
            raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
            self._begun = True
            await self._send(send, {"type": "http.response.start", "status": status, "headers": raw})
            while chunk:
                await self._send(send, {"type": "http.response.body", "body": chunk, "more_body": True})
                self._sent += len(chunk)
                chunk = await _in_thread(self._reading.read, _reading)
            await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
            self._complete = True
        except TimeoutError:
            self._why = f"the browser took nothing for {STALLED_SECONDS:g} s"
        except Exception as exc:
            self._why = self._why or (exc.failed.rstrip(".") if isinstance(exc, ExportError) else type(exc).__name__)
            if not self._begun:
                return self._refused(exc)
        finally:
            self._ended.set()
        return None

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        with anyio.fail_after(STALLED_SECONDS):
            await send(message)

    async def _until_gone(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """Wait until the browser disconnects, and then cancel the reading."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._why = "the browser left"
        scope.cancel()
        with anyio.CancelScope(shield=True):
            while not self._ended.is_set():
                with contextlib.suppress(Exception):
                    await _in_thread(self._reading.cancel, _ending)
                with anyio.move_on_after(_CANCEL_AGAIN_SECONDS):
                    await self._ended.wait()

    def _log(self, seconds: float) -> None:
        # Airflow's access log shows status 200 in any case.
        what = f"Download of {self._name}: {self._sent:,} bytes in {seconds:.1f} s"
        if self._complete:
            log.info("%s, complete.", what)
        else:
            log.warning("%s, not complete: %s.", what, self._why or "it was cancelled")


def too_many(slots: Slots) -> Response:
    """The response if all slots are taken."""
    detail = f"{slots.limit} of these are running already. Try again in {_RETRY_SECONDS} s."
    return JSONResponse({"detail": detail}, 429, {"Retry-After": str(_RETRY_SECONDS)})


async def _in_thread(call: Callable[[], Result], limiter: anyio.CapacityLimiter) -> Result:
    return await anyio.to_thread.run_sync(functools.partial(call), limiter=limiter)


async def _break(send: Send) -> None:
    """Close the connection without the last chunk, so that the browser sees a failure.

    An exception would not do: Airflow's JWTRefreshMiddleware, a BaseHTTPMiddleware, ends the response properly all the
    same. A message that uvicorn does not know makes it close the connection. It waits while the browser reads nothing,
    and is cancelled after the message was refused, so it must not be shielded.
    """
    with contextlib.suppress(Exception):
        await send({"type": "http.response.pathsend", "path": ""})


def saved_as(name: str) -> str:
    """The name under which a file is saved: only what is safe in a header is kept."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "._-=+ ") else "_" for one in name)


def headers(name: str, content_type: str) -> dict[str, str]:
    """The headers of every download.

    :param name: of the file.
    """
    return {
        "Content-Type": content_type,
        "Content-Disposition": f'attachment; filename="{saved_as(name)}"',
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # nginx would spool a slow download to its disk
        "X-Content-Type-Options": "nosniff",
    }
