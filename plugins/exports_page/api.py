"""The routes of the page and of published files; docs/page.md describes them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.security import get_user
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from exports_page import view
from exports_page.access import Access, named
from exports_page.catalogue import Catalogue, read
from exports_page.connections import exports_bucket
from exports_page.download import Download, Slots, too_many
from exports_page.published import OutOfRange, PublishedFile, etag, part_of, verify
from streaming_export import (
    Bucket,
    ExportCancelled,
    ExportError,
    ForeignBucket,
    InvalidArgument,
    ManifestError,
    ManifestMissing,
    ObjectChanged,
    check_key,
)
from streaming_export.manifest_reader import Manifest

Result = TypeVar("Result")

#: Concurrent requests that one process allows.
file_slots, verify_slots = Slots(8), Slots(2)

catalogue = Catalogue(exports_bucket)

_STATIC = {path.name: path for path in (Path(__file__).parent / "static").iterdir()}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

# Threads of our own: requests that wait for the store must not take Airflow's.
_threads = anyio.CapacityLimiter(12)

app = FastAPI(dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None)

#: The download of a table as it is now, if some module adds one: who may trigger its DAG, and what to choose from.
app.state.live = None

User = Annotated[BaseUser, Depends(get_user)]


def refused(exc: Exception) -> Response:
    """The answer to a request that failed: a sentence that says why, and one that says what to do."""
    status = 500
    if isinstance(exc, HTTPException):
        return JSONResponse({"detail": exc.detail}, exc.status_code)
    if isinstance(exc, AirflowNotFoundException):
        return JSONResponse({"detail": f"{exc}. Create this connection in Airflow."}, 503)
    if not isinstance(exc, ExportError):
        return JSONResponse({"detail": f"{type(exc).__name__}: the api-server's log says more."}, status)
    for kind, found in {
        ObjectChanged: 409,
        ManifestMissing: 404,
        ForeignBucket: 403,
        ManifestError: 422,
        InvalidArgument: 422,
        ExportError: 503,
    }.items():
        if isinstance(exc, kind):
            status = found
            break
    return JSONResponse({"detail": " ".join(filter(None, (exc.failed, exc.remedy)))}, status)


@app.exception_handler(ExportError)
@app.exception_handler(AirflowNotFoundException)
async def _refuse(_: Request, exc: Exception) -> Response:
    return refused(exc)


def same_site(request: Request) -> None:
    """Refuse requests that another site makes a browser send."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise HTTPException(403, "Another site asked for this. Open it from Airflow.")


@app.get("/static/{name}")
async def static(name: str) -> Response:
    """The page's static files. A route, because a mount would need no login."""
    if name not in _STATIC:
        raise HTTPException(404, "There is no such file.")
    path = _STATIC[name]
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})


@app.get("/list")
async def list_exports(
    user: User,
    series: str | None = None,
    dag: str | None = None,
    export: str | None = None,
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """What the page shows of a series; with `export`, of the series of that export."""
    return await threaded(view.page, catalogue, Access(user), series, dag, export, page, app.state.live)


@app.get("/details")
async def details(user: User, manifest: str, version: str | None = None) -> Response:
    """What the entry of an export shows. With `version`, only if that is still the ETag of its manifest."""

    def answer() -> Response:
        bucket, access = catalogue.bucket(), Access(user)
        return view.details(_seen(bucket, manifest, access, version), bucket, access)

    return await threaded(answer)


@app.api_route("/files", methods=["GET", "HEAD"], dependencies=[Depends(same_site)])
async def files(
    request: Request,
    user: User,
    manifest: str,
    file: Annotated[int, Query(ge=0)] = 0,
    sha256: str | None = None,
    version: str | None = None,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """A published file. With `sha256`, only if the manifest still has this checksum; a range needs it, or If-Range."""

    def prepare() -> Response:
        bucket, access = catalogue.bucket(), Access(user)
        found = _seen(bucket, manifest, access, version)
        dag = named(found.run, "dag")
        if file >= len(found.files):
            raise HTTPException(404, f"This export has {len(found.files)} files.")
        one = found.files[file]
        allowed = access.may_download(dag)
        if request.method != "HEAD" or not allowed:
            access.require(allowed, "exports.files", dag, bucket.url(one.key))
        if sha256 is not None and sha256 != one.sha256:
            raise ObjectChanged(f"{bucket.url(one.key)} was replaced by a newer export.", "Reload the page.")
        asked = range_ if request.method == "GET" else None
        try:
            part = part_of(one, asked, if_range or (etag(one) if sha256 else None))
        except OutOfRange:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{one.bytes}", "ETag": etag(one)})
        reading = PublishedFile(bucket, found, one, part)
        if request.method == "HEAD":
            with contextlib.closing(reading):
                return Response(headers=reading.open()[1])
        return Download(reading, file_slots, bucket.url(one.key), refused)

    return await threaded(prepare)


@app.post("/verify", dependencies=[Depends(same_site)])
async def verify_export(
    request: Request, user: User, manifest: Annotated[str, Body()], version: Annotated[str | None, Body()] = None
) -> Response:
    """Hash the files of an export as they are in the store now."""
    stop = threading.Event()

    def answer() -> Response:
        bucket, access = catalogue.bucket(), Access(user)
        found = _seen(bucket, manifest, access, version)
        dag = named(found.run, "dag")
        access.require(access.may_download(dag), "exports.verify", dag, found.url)
        try:
            done = verify(bucket, found, stop)
        except ExportCancelled:
            return Response(status_code=499)
        size = f"{done.bytes:,} bytes in {done.files} file{'' if done.files == 1 else 's'}"
        sentence = f"{size} have the SHA-256 of the manifest, read in {done.seconds:.1f} s."
        return JSONResponse({"verified": True, "detail": sentence})

    if not verify_slots.free:
        return too_many(verify_slots)
    verify_slots.take()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_stop_when_gone, request, stop)
            try:
                result = await threaded(answer)
            except Exception as exc:  # caught here, or the task group would raise an exception group
                result = refused(exc)
            group.cancel_scope.cancel()
    finally:
        verify_slots.give()
    return result


async def _stop_when_gone(request: Request, stop: threading.Event) -> None:
    try:
        while not await request.is_disconnected():
            await anyio.sleep(0.5)
    finally:
        stop.set()


def _seen(bucket: Bucket, url: str, access: Access, version: str | None) -> Manifest:
    """The manifest at a URL, if the user may see the runs of its DAG.

    :param version: ETag that it must have, if not empty: beside it, the page shows the figures of that export.
    :raises ForeignBucket: if it is in another bucket.
    :raises ManifestError: if it can't be used.
    :raises HTTPException: 403, if the user may not see them.
    """
    prefix = bucket.url("")
    if not url.startswith(prefix):
        raise ForeignBucket(
            f"{url[:200]} is not in the bucket {bucket.name}, which this page shows.",
            "The Airflow Variable orders_export_bucket names that bucket.",
        )
    key = url.removeprefix(prefix)
    check_key("manifest", key)
    if not key.endswith(".manifest.json"):
        raise InvalidArgument("manifest", url[:200], "s3://BUCKET/KEY.manifest.json")
    found = read(bucket, key, version or None)
    if not access.may_see(named(found.run, "dag")):
        raise HTTPException(403, "This export can only be seen with permission to see the runs of its DAG.")
    return found


async def threaded(call: Callable[..., Result], *arguments: Any) -> Result:
    """What a call gives, in a thread of this app's."""
    return await anyio.to_thread.run_sync(functools.partial(call, *arguments), limiter=_threads)
