"""Two network namespaces, one for the servers and one for the contenders, and links with a delay between them.

Nothing of the machine's own network is touched. The namespaces have no names: the kernel removes them when the last
process that uses them has ended, however it ends.
"""

import ctypes
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import link
from demo.guard import guarded, wait_until


@dataclass(frozen=True)
class Network:
    """The namespaces, as open files.

    :param servers: where PostgreSQL and the store are.
    :param clients: where contenders run.
    :param addresses: of the servers, by the round trip in milliseconds that it takes to reach them there.
    """

    servers: int
    clients: int
    addresses: dict[int, str]


def missing() -> str | None:
    """What this machine lacks for this network; None if nothing."""
    if sys.platform != "linux":
        return "it takes Linux's network namespaces"
    if os.geteuid() != 0:
        return "it takes root"
    if not Path(link.TUN).exists():
        return f"it takes {link.TUN}"
    if not shutil.which("ip"):
        return "it takes the program ip (package iproute2)"
    try:
        os.close(_namespace())
    except OSError as error:
        return f"network namespaces are not allowed: {error.strerror}"
    return None


@contextmanager
def opened(round_trips: Sequence[int]) -> Iterator[Network]:
    """Create the namespaces, and a link for each round trip (milliseconds)."""
    servers, clients = _namespace(), _namespace()
    ends = [f"/proc/{os.getpid()}/fd/{end}" for end in (clients, servers)]
    addresses = {}
    try:
        with ExitStack() as links:
            for number, round_trip in enumerate(round_trips, 1):
                links.enter_context(_link([*ends, str(number), str(round_trip / 2000)]))
                addresses[round_trip] = link.address(number, 1)
            yield Network(servers, clients, addresses)
    finally:
        os.close(servers)
        os.close(clients)


@contextmanager
def inside(namespace: int | None) -> Iterator[None]:
    """Move this thread, and what it starts, into a namespace during the block; None changes nothing."""
    if namespace is None:
        yield
        return
    own = _current()
    link.enter(namespace)
    try:
        yield
    finally:
        link.enter(own)
        os.close(own)


@contextmanager
def _link(arguments: list[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.link", *arguments]
    with tempfile.TemporaryFile() as log, guarded(command, log) as process:
        wait_until(lambda: b"ready" in os.pread(log.fileno(), 100, 0), process, log, "The link")
        yield


def _namespace() -> int:
    """A new namespace, created in another thread, so that this one stays in its own."""

    def make() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(link.CLONE_NEWNET):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return _current()

    return _in_thread(make)


def _in_thread(work: Callable[[], int]) -> int:
    found: list[int | OSError] = []

    def keep() -> None:
        try:
            found.append(work())
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=keep)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)
