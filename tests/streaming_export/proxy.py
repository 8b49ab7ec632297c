"""A stretch of network between a program and PostgreSQL that a test can interrupt."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa

SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Passes connections on to PostgreSQL's socket, until it goes deaf or silent.

    Connections are numbered from 0 as they are opened.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self._server = server
        self._open: list[socket.socket] = []
        self._connections: list[tuple[socket.socket, socket.socket]] = []
        self._received = 0
        self._last: tuple[socket.socket, ...] = ()
        #: What has not happened yet.
        self.events: list[tuple[Callable[[], bool], Callable[[], object]]] = []
        self._deaf = False
        self._passing = threading.Event()
        self._passing.set()
        self._listener = self._socket()
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def go_deaf(self) -> None:
        """Answer no new connection from now on, as a firewall that drops them."""
        self._deaf = True

    def go_silent(self) -> None:
        """Pass nothing on any more, on no connection, as a network that is gone."""
        self._deaf = True
        self._passing.clear()

    def after_bytes(self, count: int, action: Callable[[], object]) -> None:
        """Once so many more bytes have come from the server, do something before the next are passed on."""
        least = self._received + count
        self.events.append((lambda: self._received >= least, action))

    def before_connection(self, number: int, action: Callable[[], object]) -> None:
        """Do something before so many more connections are open."""
        least = len(self._connections) + number
        self.events.append((lambda: len(self._connections) >= least, action))

    def cut_last(self) -> None:
        """End the connection on which the server has sent most recently, and leave the others alone."""
        for end in self._last:
            _shut(end)

    def close(self) -> None:
        """End all connections."""
        for one in self._open:
            _shut(one)
            one.close()
        self._passing.set()

    def _socket(self) -> socket.socket:
        new = socket.socket(socket.AF_UNIX)
        self._open.append(new)
        return new

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                if self._deaf:
                    continue
                server = self._socket()
                try:
                    server.connect(self._server)
                except OSError:  # the server is down
                    _shut(client)
                    continue
                self._connections.append((client, server))
                self._notice()
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _notice(self) -> None:
        for event in list(self.events):
            happened, action = event
            if not happened():
                continue
            try:
                self.events.remove(event)
            except ValueError:  # another connection's thread was faster
                continue
            action()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        from_server = any(source is server for _, server in self._connections)
        try:
            while data := source.recv(65_536):
                self._passing.wait()
                if from_server:
                    self._received += len(data)
                    self._last = source, target
                    self._notice()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one end was torn down
            _shut(source)
            _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxied(database: str) -> Iterator[tuple[str, Proxy]]:
    """A URI of the same database that leads through a proxy, and the proxy."""
    url = sa.make_url(database)
    folder = Path(tempfile.mkdtemp(prefix="px-"))  # a socket's path is short
    proxy = Proxy(folder, f"{url.query['host']}/{SOCKET}")
    try:
        yield str(url.update_query_dict({"host": str(folder)})), proxy
    finally:
        proxy.close()
        shutil.rmtree(folder)
