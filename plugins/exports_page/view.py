"""What the page shows, as JSON: numbers and times, which the browser formats."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from datetime import datetime
from statistics import median
from typing import Any
from urllib.parse import quote

from starlette.responses import JSONResponse

from exports_page.access import Access, named
from exports_page.catalogue import Catalogue, Entry, Listing
from exports_page.history import BEFORE, COMPARED, SHOWN, History, compared, history
from exports_page.series import Listed, series_of
from exports_page.snippets import snippets
from streaming_export import Bucket
from streaming_export.manifest_reader import Manifest

PAGE_ROWS = 20

_LOOKED_AT = 3  # manifests read per series to find its DAG, since the newest may not be readable
_LONGEST_TYPE = 100
_MOST_FILES = 100


class Answer(JSONResponse):
    """JSON in ASCII: a manifest may contain half of a surrogate pair, which UTF-8 can't encode."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":"), default=_text).encode()


def page(
    catalogue: Catalogue,
    access: Access,
    series: str | None,
    dag: str | None,
    export: str | None,
    number: int,
    live: dict[str, Any] | None,
) -> Answer:
    """One page of a series, with its tiles and charts.

    :param series: its name; by default the one with the newest export.
    :param dag: only series of this DAG.
    :param export: URL of a manifest; the page that contains it is then shown.
    :param number: of the page, from 1.
    :param live: the download of a table as it is now, if there is one.
    """
    listing = catalogue.listing()
    if export is not None and _find(listing, export) is None:
        listing = catalogue.listing(newer_than=time.monotonic() - 2)  # it may have been published just now
    shown = _visible(catalogue, listing, access, dag)
    wanted = _find(listing, export) if export is not None else None
    chosen = wanted.series if wanted else series
    if chosen not in shown:
        chosen = next(iter(shown), None)
        wanted = None
    answer: dict[str, Any] = {
        "listed_at": listing.at,
        "problem": catalogue.problem,
        "truncated": listing.truncated,
        "series": [{"name": name, "exports": len(listing.series[name]), "dag": dag} for name, dag in shown.items()],
        "selected": chosen,
        "live": live if live and access.may_download(live["dag"]) and dag in (None, live["dag"]) else None,
    }
    if chosen is not None:
        answer |= _series(catalogue, access, listing.series[chosen], wanted, number)
    return Answer(answer)


def _series(
    catalogue: Catalogue, access: Access, group: Sequence[Listed], wanted: Listed | None, number: int
) -> dict[str, Any]:
    """The rows of one page of a series, and the tiles and charts of its latest exports.

    :param wanted: the export whose page is shown; None: page `number`.
    """
    pages = max(math.ceil(len(group) / PAGE_ROWS), 1)
    number = group.index(wanted) // PAGE_ROWS + 1 if wanted else min(number, pages)
    rows = group[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]
    latest = group[: SHOWN + BEFORE]
    read = dict(zip([*rows, *latest], catalogue.entries([*rows, *latest]), strict=True))
    past = history([read[one] for one in latest if access.may_see(read[one].dag) and not read[one].problem])
    unusual = {point.entry.url: point.unusual for point in past.points}
    return {
        "page": number,
        "pages": pages,
        "total": len(group),
        "wanted": wanted.url if wanted else None,
        "rows": [_row(read[one], access, unusual.get(read[one].url, ())) for one in rows],
        "tiles": _tiles(past),
        "points": [_point(point) for point in past.points],
        "missing": past.missing,
        "unread": sum(read[one].problem is not None for one in latest),
    }


def details(manifest: Manifest, bucket: Bucket, access: Access) -> Answer:
    """Everything that a manifest says about an export, and code that loads it."""
    dropped = [(name, mask) for name, mask in manifest.masked.items() if mask == "drop"]
    snapshot, older = manifest.snapshot, manifest.older_transactions
    checks = [
        (True, "The database counted the same rows in the same snapshot.")
        if manifest.rows_verified
        else (False, "The database did not count the rows: verify_rows was off, or the query is volatile."),
        (True, "The store had what was sent: the same size, and the same checksum if it reports one."),
    ]
    if older and older["unseen"]:
        checks.append((False, f"Some older transactions could not be seen: {str(older['unseen'])[:300]}"))
    elif older:
        waited = older["waited_seconds"] if math.isfinite(older["waited_seconds"]) else 0.0
        checks.append((True, f"No transaction that began before the window's end was running (waited {waited:.1f} s)."))
    return Answer(
        {
            "url": manifest.url,
            "columns": [
                {"name": name, "type": kind[:_LONGEST_TYPE], "mask": manifest.masked.get(name)}
                for name, kind in manifest.columns
            ]
            + [{"name": name[:_LONGEST_TYPE], "type": "", "mask": mask} for name, mask in dropped],
            "unique_key": manifest.unique_key,
            "window": list(manifest.window) if manifest.window else None,
            "snapshot": {
                "taken_at": manifest.taken_at,
                "wal_position": str(snapshot["wal_position"] or "")[:_LONGEST_TYPE],
                "server": f"PostgreSQL {snapshot['server_version'][:_LONGEST_TYPE]}"
                f"{', standby' if snapshot['standby'] else ''}",
            },
            "query_sha256": manifest.query_sha256,
            "spreadsheet_safe": manifest.spreadsheet_safe,
            "compression": manifest.compression,
            "export_id": (manifest.export_id or "")[:_LONGEST_TYPE],
            "checks": [{"passed": passed, "text": text} for passed, text in checks],
            "files": [
                {"name": file.key.rsplit("/", 1)[-1], "rows": file.rows, "bytes": file.bytes, "sha256": file.sha256}
                for file in manifest.files[:_MOST_FILES]
            ],
            "more_files": max(len(manifest.files) - _MOST_FILES, 0),
            "may_download": access.may_download(named(manifest.run, "dag")),
            "console": _console(bucket, manifest),
            "snippets": snippets(manifest, bucket.client.meta.endpoint_url),
        }
    )


def _visible(catalogue: Catalogue, listing: Listing, access: Access, dag: str | None) -> dict[str, str | None]:
    """The series that the user may see, with their DAGs, the one with the newest export first."""
    names = sorted(listing.series, key=lambda name: max(one.modified for one in listing.series[name]), reverse=True)
    looked_at = [one for name in names for one in listing.series[name][:_LOOKED_AT]]
    read = dict(zip(looked_at, catalogue.entries(looked_at), strict=True))
    found = {
        name: next((read[one].dag for one in listing.series[name][:_LOOKED_AT] if not read[one].problem), None)
        for name in names
    }
    return {name: its for name, its in found.items() if (dag is None or its == dag) and access.may_see(its)}


def _find(listing: Listing, url: str) -> Listed | None:
    key = url.split("/", 3)[-1]
    return next((one for one in listing.series.get(series_of(key), ()) if one.url == url), None)


def _row(entry: Entry, access: Access, unusual: Sequence[str]) -> dict[str, Any]:
    if not entry.problem and not access.may_see(entry.dag):
        return {"hidden": True, "at": entry.at}
    return {
        "url": entry.url,
        "version": entry.etag,
        "file": entry.file,
        "at": entry.at,
        "problem": entry.problem,
        "rows": entry.rows,
        "bytes": entry.bytes,
        "seconds": entry.seconds,
        "verified": entry.verified,
        "files": entry.files,
        "dag": entry.dag,
        "run": entry.run,
        "run_path": f"dags/{quote(entry.dag, safe='')}/runs/{quote(entry.run, safe='')}"
        if entry.dag and entry.run
        else None,
        "unusual": unusual,
        "may_download": entry.problem is None and access.may_download(entry.dag),
    }


def _point(point: Any) -> dict[str, Any]:
    entry = point.entry
    return {
        "url": entry.url,
        "at": point.at,
        "rows": entry.rows,
        "bytes": entry.bytes,
        "seconds": entry.seconds,
        "unusual": point.unusual,
    }


def _tiles(past: History) -> dict[str, Any] | None:
    if not past.points:
        return None
    newest = past.points[-1]
    before = [point.entry for point in past.points[-COMPARED - 1 : -1]]
    return {
        "newest": newest.entry.at,
        "file": newest.entry.file,
        "rows": newest.entry.rows,
        "usual_rows": newest.usual_rows,
        "compared": compared(newest.entry, len(before)),
        "bytes": newest.entry.bytes,
        "usual_bytes": median(entry.bytes or 0 for entry in before) if before else None,
        "seconds": newest.entry.seconds,
        "unusual": sum(bool(point.unusual) for point in past.points),
        "shown": len(past.points),
        "missing": sum(point.missing for point in past.points[1:]),
    }


def _console(bucket: Bucket, manifest: Manifest) -> str | None:
    """URL of the object in the AWS console; None for other stores."""
    host = (bucket.client.meta.endpoint_url or "").split("//")[-1].split("/")[0].split(":")[0]
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return None
    return f"https://console.aws.amazon.com/s3/object/{bucket.name}?prefix={quote(manifest.files[0].key)}"


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value).__name__)
