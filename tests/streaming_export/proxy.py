"""A stretch of network between a program and PostgreSQL that a test can interrupt."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Passes connections on to PostgreSQL's socket, until it goes deaf or silent."""

    def __init__(self, folder: Path, server: str) -> None:
        self._server = server
        self._open: list[socket.socket] = []
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

    def close(self) -> None:
        """End all connections."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
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
                server.connect(self._server)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._passing.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


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
