"""What is usual in a series of exports, and which of them are unusual."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from statistics import median

from exports_page.catalogue import Entry

#: Exports that the charts show, and further ones before them that tell what is usual.
SHOWN, BEFORE = 60, 14

_SAME_WEEKDAYS = 6  # a daily window is compared with so many on the same weekday
_FEWEST = 3  # exports that are needed to tell what is usual
_ROWS_OFF = 0.4
_TIME_FACTOR, _TIME_SECONDS = 2.0, 10.0
_GAP_FACTOR = 1.5
_MOST_MISSING = 60  # missing nights that are shown per gap


@dataclass(frozen=True, slots=True)
class Point:
    """An export in the charts.

    :param at: its position on the time axis: the date in its key, or else when it was published.
    :param usual_rows: median of the exports that it is compared with; None if there are too few.
    :param unusual: what is unusual about it, in sentences.
    """

    entry: Entry
    at: datetime
    usual_rows: float | None
    unusual: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The exports of the charts, the oldest first.

    :param missing: times at which an export is missing.
    """

    points: tuple[Point, ...]
    missing: tuple[datetime, ...]


def history(entries: Sequence[Entry]) -> History:
    """What the charts show.

    :param entries: of one series, the newest first.
    """
    # Only the newest export of each date: runs by hand can make several.
    ordered = list({_at(entry): entry for entry in reversed(entries) if entry.problem is None}.items())
    ordered.sort()
    gaps = [(later[0] - earlier[0]).total_seconds() for earlier, later in itertools.pairwise(ordered)]
    usual_gap = median(gaps) if len(gaps) >= _FEWEST else None
    points, missing = [], []
    for index, (at, entry) in enumerate(ordered):
        nights = _missing(ordered[index - 1][0], at, usual_gap) if index else []
        usual = _usual_rows(entry, at, ordered[:index])
        before = [one.seconds for _, one in ordered[max(index - BEFORE, 0) : index] if one.seconds is not None]
        points.append(Point(entry, at, usual, tuple(_unusual(entry, usual, before, len(nights)))))
        if len(ordered) - index <= SHOWN:
            missing += nights
    shown = tuple(points[-SHOWN:])
    return History(shown, tuple(night for night in missing if night > shown[0].at) if shown else ())


def _at(entry: Entry) -> datetime:
    return datetime.combine(entry.day, time(), UTC) if entry.day else entry.at


def _usual_rows(entry: Entry, at: datetime, before: Sequence[tuple[datetime, Entry]]) -> float | None:
    """The median of exports before; for a daily window, of the same weekdays, since Sundays may have fewer orders."""
    if entry.daily:
        compared = [one.rows for when, one in before if when.weekday() == at.weekday()][-_SAME_WEEKDAYS:]
    else:
        compared = [one.rows for _, one in before][-BEFORE:]
    rows = [count for count in compared if count is not None]
    return median(rows) if len(rows) >= _FEWEST else None


def _missing(earlier: datetime, later: datetime, usual: float | None) -> list[datetime]:
    gap = (later - earlier).total_seconds()
    if not usual or gap <= _GAP_FACTOR * usual:
        return []
    number = min(max(round(gap / usual) - 1, 1), _MOST_MISSING)
    return [earlier + timedelta(seconds=gap * (one + 1) / (number + 1)) for one in range(number)]


def _unusual(entry: Entry, usual: float | None, seconds: Sequence[float], nights: int) -> Iterator[str]:
    rows = entry.rows or 0
    if rows == 0:
        yield "It has no rows."
    elif usual and abs(rows / usual - 1) > _ROWS_OFF:
        change = f"{abs(rows / usual - 1):.0%} {'more' if rows > usual else 'fewer'}"
        yield f"{rows:,} rows are {change} than usual ({usual:,.0f})."
    if len(seconds) >= _FEWEST and entry.seconds is not None:
        normal = median(seconds)
        if entry.seconds > max(_TIME_FACTOR * normal, normal + _TIME_SECONDS):
            yield f"It took {entry.seconds:,.0f} s instead of the usual {normal:,.1f} s."
    if nights:
        yield f"{nights} export{' is' if nights == 1 else 's are'} missing before it."
