"""Which exports belong together: the name of a series is the key with * for dates and times."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

from streaming_export.s3.objects import ObjectInfo

_SUFFIX = ".manifest.json"

# A date as in 2026-11-24 or 20261124, with the time that may follow; after its offset, a run's id can have a suffix.
_TIME = r"T(?:[.:+_-]?\d++)++Z?(?:(?<=[+-]\d\d:\d\d)_\w+)?"
_DATE = re.compile(rf"(?<!\d)(\d{{4}})-?([01]\d)-?([0-3]\d)(?!\d)({_TIME})?")

# What is read of such a time: T02, T0200, T02:00:00.5, T02-00-00+00-00.
_CLOCK = re.compile(r"T(\d\d)(?:([.:_-]?)(\d\d)(?:\2(\d\d)(?:\.\d+)?)?)?(?!\d)(?:([+-])(\d\d)[:_-]?(\d\d))?")

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
    :param moment: the last date in its key, with its time, if there is one.
    """

    key: str
    url: str
    etag: str
    modified: datetime
    series: str
    moment: datetime | None


def listed(item: ObjectInfo, url: str) -> Listed | None:
    """An object as a manifest; None if it is not one.

    :param url: of the object.
    """
    key = item.key
    if not key.endswith(_SUFFIX):
        return None
    return Listed(key, url, item.etag, item.modified, series_of(key), moment_of(key))


def series_of(key: str) -> str:
    """The series of an export, by the key of its file or of its manifest."""
    return _DATE.sub("*", _BY_HAND.sub("*", key.removesuffix(_SUFFIX)))


def moment_of(key: str) -> datetime | None:
    """The last date in a key, with the time that follows it, or else its midnight. A time without an offset is UTC."""
    for year, month, day, time in reversed(_DATE.findall(key)):
        try:
            midnight = datetime(int(year), int(month), int(day), tzinfo=UTC)
        except ValueError:
            continue
        return _at(midnight, time)
    return None


def _at(midnight: datetime, time: str) -> datetime:
    """A time of a day; its midnight if the time is none, as T99."""
    if found := _CLOCK.match(time):
        hour, _, minute, second, sign, hours, minutes = found.groups(default="0")
        offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
        with suppress(ValueError, OverflowError):
            zone = timezone(offset)
            return midnight.replace(hour=int(hour), minute=int(minute), second=int(second), tzinfo=zone).astimezone(UTC)
    return midnight


def by_series(found: Iterable[Listed]) -> dict[str, tuple[Listed, ...]]:
    """The manifests of each series, the newest first: by the moment in the key, then by when they were written."""
    groups: dict[str, list[Listed]] = {}
    for one in found:
        groups.setdefault(one.series, []).append(one)
    return {
        name: tuple(sorted(group, key=lambda one: (one.moment or one.modified, one.modified), reverse=True))
        for name, group in groups.items()
    }
