"""The stores of tests/stores.py do what their names say. Plain boto3 asks; no engine is involved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from demo import services
from tests import stores
from tests.conftest import content

MB = 2**20
BUCKET = "bucket"


@pytest.fixture(scope="module")
def running(moto_endpoint: str) -> Iterator[Callable[[str], str]]:
    """Starts a store when a test first asks for it; the URL."""
    with ExitStack() as stack:
        urls: dict[str, str] = {}

        def start(name: str) -> str:
            if name not in urls:
                urls[name] = stack.enter_context(stores.STORES[name](moto_endpoint))
                client = client_of(name, urls[name])
                with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=BUCKET)
            return urls[name]

        yield start


@pytest.fixture
def store(running: Callable[[str], str]) -> Callable[[str], Any]:
    """A client for a store, with the settings that it needs."""
    return lambda name: client_of(name, running(name))


def client_of(name: str, url: str) -> Any:
    return services.s3_client(url, Config(retries={"mode": "standard"}, **stores.SETTINGS.get(name, {})))


def put(client: Any, key: str, body: bytes = b"a", **condition: str) -> Any:
    """Put an object; returns the answer, or the code of the refusal."""
    try:
        return client.put_object(Bucket=BUCKET, Key=key, Body=body, **condition)
    except ClientError as error:
        return error.response["Error"]["Code"]


def upload(client: Any, key: str, sizes: list[int], **condition: str) -> Any:
    """Upload parts of these sizes and complete them; returns the answer, or the code of the refusal."""
    place = {"Bucket": BUCKET, "Key": key}
    created = client.create_multipart_upload(**place, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    place["UploadId"] = created["UploadId"]
    parts = []
    for number, size in enumerate(sizes, 1):
        sent = client.upload_part(**place, PartNumber=number, Body=b"x" * size)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    try:
        return client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts}, **condition)
    except ClientError as error:
        return error.response["Error"]["Code"]


def etag(client: Any, key: str) -> str:
    return str(client.head_object(Bucket=BUCKET, Key=key)["ETag"])


@pytest.mark.parametrize("name", stores.STORES)
def test_what_is_written_can_be_read(store: Callable[[str], Any], name: str) -> None:
    """On every store small and multipart objects arrive as they were sent, and are replaced without a condition."""
    client = store(name)
    for body in (b"1", b"2"):
        assert put(client, "small", body)["ETag"]
        assert content(client, BUCKET, "small") == body
    for last in (1, 2):
        assert isinstance(upload(client, "large", [5 * MB, last]), dict)
        assert content(client, BUCKET, "large") == b"x" * (5 * MB + last)


@pytest.mark.parametrize("name", ["seaweedfs", "moto", "no checksums", "equal parts", "throttling"])
def test_others_honour_conditions(store: Callable[[str], Any], name: str) -> None:
    """What is not about conditions leaves them to the store: a put with one that does not hold is refused."""
    client = store(name)
    put(client, "held")
    assert put(client, "held", b"b", IfMatch=etag(client, "held"))["ETag"]
    assert put(client, "held", IfMatch='"other"') == "PreconditionFailed"
    assert put(client, "held", IfNoneMatch="*") == "PreconditionFailed"
    assert upload(client, "held", [5 * MB, 1], IfNoneMatch="*") == "PreconditionFailed"


def test_seaweedfs_honours_if_match_on_complete(store: Callable[[str], Any]) -> None:
    """SeaweedFS completes no upload over another object than the one that is named; moto does."""
    assert upload(store("seaweedfs"), "large", [5 * MB], IfMatch='"other"') == "PreconditionFailed"
    assert isinstance(upload(store("moto"), "large", [5 * MB], IfMatch='"other"'), dict)


@pytest.mark.parametrize("name", ["empty ETag", "Ceph RGW 16"])
def test_complete_has_no_etag(store: Callable[[str], Any], name: str) -> None:
    """The answer of the completion has an empty ETag, and HEAD has the right one."""
    client = store(name)
    assert upload(client, "without", [5 * MB, 1]).get("ETag", "") == ""
    assert etag(client, "without").endswith('-2"')


def test_conditions_are_ignored(store: Callable[[str], Any]) -> None:
    """Put and complete go through whatever the condition."""
    client = store("conditions ignored")
    put(client, "key")
    for condition in ({"IfMatch": '"other"'}, {"IfNoneMatch": "*"}):
        assert put(client, "key", **condition)["ETag"]
        assert upload(client, "key", [5 * MB], **condition)["ETag"]


def test_conditions_are_refused(store: Callable[[str], Any]) -> None:
    """Put and complete with a condition are not implemented, even where it holds."""
    client = store("conditions refused")
    put(client, "key")
    for condition in ({"IfMatch": etag(client, "key")}, {"IfNoneMatch": "*"}):
        assert put(client, "key", **condition) == "NotImplemented"
        assert upload(client, "key", [5 * MB], **condition) == "NotImplemented"


def test_an_unchanged_object_does_not_match(store: Callable[[str], Any]) -> None:
    """Ceph RGW 16: the object's own ETag does not match, but it does without its quotes."""
    client = store("Ceph RGW 16")
    put(client, "key")
    quoted = etag(client, "key")
    assert put(client, "key", IfMatch=quoted) == "PreconditionFailed"
    assert put(client, "key", IfMatch=quoted.strip('"'))["ETag"]
    assert put(client, "absent", IfMatch=quoted) == "PreconditionFailed"
    assert put(client, "key", IfNoneMatch="*") == "PreconditionFailed"
    assert put(client, "new", IfNoneMatch="*")["ETag"]
    for condition in ({"IfMatch": '"other"'}, {"IfNoneMatch": "*"}):
        assert isinstance(upload(client, "key", [5 * MB], **condition), dict)


def test_no_answer_has_a_checksum(store: Callable[[str], Any]) -> None:
    """Neither the answers of writes nor those of HEAD name a checksum, though moto's do."""
    for name, told in (("no checksums", False), ("moto", True)):
        client = store(name)
        answers = [put(client, "small"), upload(client, "large", [5 * MB, 1])]
        answers += [client.head_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED") for key in ("small", "large")]
        assert any("Checksum" in key for answer in answers for key in answer) is told


def test_trailers_are_refused(running: Callable[[str], str], store: Callable[[str], Any]) -> None:
    """boto3's defaults are refused, and the documented setting is not."""
    assert put(services.s3_client(running("no trailers")), "key") == "MissingContentLength"
    assert put(store("no trailers"), "key")["ETag"]


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([5 * MB], True),
        ([5 * MB, 5 * MB, 5 * MB], True),
        ([5 * MB, 5 * MB, 1], True),
        ([5 * MB, 6 * MB, 1], False),
        ([5 * MB, 6 * MB], False),
    ],
)
def test_parts_must_have_one_size(store: Callable[[str], Any], sizes: list[int], taken: bool) -> None:
    """All but the last have one size and the last is no larger, or the completion fails."""
    answer = upload(store("equal parts"), "key", sizes)
    assert isinstance(answer, dict) if taken else answer == "InvalidPart"


def test_uploads_are_not_listed(store: Callable[[str], Any]) -> None:
    """The listing is denied, and nothing else."""
    with pytest.raises(ClientError, match="AccessDenied"):
        store("no listing").list_multipart_uploads(Bucket=BUCKET)


def test_some_writes_have_to_be_tried_again(running: Callable[[str], str], store: Callable[[str], Any]) -> None:
    """Every other write is refused with SlowDown for two tries; boto3's third goes through."""
    once = services.s3_client(running("throttling"), Config(retries={"total_max_attempts": 1}))
    answers = [put(once, f"once-{number}") for number in range(4)]
    assert answers.count("SlowDown") == 2
    for number in range(4):
        assert put(store("throttling"), f"again-{number}")["ResponseMetadata"]["RetryAttempts"] in (0, stores.REFUSALS)


def test_it_is_slow(store: Callable[[str], Any]) -> None:
    """What is sent takes as long as over a line of 2 MB/s."""
    client = store("slow")
    begin = time.monotonic()
    put(client, "key", b"x" * stores.BYTES_PER_SECOND)
    assert time.monotonic() - begin >= 1
