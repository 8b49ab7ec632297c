"""Object stores to try exports on: two servers, and stand-ins for stores that can't be installed.

A stand-in is a moto behind a proxy that does one thing as that store does it. `STORES` has them all by name, so that
a suite can be run on each; docs/stores.md says what is known of the stores themselves.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from demo import services
from tests.faults.store_proxy import Action, Exchange, StoreProxy, pass_on, refuse
from tests.postgres_to_s3.tls import Authority

CONDITIONS = "If-Match|If-None-Match"
PUT, COMPLETE = re.compile("Put(Object|Manifest)"), re.compile("CompleteMultipartUpload")
WRITES = re.compile(f"UploadPart|{PUT.pattern}|{COMPLETE.pattern}")

BYTES_PER_SECOND = 2_000_000  # of all requests to the slow store together
REFUSALS = 2  # how often the throttling store refuses a request, one less than boto3's tries in its standard mode

#: Arguments of a botocore Config without which a store takes nothing, by the store's name in `STORES`.
SETTINGS: dict[str, dict[str, Any]] = {"no trailers": {"request_checksum_calculation": "when_required"}}


@contextmanager
def stand_in(moto: str, action: Action) -> Iterator[str]:
    """A way to a moto on which every request goes through `action`; yields the URL."""
    with contextlib.closing(StoreProxy(moto)) as proxy:
        proxy.default = action
        yield proxy.url


def empty_etag(moto: str) -> AbstractContextManager[str]:
    """CompleteMultipartUpload is answered with an empty ETag. Ceph RGW 16 does; HEAD has the right one."""

    def action(exchange: Exchange) -> None:
        exchange.answer(*_without_etag(exchange))

    return stand_in(moto, action)


def conditions_ignored(moto: str) -> AbstractContextManager[str]:
    """Conditional writes are done whatever is there. StorageGRID does so in one of its configurations."""

    def action(exchange: Exchange) -> None:
        if WRITES.fullmatch(exchange.operation):
            exchange.drop_headers(CONDITIONS)
        pass_on(exchange)

    return stand_in(moto, action)


def conditions_refused(moto: str) -> AbstractContextManager[str]:
    """A conditional write is answered 501. StorageGRID does so in the other one, and S3 itself did until 2024."""

    def action(exchange: Exchange) -> None:
        if WRITES.fullmatch(exchange.operation) and (exchange.header("If-Match") or exchange.header("If-None-Match")):
            refuse("NotImplemented", 501)(exchange)
        else:
            pass_on(exchange)

    return stand_in(moto, action)


def ceph_rgw_16(moto: str) -> AbstractContextManager[str]:
    """If-Match is answered 412 though the object is unchanged: it is compared with the ETag without its quotes.

    If-None-Match is honoured on put; on complete both are ignored, and the answer's ETag is empty. RGW also refuses
    trailers, see `no_trailers`.
    """

    def action(exchange: Exchange) -> None:
        asked = exchange.header("If-Match")
        if COMPLETE.fullmatch(exchange.operation):
            exchange.drop_headers(CONDITIONS)
            exchange.answer(*_without_etag(exchange))
        elif PUT.fullmatch(exchange.operation) and asked:
            if asked == exchange.etag():
                exchange.drop_headers("If-Match")
                pass_on(exchange)
            else:
                refuse("PreconditionFailed", 412)(exchange)
        else:
            pass_on(exchange)

    return stand_in(moto, action)


def no_checksums(moto: str) -> AbstractContextManager[str]:
    """The store takes checksums and forgets them: no answer has one. Stores that don't know S3's do so."""

    def action(exchange: Exchange) -> None:
        exchange.drop_headers("x-amz-(sdk-)?checksum-.*")
        status, headers, body = exchange.ask()
        headers = {name: value for name, value in headers.items() if "checksum" not in name.lower()}
        exchange.answer(status, headers, re.sub(rb"<(Checksum\w+)>.*?</\1>", b"", body))

    return stand_in(moto, action)


@contextmanager
def no_trailers(moto: str) -> Iterator[str]:
    """Checksums in trailers are refused with 411, as Ceph RGW 16 does. boto3 sends them over TLS, so this speaks it."""

    def action(exchange: Exchange) -> None:
        if exchange.header("x-amz-trailer") or "aws-chunked" in (exchange.header("Content-Encoding") or ""):
            exchange.discard_chunks()
            refuse("MissingContentLength", 411)(exchange)
        else:
            pass_on(exchange)

    with TemporaryDirectory() as folder:
        authority = Authority(Path(folder) / "authority")
        with contextlib.closing(StoreProxy(moto, authority.context("localhost"))) as proxy:
            proxy.default = action
            with _environment("AWS_CA_BUNDLE", str(authority.certificate)):
                yield proxy.url


def equal_parts(moto: str) -> AbstractContextManager[str]:
    """All parts but the last must have one size, and the last no more, or the completion fails. Cloudflare R2."""
    sizes: dict[str, dict[int, int]] = collections.defaultdict(dict)

    def action(exchange: Exchange) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(exchange.path).query)
        if exchange.operation == "UploadPart":
            sizes[query["uploadId"][0]][int(query["partNumber"][0])] = exchange.size
        elif COMPLETE.fullmatch(exchange.operation):
            numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", exchange.body())]
            *others, last = [sizes[query["uploadId"][0]][number] for number in sorted(numbers)]
            if len(set(others)) > 1 or (others and last > others[0]):
                refuse("InvalidPart", 400, "All non-trailing parts must have the same length.")(exchange)
                return
        pass_on(exchange)

    return stand_in(moto, action)


def no_listing(moto: str) -> AbstractContextManager[str]:
    """ListMultipartUploads is not allowed, as to a role without s3:ListBucketMultipartUploads on any store."""

    def action(exchange: Exchange) -> None:
        (refuse("AccessDenied", 403) if exchange.operation == "ListMultipartUploads" else pass_on)(exchange)

    return stand_in(moto, action)


def throttling(moto: str) -> AbstractContextManager[str]:
    """Every other write is answered 503 SlowDown at first, and done when it is tried again. S3 does so under load."""
    tries: dict[tuple[str, str], int] = {}
    lock = threading.Lock()

    def action(exchange: Exchange) -> None:
        request = exchange.operation, exchange.path
        with lock:
            if request not in tries and WRITES.fullmatch(exchange.operation):
                tries[request] = REFUSALS if len(tries) % 2 else 0
            refused = tries.get(request, 0) > 0
            if refused:
                tries[request] -= 1
        (refuse("SlowDown", 503) if refused else pass_on)(exchange)

    return stand_in(moto, action)


def slow(moto: str) -> AbstractContextManager[str]:
    """What is sent arrives with 2 MB/s in all, as over a narrow line."""
    line = threading.Lock()
    step = 64 * 1024

    def action(exchange: Exchange) -> None:
        for taken in range(0, exchange.size, step):
            share = min((taken + step) / exchange.size, 1.0)
            with line:
                time.sleep(min(step, exchange.size - taken) / BYTES_PER_SECOND)
            exchange.take_body(share)
        pass_on(exchange)

    return stand_in(moto, action)


#: Every store that can be had: context managers that take the URL of a moto and yield that of the store.
STORES: dict[str, Callable[[str], AbstractContextManager[str]]] = {
    "seaweedfs": lambda moto: services.s3(),
    "moto": contextlib.nullcontext,
    "empty ETag": empty_etag,
    "conditions ignored": conditions_ignored,
    "conditions refused": conditions_refused,
    "Ceph RGW 16": ceph_rgw_16,
    "no checksums": no_checksums,
    "no trailers": no_trailers,
    "equal parts": equal_parts,
    "no listing": no_listing,
    "throttling": throttling,
    "slow": slow,
}


def _without_etag(exchange: Exchange) -> tuple[int, dict[str, str], bytes]:
    """The store's answer; that of a completion has an empty ETag."""
    status, headers, body = exchange.ask()
    if COMPLETE.fullmatch(exchange.operation):
        body = re.sub(rb"<ETag>.*?</ETag>", b"<ETag></ETag>", body)
        headers = {name: value for name, value in headers.items() if name.lower() != "etag"}
    return status, headers, body


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Have an environment variable for the length of the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
