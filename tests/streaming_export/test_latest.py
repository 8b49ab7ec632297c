"""The pointer to the newest export: it only moves forward, whoever else moves it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streaming_export import InvalidArgument, move_pointer, published_by
from tests.conftest import content

KEY = "orders/latest.json"
NOON = datetime(2026, 11, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Interrupted:
    """A client between whose reading and writing others do something, once."""

    def __init__(self, client: Any, others: Any) -> None:
        self._client = client
        self._others = [others]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        if self._others:
            self._others.pop()()
        return self._client.put_object(**arguments)


def named(client: Any, bucket: str) -> str:
    return str(json.loads(content(client, bucket, KEY))["manifest_url"])


def test_it_says_what_is_newest(client: Any, bucket: str) -> None:
    """The pointer is JSON with the URL of the manifest, the time of its snapshot, and what else it was given."""
    assert move_pointer(client, bucket, KEY, "s3://b/one", NOON, {"rows": 7})
    assert json.loads(content(client, bucket, KEY)) == {
        "manifest_url": "s3://b/one",
        "taken_at": "2026-11-05T12:00:00+00:00",
        "rows": 7,
    }


def test_it_moves_forward(client: Any, bucket: str) -> None:
    """An export of a later snapshot takes the pointer over, also where clocks have another offset."""
    move_pointer(client, bucket, KEY, "s3://b/one", NOON)
    later = datetime.fromisoformat("2026-11-05T11:30:00-01:00")
    assert move_pointer(client, bucket, KEY, "s3://b/two", later)
    assert named(client, bucket) == "s3://b/two"


def test_it_never_moves_back(client: Any, bucket: str) -> None:
    """An export of an earlier or the same snapshot leaves the pointer as it is, and that is no error."""
    move_pointer(client, bucket, KEY, "s3://b/two", NOON)
    assert not move_pointer(client, bucket, KEY, "s3://b/one", NOON - HOUR)
    assert not move_pointer(client, bucket, KEY, "s3://b/same", NOON)
    assert named(client, bucket) == "s3://b/two"


def test_a_newer_export_that_came_between_stays(client: Any, bucket: str) -> None:
    """Whoever loses the race to a later snapshot reads again and leaves the pointer to the winner."""
    move_pointer(client, bucket, KEY, "s3://b/one", NOON)
    slow = Interrupted(client, lambda: move_pointer(client, bucket, KEY, "s3://b/three", NOON + 2 * HOUR))
    assert not move_pointer(slow, bucket, KEY, "s3://b/two", NOON + HOUR)
    assert named(client, bucket) == "s3://b/three"


def test_an_older_export_that_came_between_is_overtaken(client: Any, bucket: str) -> None:
    """Whoever loses the race to an earlier snapshot reads again and moves the pointer on."""
    move_pointer(client, bucket, KEY, "s3://b/one", NOON)
    slow = Interrupted(client, lambda: move_pointer(client, bucket, KEY, "s3://b/two", NOON + HOUR))
    assert move_pointer(slow, bucket, KEY, "s3://b/three", NOON + 2 * HOUR)
    assert named(client, bucket) == "s3://b/three"


def test_two_that_make_it(client: Any, bucket: str) -> None:
    """Where there was no pointer, the later snapshot wins too."""
    slow = Interrupted(client, lambda: move_pointer(client, bucket, KEY, "s3://b/two", NOON + HOUR))
    assert not move_pointer(slow, bucket, KEY, "s3://b/one", NOON)
    assert named(client, bucket) == "s3://b/two"


def test_a_pointer_that_cannot_be_read_is_replaced(client: Any, bucket: str) -> None:
    """Rubbish under the pointer's key does not stop exports."""
    for rubbish in (b"{", b"[]", b'{"taken_at": "yesterday"}'):
        client.put_object(Bucket=bucket, Key=KEY, Body=rubbish)
        assert move_pointer(client, bucket, KEY, "s3://b/one", NOON)
        assert named(client, bucket) == "s3://b/one"


@pytest.mark.parametrize(
    ("argument", "value"), [("key", "a/../latest.json"), ("key", "/a.json"), ("key", "\ud800"), ("bucket", "a/b")]
)
def test_where_it_is_is_checked(client: Any, bucket: str, argument: str, value: str) -> None:
    """A key that leaves its prefix, or what is no bucket, is refused by its name, here and where it is asked for."""
    places = {"bucket": bucket, "key": KEY, argument: value}
    for ask in (
        lambda: move_pointer(client, manifest_url="s3://b/one", taken_at=NOON, **places),
        lambda: published_by(client, **places),
    ):
        with pytest.raises(InvalidArgument, match=f"^{argument}="):
            ask()
