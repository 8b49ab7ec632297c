"""Which exports belong together: the name of a series is the key with * for dates and times."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from streaming_export.s3.objects import ObjectInfo

_SUFFIX = ".manifest.json"

# A date as in 2026-11-24 or 20261124, with the time that may follow; after its offset, a run's id can have a suffix.
_TIME = r"T(?:[.:+_-]?\d++)++Z?(?:(?<=[+-]\d\d:\d\d)_\w+)?"
_DATE = re.compile(rf"(?<!\d)(\d{{4}})-?([01]\d)-?([0-3]\d)(?!\d)(?:{_TIME})?")

# Runs by hand write to a folder named by the run's id (orders/places.py); all of them are one series.
_BY_HAND = re.compile(r"(?<=/manual/)[^/]+(?=/)")


@dataclass(frozen=True, slots=True)
class Listed:
    """A manifest as the bucket lists it.

    :param key: of the manifest.
    :param url: of the manifest.
    :param etag: without quotes.
    :param modified: when it was written.
    :param series: the series of its export.
    :param day: the last date in its key, if there is one.
    """

    key: str
    url: str
    etag: str
    modified: datetime
    series: str
    day: date | None


def listed(item: ObjectInfo, url: str) -> Listed | None:
    """An object as a manifest; None if it is not one.

    :param url: of the object.
    """
    key = item.key
    if not key.endswith(_SUFFIX):
        return None
    return Listed(key, url, item.etag, item.modified, series_of(key), day_of(key))


def series_of(key: str) -> str:
    """The series of an export, by the key of its file or of its manifest."""
    return _DATE.sub("*", _BY_HAND.sub("*", key.removesuffix(_SUFFIX)))


def day_of(key: str) -> date | None:
    """The last date in a key."""
    for year, month, day in reversed(_DATE.findall(key)):
        try:
            return date(int(year), int(month), int(day))
        except ValueError:
            continue
    return None


def by_series(found: Iterable[Listed]) -> dict[str, tuple[Listed, ...]]:
    """The manifests of each series, the newest first: by the date in the key, then by when they were written."""
    groups: dict[str, list[Listed]] = {}
    for one in found:
        groups.setdefault(one.series, []).append(one)
    return {
        name: tuple(sorted(group, key=lambda one: (one.day or one.modified.date(), one.modified), reverse=True))
        for name, group in groups.items()
    }
