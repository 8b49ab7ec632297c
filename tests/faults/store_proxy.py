"""A stretch of network between an S3 client and its store, on which requests and answers can come to harm."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.streaming_export.waiting import PATIENCE

#: What happens to a request, in the thread that serves its connection.
Action = Callable[["Exchange"], None]

MANIFEST = ".manifest.json"

# Headers that are for the next station only (RFC 9110, 7.6.1), and what this station has answered already.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


def operation_of(method: str, path: str) -> str:
    """What S3 calls a request; reading and writing a manifest have names of their own here."""
    url = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
    if method == "GET" and "uploads" in query:
        return "ListMultipartUploads"
    if "partNumber" in query:
        return "UploadPart"
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if method == "DELETE":
        return "AbortMultipartUpload"
    what = "Manifest" if url.path.endswith(MANIFEST) else "Object"
    return {"GET": "Get", "HEAD": "Head", "PUT": "Put"}[method] + what


@dataclass
class _Rule:
    """An action for the requests of an operation, after the first `skip` of them, at most `times` times."""

    operations: re.Pattern[str]
    action: Action
    skip: int
    times: float
    hits: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, operation: str) -> bool:
        with self.lock:
            if not self.operations.fullmatch(operation):
                return False
            if self.skip:
                self.skip -= 1
                return False
            if self.hits >= self.times:
                return False
            self.hits += 1
            return True


class StoreProxy:
    """Passes requests on to a store, but for those that a rule takes.

    :param endpoint: URL of the store.
    :param tls: what the proxy needs to speak TLS as `localhost`; it speaks plain HTTP to the store.
    """

    def __init__(self, endpoint: str, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = urllib.parse.urlsplit(endpoint).netloc
        self._rules: list[_Rule] = []
        #: What happens to the requests that no rule takes.
        self.default: Action = pass_on
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        if tls:
            # Each connection shakes hands in its own thread, when it is first read from.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        #: URL for the client.
        self.url = f"{scheme}://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="proxy", daemon=True).start()

    @contextlib.contextmanager
    def inject(self, operations: str, action: Action, skip: int = 0, times: float = float("inf")) -> Iterator[None]:
        """Have an action happen to the requests of operations (a regular expression), for the length of the block.

        :raises AssertionError: if it has not happened.
        """
        rule = _Rule(re.compile(operations), action, skip, times)
        self._rules.append(rule)
        try:
            yield
        finally:
            self._rules.remove(rule)
        assert rule.hits, f"the fault has not happened: nothing asked for {operations}"

    def action_for(self, operation: str) -> Action:
        """What happens to a request."""
        return next((rule.action for rule in list(self._rules) if rule.takes(operation)), self.default)

    def close(self) -> None:
        """End all connections."""
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()


class Exchange:
    """One request, and what can be done about it."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        self._length = int(handler.headers.get("Content-Length", 0))
        self._body = bytearray()

    def take_body(self, share: float = 1.0) -> None:
        """Receive the request's body, as far as that share of it."""
        wanted = int(self._length * share)
        self._body += self._handler.rfile.read(wanted - len(self._body))
        if len(self._body) < wanted:
            raise ConnectionResetError("the client has gone")

    def header(self, name: str) -> str | None:
        """A header of the request."""
        return self._handler.headers.get(name)

    @property
    def path(self) -> str:
        """Path and query of the request."""
        return self._handler.path

    @property
    def operation(self) -> str:
        """What S3 calls the request."""
        return operation_of(self._handler.command, self.path)

    @property
    def size(self) -> int:
        """Bytes of the request's body."""
        return self._length

    def body(self) -> bytes:
        """The request's body."""
        self.take_body()
        return bytes(self._body)

    def discard_chunks(self) -> None:
        """Receive a body of chunks (RFC 9112, 7.1), whose length is not known before."""
        read = self._handler.rfile
        while size := int(read.readline().split(b";")[0], 16):
            read.read(size)
            read.readline()
        while read.readline().strip():
            pass  # trailers

    def drop_headers(self, names: str) -> None:
        """Have the store not see the request's headers of these names (a regular expression)."""
        for name in list(self._handler.headers):
            if re.fullmatch(names, name, re.IGNORECASE):
                del self._handler.headers[name]

    def ask(self) -> tuple[int, dict[str, str], bytes]:
        """The store's answer: status, headers and body."""
        handler = self._handler
        self.take_body()
        body = bytes(self._body)
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP_BY_HOP}
        with contextlib.closing(http.client.HTTPConnection(handler.server.proxy.upstream, timeout=PATIENCE)) as store:
            store.request(handler.command, handler.path, body if self._length else None, headers)
            answer = store.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            return answer.status, kept, answer.read()

    def etag(self) -> str | None:
        """The ETag of the object that is there, without its quotes, or None if there is none."""
        upstream = self._handler.server.proxy.upstream
        with contextlib.closing(http.client.HTTPConnection(upstream, timeout=PATIENCE)) as store:
            signed = {name: value for name, value in self._handler.headers.items() if name.lower() == "authorization"}
            store.request("HEAD", self.path, headers=signed)
            etag = store.getresponse().getheader("ETag")
        return etag and etag.strip('"')

    def answer(self, status: int, headers: dict[str, str], body: bytes, share: float = 1.0) -> None:
        """Answer the client, with that share of the body."""
        handler = self._handler
        handler.send_response_only(status)
        if handler.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body[: int(len(body) * share)])

    def wait_until_client_leaves(self) -> None:
        """Answer nothing until the client gives up."""
        connection = self._handler.connection
        connection.settimeout(2 * PATIENCE)
        with contextlib.suppress(OSError):
            connection.recv(1)
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection."""
        self._handler.close_connection = True

    def reset(self) -> None:
        """Tear the connection down, as a crash or a firewall does (RST)."""
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.hang_up()
        self._handler.server.abandon(self._handler.connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would wait for the acknowledgement of its headers, 40 ms
    server: _Server

    def _serve(self) -> None:
        exchange = Exchange(self)
        self.server.proxy.action_for(operation_of(self.command, self.path))(exchange)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: StoreProxy

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is what these tests are about."""

    def abandon(self, connection: socket.socket) -> None:
        """Close without the handshake of an orderly end."""
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def cut(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


# ---- What can happen to a request


def pass_on(exchange: Exchange) -> None:
    """Nothing."""
    exchange.answer(*exchange.ask())


def refuse(code: str, status: int, message: str = "injected by a test") -> Action:
    """Answer in the store's place."""

    def action(exchange: Exchange) -> None:
        exchange.take_body()
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        exchange.answer(status, {"Content-Type": "application/xml"}, error.encode())

    return action


def hang(exchange: Exchange) -> None:
    """The request never arrives, and nobody says so."""
    exchange.take_body()
    exchange.wait_until_client_leaves()


def answer_late(exchange: Exchange) -> None:
    """The store does what it is asked, but answers only when the client has given up."""
    exchange.ask()
    exchange.wait_until_client_leaves()


def lose_answer(exchange: Exchange) -> None:
    """The store does what it is asked, and the connection ends before its answer."""
    exchange.ask()
    exchange.hang_up()


def truncate_answer(exchange: Exchange) -> None:
    """The connection ends in the middle of the answer."""
    exchange.answer(*exchange.ask(), share=0.5)
    exchange.hang_up()


def reset_half_way(exchange: Exchange) -> None:
    """The connection is reset in the middle of the request's body."""
    exchange.take_body(0.5)
    exchange.reset()


def damage(exchange: Exchange) -> None:
    """The body arrives damaged. S3 notices by the checksum in the request; the tests' store does not."""
    assert exchange.header("x-amz-checksum-crc32"), "a body was sent without a checksum"
    refuse("BadDigest", 400)(exchange)


def change_header(name: str, value: str) -> Action:
    """The answer is another than the store's."""

    def action(exchange: Exchange) -> None:
        status, headers, body = exchange.ask()
        exchange.answer(status, {**headers, name: value}, body)

    return action


def delay(seconds: float) -> Action:
    """The answer takes its time."""

    def action(exchange: Exchange) -> None:
        answer = exchange.ask()
        time.sleep(seconds)
        exchange.answer(*answer)

    return action


def throttle(seconds: float) -> Action:
    """The body arrives bit by bit."""

    def action(exchange: Exchange) -> None:
        for tenth in range(1, 11):
            time.sleep(seconds / 10)
            exchange.take_body(tenth / 10)
        pass_on(exchange)

    return action


class Held:
    """Requests that are on their way, and arrive only when they are let go; the client may have given up by then."""

    def __init__(self) -> None:
        self._taken = threading.Semaphore(0)
        self._go = threading.Event()
        self._arrived = threading.Semaphore(0)
        self._count = 0

    def __call__(self, exchange: Exchange) -> None:
        exchange.take_body()
        self._count += 1
        self._taken.release()
        assert self._go.wait(4 * PATIENCE)
        try:
            pass_on(exchange)
        finally:
            self._arrived.release()

    def wait(self) -> None:
        """Return when there is one."""
        assert self._taken.acquire(timeout=PATIENCE)

    def let_go(self) -> None:
        """Have all of them arrive, and the store do what they ask."""
        self._go.set()
        for _ in range(self._count):
            assert self._arrived.acquire(timeout=PATIENCE)


def first(event: Callable[[], object], action: Action = pass_on) -> Action:
    """Have something else happen when the request comes."""

    def both(exchange: Exchange) -> None:
        event()
        action(exchange)

    return both
