"""How an attempt ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    :param published: whether it said that it had published.
    :param told: what it said instead; None if it was killed and could not say anything.
    :param kind: name of the exception, or "published" or "killed".
    """

    published: bool
    told: str | None
    kind: str
