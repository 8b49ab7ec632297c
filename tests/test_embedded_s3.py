"""The S3 server of the demo, SeaweedFS: ready, private, and ended with the program that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from demo import embedded_s3, services
from demo.locked import locked
from tests.conftest import content
from tests.streaming_export.waiting import PATIENCE, eventually

pytestmark = pytest.mark.skipif(not embedded_s3.weed(), reason="there is no SeaweedFS for this machine")

STARTER = """
import sys; from pathlib import Path; from demo import services
with services.s3(Path(sys.argv[1])) as endpoint:
    print(endpoint, flush=True)
    sys.stdin.read()
"""


class Starter:
    """Another program that runs the server, as a demo does."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", STARTER, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=services.PROJECT)
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().decode().strip()
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        (self.server,) = (child for child in self.children if child.name() == "weed")
        (self.guard,) = (child for child in self.children if child != self.server)
        self.command = self.server.cmdline()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    """A program that runs the server in a folder of the test's."""
    starter = Starter(tmp_path)
    yield starter
    starter.end()
    psutil.wait_procs(starter.children, timeout=PATIENCE)


@pytest.fixture
def weed_of_the_tests(endpoint: str) -> psutil.Process:
    """The server that all tests share."""
    option = f"-s3.port={endpoint.rpartition(':')[2]}"
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # other tests' programs may end meanwhile
            if child.name() == "weed" and option in child.cmdline():
                return child
    raise AssertionError("The server does not run.")


def test_it_listens_on_loopback_only(weed_of_the_tests: psutil.Process) -> None:
    """Each port of each part of it, gRPC's too, is bound to 127.0.0.1."""
    listening = [each.laddr for each in weed_of_the_tests.net_connections() if each.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len(listening) == len(embedded_s3.PORTS), "a port is open that was not chosen"


def test_it_reports_nothing_to_its_makers(weed_of_the_tests: psutil.Process) -> None:
    """Telemetry is off, and it talks to nobody beyond this machine."""
    assert "-master.telemetry=false" in weed_of_the_tests.cmdline()
    peers = {each.raddr.ip for each in weed_of_the_tests.net_connections() if each.raddr}
    assert peers <= {"127.0.0.1"}


@pytest.mark.parametrize(
    ("key", "secret", "code"),
    [
        (services.ACCESS_KEY, "wrong", "SignatureDoesNotMatch"),
        ("stranger", services.SECRET_KEY, "InvalidAccessKeyId"),
    ],
)
def test_keys_are_checked(endpoint: str, bucket: str, key: str, secret: str, code: str) -> None:
    """A request that is signed with another key is refused."""
    keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    stranger = boto3.client("s3", endpoint_url=endpoint, region_name=services.REGION, **keys)
    with pytest.raises(ClientError, match=code):
        stranger.put_object(Bucket=bucket, Key="a", Body=b"a")


def status(url: str) -> int:
    """The status of an unsigned GET."""
    try:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def test_nobody_reads_without_a_key(client: Any, endpoint: str, bucket: str) -> None:
    """The plain URL of an object, or of the bucket, opens for nobody."""
    client.put_object(Bucket=bucket, Key="a b.csv", Body=b"a")
    assert (status(f"{endpoint}/{bucket}/a%20b.csv"), status(f"{endpoint}/{bucket}")) == (403, 403)


def test_two_live_side_by_side(starter: Starter, client: Any) -> None:
    """A demo and a test run have servers of their own, and neither sees the other's buckets."""
    services.create_bucket(starter.endpoint, "of-the-demo")
    assert "of-the-demo" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]


def test_a_port_that_is_taken_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If somebody is faster at a port, others are chosen."""
    choose, chosen = embedded_s3._free_ports, []
    blocker = embedded_s3.socket.create_server(("127.0.0.1", 0))

    def one_is_taken(number: int) -> list[int]:
        chosen.append(choose(number))
        return chosen[0] if len(chosen) > 1 else [blocker.getsockname()[1], *chosen[0][1:]]

    monkeypatch.setattr(embedded_s3, "_free_ports", one_is_taken)
    with blocker, services.s3(tmp_path) as endpoint:
        services.create_bucket(endpoint)
    assert len(chosen) == 2


def test_it_ends_with_its_starter(starter: Starter) -> None:
    """If its starter is killed, the server ends, and leaves nothing in /tmp."""
    litter = embedded_s3._litter(starter.command)
    assert [path for path in litter if not path.exists()] == []
    starter.end()
    _, alive = psutil.wait_procs(starter.children, timeout=PATIENCE)
    assert not alive
    assert [path for path in litter if path.exists()] == []


def test_objects_outlive_a_kill(starter: Starter, tmp_path: Path) -> None:
    """What was answered before the server was killed is there when it is started in the same folder again."""
    client = services.s3_client(starter.endpoint)
    services.create_bucket(starter.endpoint)
    client.put_object(Bucket=services.BUCKET, Key="small", Body=b"a")
    upload = {"Bucket": services.BUCKET, "Key": "large"}
    upload["UploadId"] = client.create_multipart_upload(**upload)["UploadId"]
    parts = []
    for number, body in enumerate((b"1" * 5 * 2**20, b"2"), 1):
        sent = client.upload_part(**upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    starter.server.kill()
    starter.end()
    with services.s3(tmp_path) as endpoint:
        services.create_bucket(endpoint)
        client = services.s3_client(endpoint)
        assert content(client, services.BUCKET, "small") == b"a"
        assert content(client, services.BUCKET, "large") == b"1" * 5 * 2**20 + b"2"


def test_an_orphan_is_ended(starter: Starter, tmp_path: Path) -> None:
    """A server whose guard and starter were killed makes room for the next, and its litter goes."""
    starter.guard.kill()
    starter.end()
    with services.s3(tmp_path):
        assert eventually(lambda: not starter.server.is_running())
        assert [path for path in embedded_s3._litter(starter.command) if path.exists()] == []


def test_moto_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no SeaweedFS the demo runs on moto, and says in one line what is different."""
    monkeypatch.setattr(services, "weed", lambda: None)
    with services.s3(tmp_path) as endpoint:
        services.create_bucket(endpoint)
        services.s3_client(endpoint).put_object(Bucket=services.BUCKET, Key="a", Body=b"a")
        assert content(services.s3_client(endpoint), services.BUCKET, "a") == b"a"
    (line,) = capsys.readouterr().out.splitlines()
    assert "moto replaces it, and does not keep its objects" in line
    assert not services.keeps_objects()


def test_a_second_demo_is_told_at_once(tmp_path: Path) -> None:
    """Two demos in one folder: the second one ends at once, and its error names the process of the first."""
    told = rf"Another demo .*\(process {os.getpid()}\)"
    with locked(tmp_path / "lock"), pytest.raises(RuntimeError, match=told), services.alone(tmp_path):
        raise AssertionError("there are two")
    with services.alone(tmp_path):
        pass
