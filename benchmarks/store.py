"""An S3 server that takes almost no CPU from its clients.

    python -m benchmarks.store FOLDER [--discard]

It stands for a store on other machines: as much of S3 as an upload needs, no signatures and no
checksums, parts kept as they came in FOLDER (or, with --discard, counted and thrown away). It listens
on a port that the kernel chooses, of loopback unless told otherwise, and prints its URL and process
id. Python's own S3 servers would be the slowest link of every pipeline that is measured here.
"""

import argparse
import io
import itertools
import os
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import escape

# Fits the second-level cache of a core, so that a copied byte is still there when it is written.
BUFFER_BYTES = 256 * 1024
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True)
class Part:
    """Bytes of an object, in their own file, or only their number."""

    size: int
    path: Path | None


@dataclass
class Upload:
    """A multipart upload that is not completed."""

    bucket: str
    key: str
    parts: dict[int, Part] = field(default_factory=dict)


class Store:
    """Objects and unfinished uploads. An object is its parts in order: completing copies nothing."""

    def __init__(self, folder: Path, discard: bool) -> None:
        self.folder = None if discard else folder
        self.objects: dict[tuple[str, str], list[Part]] = {}
        self.uploads: dict[str, Upload] = {}
        self.lock = threading.Lock()
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """A number that was not used before, for a file, an upload or an ETag."""
        return next(self._numbers)

    def put(self, bucket: str, key: str, parts: list[Part]) -> None:
        """Make an object visible, instead of an earlier one."""
        with self.lock:
            old = self.objects.pop((bucket, key), [])
            self.objects[bucket, key] = parts
        remove(old)

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object, if there is one."""
        with self.lock:
            old = self.objects.pop((bucket, key), [])
        remove(old)


def remove(parts: list[Part]) -> None:
    """Remove the files of parts that no object uses any more."""
    for part in parts:
        if part.path:
            part.path.unlink()


class Dechunked(io.RawIOBase):
    """The content of a chunked body: of HTTP's own transfer coding, and of S3's `aws-chunked`."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._left = 0  # of the chunk that is being read
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left and not self._ended:
            self._next_chunk()
        view = memoryview(buffer)[: self._left]
        count = self._source.readinto(view) if view else 0  # type: ignore[attr-defined]
        self._left -= count
        if count and not self._left:
            self._source.readline()
        return int(count)

    def _next_chunk(self) -> None:
        self._left = int(self._source.readline().split(b";")[0], 16)
        if not self._left:
            self._ended = True
            while self._source.readline().strip():  # trailers
                pass


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 64 * 1024
    store: Store

    def setup(self) -> None:
        super().setup()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_PUT(self) -> None:
        bucket, key, query = self._target()
        if not key:
            self._answer(200)
            return
        part = self._receive()
        if "uploadId" not in query:
            self.store.put(bucket, key, [part])
        elif upload := self.store.uploads.get(query["uploadId"]):
            upload.parts[int(query["partNumber"])] = part
        else:
            remove([part])
            self._refuse(404, "NoSuchUpload")
            return
        self._answer(200, ETag=f'"{self.store.number():032x}"')

    def do_POST(self) -> None:
        bucket, key, query = self._target()
        self._receive(keep=False)
        if "uploads" in query:
            upload_id = f"upload-{self.store.number()}"
            self.store.uploads[upload_id] = Upload(bucket, key)
            self._answer(200, xml("InitiateMultipartUploadResult", Bucket=bucket, Key=key, UploadId=upload_id))
        elif upload := self.store.uploads.pop(query.get("uploadId", ""), None):
            self.store.put(bucket, key, [part for _, part in sorted(upload.parts.items())])
            etag = f'"{self.store.number():032x}-{len(upload.parts)}"'
            self._answer(200, xml("CompleteMultipartUploadResult", Bucket=bucket, Key=key, ETag=etag))
        else:
            self._refuse(404, "NoSuchUpload")

    def do_DELETE(self) -> None:
        bucket, key, query = self._target()
        if "uploadId" in query:
            upload = self.store.uploads.pop(query["uploadId"], None)
            remove(list(upload.parts.values()) if upload else [])
        else:
            self.store.delete(bucket, key)
        self._answer(204)

    def do_HEAD(self) -> None:
        bucket, key, _ = self._target()
        parts = self.store.objects.get((bucket, key))
        if parts is not None:
            self._answer(200, length=sum(part.size for part in parts), ETag='"etag"')
        else:
            self._answer(404 if key else 200)

    def do_GET(self) -> None:
        bucket, key, query = self._target()
        parts = self.store.objects.get((bucket, key))
        if not key:
            self._list(bucket, query)
        elif parts is None or self.store.folder is None:
            self._refuse(404, "NoSuchKey")
        else:
            self._answer(200, length=sum(part.size for part in parts), ETag='"etag"')
            self._send(parts)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        """All objects of a bucket; no unfinished uploads, which the contenders do not need."""
        if "uploads" in query:
            self._answer(200, xml("ListMultipartUploadsResult", Bucket=bucket, IsTruncated="false"))
            return
        with self.store.lock:
            found = sorted((key, parts) for (name, key), parts in self.store.objects.items() if name == bucket)
        objects = [
            {"Key": key, "Size": str(sum(part.size for part in parts)), "LastModified": "2000-01-01T00:00:00.000Z"}
            for key, parts in found
            if key.startswith(query.get("prefix", ""))
        ]
        self._answer(200, xml("ListBucketResult", objects, Name=bucket, IsTruncated="false"))

    def _target(self) -> tuple[str, str, dict[str, str]]:
        """Bucket, key and query of the request's URL, which names the bucket in its path."""
        url = urllib.parse.urlsplit(self.path)
        bucket, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
        return bucket, key, dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))

    def _receive(self, keep: bool = True) -> Part:
        """Read the request's body, into a file if the store keeps it."""
        size = 0
        with ExitStack() as stack:
            path = self.store.folder / f"{self.store.number()}" if keep and self.store.folder else None
            file = stack.enter_context(path.open("wb", buffering=0)) if path else None
            for data in self._body():
                size += len(data)
                while file and data:  # a file without a buffer may take less than it is given
                    data = data[file.write(data) :]
        return Part(size, path)

    def _body(self) -> Iterator[memoryview]:
        source: Any = self.rfile
        left = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            source, left = io.BufferedReader(Dechunked(source), self.rbufsize), 1 << 62
        if self.headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            source, left = Dechunked(source), 1 << 62
        while left and (count := source.readinto(self._buffer[: min(left, BUFFER_BYTES)])):
            left -= count
            yield self._buffer[:count]

    def _send(self, parts: list[Part]) -> None:
        for part in parts:
            assert part.path is not None
            with part.path.open("rb") as file:
                self.connection.sendfile(file)

    def _refuse(self, status: int, code: str) -> None:
        # Without the namespace, as S3's: botocore finds no code otherwise.
        body = f"<Error><Code>{code}</Code><Message>refused by the benchmark's store</Message></Error>"
        self._answer(status, body.encode())

    def _answer(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Last-Modified", self.date_time_string())
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def xml(root: str, objects: Sequence[Mapping[str, str]] = (), **texts: str) -> bytes:
    """An answer of S3: elements with a text each, and the objects of a list."""
    elements = _elements(texts) + "".join(f"<Contents>{_elements(found)}</Contents>" for found in objects)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{NAMESPACE}">{elements}</{root}>'.encode()


def _elements(texts: Mapping[str, str]) -> str:
    return "".join(f"<{name}>{escape(text)}</{name}>" for name, text in texts.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("folder", type=Path, help="where objects are kept")
    parser.add_argument("--discard", action="store_true", help="keep nothing")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    Handler.store = Store(arguments.folder, arguments.discard)
    server = ThreadingHTTPServer((arguments.host, 0), Handler)
    print(f"http://{arguments.host}:{server.server_address[1]} {os.getpid()}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
