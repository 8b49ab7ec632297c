"""What is usual in a series of exports, and which of them are unusual."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from exports_page.catalogue import Entry

#: Exports that the charts show, and further ones before them that tell what is usual: three days of hours.
SHOWN, BEFORE = 60, 72

#: Exports that one is compared with; a window with fewer, on the same weekday or at the same hour.
COMPARED, _COMPARED_WINDOWS = 14, 6

_DAY = timedelta(hours=23)  # the shortest, when clocks change
_FEWEST = 3  # exports that are needed to tell what is usual
_ROWS_OFF = 0.4
_TIME_FACTOR, _TIME_SECONDS = 2.0, 10.0
_GAP_FACTOR = 1.5
_MOST_MISSING = 168  # drawn per gap: a week of hours


@dataclass(frozen=True, slots=True)
class Point:
    """An export in the charts.

    :param at: its position on the time axis: date and time in its key, or else when it was published.
    :param missing: number of exports that are missing before it.
    :param usual_rows: median of the exports that it is compared with; None if there are too few.
    :param unusual: what is unusual about it, in sentences.
    """

    entry: Entry
    at: datetime
    missing: int
    usual_rows: float | None
    unusual: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The exports of the charts, the oldest first.

    :param missing: times at which an export is missing, at most `_MOST_MISSING` of each gap.
    """

    points: tuple[Point, ...]
    missing: tuple[datetime, ...]


def history(entries: Sequence[Entry]) -> History:
    """What the charts show.

    :param entries: of one series, the newest first.
    """
    # Only the newest export of each moment: runs by hand can make several.
    ordered = list({_at(entry): entry for entry in reversed(entries) if entry.problem is None}.items())
    ordered.sort()
    gaps = [(later[0] - earlier[0]).total_seconds() for earlier, later in itertools.pairwise(ordered)]
    usual_gap = median(gaps) if len(gaps) >= _FEWEST else None
    points, times = [], []
    for index, (at, entry) in enumerate(ordered):
        missing = _missing(gaps[index - 1], usual_gap) if index else 0
        usual = _usual_rows(entry, at, ordered[:index])
        before = [one.seconds for _, one in ordered[max(index - COMPARED, 0) : index] if one.seconds is not None]
        points.append(Point(entry, at, missing, usual, tuple(_unusual(entry, usual, before, missing))))
        if missing and len(ordered) - index < SHOWN:
            times += _spread(ordered[index - 1][0], at, min(missing, _MOST_MISSING))
    return History(tuple(points[-SHOWN:]), tuple(times))


def _at(entry: Entry) -> datetime:
    return entry.moment or entry.at


def compared(entry: Entry, before: int) -> str:
    """The exports that an export is compared with, in words; `before` is their number without a window."""
    if entry.window is None:
        return f"the last {before}"
    return "the same weekdays" if entry.window >= _DAY else "the same hours"


def _usual_rows(entry: Entry, at: datetime, before: Sequence[tuple[datetime, Entry]]) -> float | None:
    """The median of exports before; for windows, of those like it, since Sundays and nights may have fewer orders."""
    if entry.window is None:
        like = [one.rows for _, one in before][-COMPARED:]
    elif entry.window >= _DAY:
        like = [one.rows for when, one in before if when.weekday() == at.weekday()][-_COMPARED_WINDOWS:]
    else:
        like = [one.rows for when, one in before if when.hour == at.hour][-_COMPARED_WINDOWS:]
    rows = [count for count in like if count is not None]
    return median(rows) if len(rows) >= _FEWEST else None


def _missing(gap: float, usual: float | None) -> int:
    return max(round(gap / usual) - 1, 1) if usual and gap > _GAP_FACTOR * usual else 0


def _spread(earlier: datetime, later: datetime, number: int) -> list[datetime]:
    return [earlier + (later - earlier) * (one + 1) / (number + 1) for one in range(number)]


def _unusual(entry: Entry, usual: float | None, seconds: Sequence[float], missing: int) -> Iterator[str]:
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
    if missing:
        yield f"{missing:,} export{' is' if missing == 1 else 's are'} missing before it."
