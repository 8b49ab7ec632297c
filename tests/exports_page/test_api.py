"""The list, the details and who may see them, in Airflow's real app."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.exports_page.conftest import DAYS
from tests.exports_page.server import Airflow, forget, relist

HTML = "<img src=x onerror=alert(1)>"


def listed(airflow: Airflow, user: str = "viewer", **query: Any) -> Any:
    """The answer of /exports/list."""
    answer = airflow.session(user).get(f"{airflow.url}/exports/list", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


ROUTES = [
    ("GET", "list"),
    ("GET", "details?manifest=s3://a/b.manifest.json"),
    ("GET", "orders.csv"),
    ("GET", "files?manifest=s3://a/b.manifest.json"),
    ("POST", "verify"),
    ("GET", "static/exports.js"),
]


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_nothing_is_open(airflow: Airflow, method: str, route: str) -> None:
    """Without a credential 401, with a wrong one 403: the page's own files included."""
    url = f"{airflow.url}/exports/{route}"
    assert requests.request(method, url, json={}).status_code == 401
    assert requests.request(method, url, json={}, headers={"Authorization": "Bearer no"}).status_code == 403


def test_who_may_do_what(airflow: Airflow, shop: str, keys: list[str], table: int, fresh: None) -> None:
    """A viewer sees; who may trigger the DAG also downloads and verifies."""
    url = f"s3://{shop}/{keys[-1]}.manifest.json"
    for user, allowed in (("viewer", 403), ("user", 200), ("admin", 200)):
        session = airflow.session(user)
        assert session.get(f"{airflow.url}/exports/details", params={"manifest": url}).status_code == 200
        assert session.get(f"{airflow.url}/exports/files", params={"manifest": url}).status_code == allowed
        assert session.head(f"{airflow.url}/exports/files", params={"manifest": url}).status_code == allowed
        assert session.post(f"{airflow.url}/exports/verify", json={"manifest": url}).status_code == allowed
        assert session.get(f"{airflow.url}/exports/orders.csv").status_code == allowed
        found = listed(airflow, user)
        assert (found["live"] is not None) is (allowed == 200)
        assert {row["may_download"] for row in found["rows"]} == {allowed == 200}


def test_downloads_are_in_the_event_log(airflow: Airflow, table: int) -> None:
    """Who asked for what, granted or refused, whatever DAG the URL names."""
    asked = {"status": "paid", "dag_id": "another"}
    for user in ("viewer", "user"):
        airflow.session(user).get(f"{airflow.url}/exports/orders.csv", params=asked)
    answer = airflow.session("admin").get(
        f"{airflow.url}/api/v2/eventLogs", params={"event": "orders.csv", "order_by": "-when", "limit": 2}
    )
    events = {event["owner"]: event for event in answer.json()["event_logs"]}
    assert {event["dag_id"] for event in events.values()} == {"orders_export"}
    assert json.loads(events["viewer"]["extra"]) == {"what": "orders.csv", "answer": "refused"}
    assert json.loads(events["user"]["extra"]) == {"what": "orders.csv status=paid", "answer": "granted"}


def test_another_site_can_not_have_it_downloaded(airflow: Airflow) -> None:
    """A link on a foreign page starts no download."""
    session = airflow.session("user")
    for route in ("orders.csv", "files?manifest=s3://a/b.manifest.json"):
        answer = session.get(f"{airflow.url}/exports/{route}", headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403


def test_the_list(airflow: Airflow, keys: list[str], shop: str, fresh: None) -> None:
    """The newest first, paged; tiles, charts, missing nights and what is unusual, in words."""
    found = listed(airflow)
    assert [series["name"] for series in found["series"]] == ["orders/orders-*.csv"]
    assert (found["total"], found["pages"]) == (DAYS - 2, 2)
    files = [row["file"] for page in (1, 2) for row in listed(airflow, page=page)["rows"]]
    assert files == [key.rsplit("/", 1)[1] for key in reversed(keys)]
    assert found["tiles"]["rows"] == found["rows"][0]["rows"]
    assert len(found["missing"]) == found["tiles"]["missing"] == 2
    words = [sentence for point in found["points"] for sentence in point["unusual"]]
    assert len(words) == 4
    for part in ("fewer than usual", "It took 34 s", "1 export is missing before it."):
        assert any(part in sentence for sentence in words)


def test_each_hour_is_in_the_charts(airflow: Airflow, put: Callable[..., str], document: dict[str, Any]) -> None:
    """Also hours of one day, written as a run's id is; windows of an hour are compared with the same hours."""
    for hour in (*range(20), 21):
        window = {"from": f"2026-11-24T{hour:02}:00:00+00:00", "to": f"2026-11-24T{hour + 1:02}:00:00+00:00"}
        rows = document["rows"] if hour != 17 else 0
        files = [document["files"][0] | {"rows": rows}]
        body = json.dumps(document | {"window": window, "rows": rows, "files": files}).encode()
        put(f"hours/scheduled__{window['from']}/a.csv", body)
    found = listed(airflow, series="hours/scheduled__*/a.csv")
    assert [point["at"][11:16] for point in found["points"]] == [f"{hour:02}:00" for hour in (*range(20), 21)]
    unusual = {point["at"][11:13]: point["unusual"] for point in found["points"] if point["unusual"]}
    assert unusual == {"17": ["It has no rows."], "21": ["1 export is missing before it."]}
    assert (found["missing"], found["tiles"]["missing"]) == (["2026-11-24T20:00:00+00:00"], 1)
    assert found["tiles"]["compared"] == "the same hours"


def test_a_day_is_compared_with_its_weekday(
    airflow: Airflow, put: Callable[..., str], document: dict[str, Any]
) -> None:
    """Also one of 23 hours, when clocks change."""
    window = {"from": "2026-03-28T23:00:00+00:00", "to": "2026-03-29T22:00:00+00:00"}
    put("days/a-20260329.csv", json.dumps(document | {"window": window}).encode())
    assert listed(airflow, series="days/a-*.csv")["tiles"]["compared"] == "the same weekdays"


def test_a_dag_has_its_own(airflow: Airflow, fresh: None) -> None:
    """The tab shows the series of its DAG, and nothing where a DAG exports nothing."""
    assert listed(airflow, dag="orders_export")["selected"] == "orders/orders-*.csv"
    empty = listed(airflow, "admin", dag="orders_ingest")
    assert (empty["selected"], empty["series"], empty["live"]) == (None, [], None)


def test_an_entry_has_an_address(
    airflow: Airflow, shop: str, keys: list[str], put: Callable[..., str], document: dict[str, Any]
) -> None:
    """Whoever follows the operator's link sees the page with that export, also one that was published a moment ago."""
    old = f"s3://{shop}/{keys[0]}.manifest.json"
    found = listed(airflow, export=old)
    assert (found["page"], found["wanted"]) == (2, old)
    new = put("orders/manual/manual__2026-11-24T10:00:00+00:00/orders-20261124.csv", json.dumps(document).encode())
    time.sleep(2.1)
    found = listed(airflow, export=new)
    assert (found["selected"], found["wanted"]) == ("orders/manual/*/orders-*.csv", new)
    assert listed(airflow, export="s3://another/orders/orders-20261124.csv.manifest.json")["wanted"] is None


def test_a_manifest_that_was_replaced_after_the_list_says_so(
    airflow: Airflow, put: Callable[..., str], document: dict[str, Any]
) -> None:
    """The list of a minute ago has no longer its ETag: the row blames not only the store, and says how long to wait."""
    put("replaced/a-20261101.csv", json.dumps(document).encode())
    listed(airflow, series="orders/orders-*.csv")
    forget()
    put("replaced/a-20261101.csv", json.dumps(document, indent=2).encode())
    (row,) = listed(airflow, "admin", series="replaced/a-*.csv")["rows"]
    assert row["problem"].startswith("It was replaced since the list was made")


def hostile(document: dict[str, Any], shop: str) -> dict[str, tuple[bytes, str]]:
    """Manifests that nobody should trust, and what the page says of each."""

    def changed(**members: Any) -> bytes:
        return json.dumps(document | members).encode()

    foreign = json.loads(json.dumps(document).replace(f"s3://{shop}/", "s3://another/"))
    entry = {"url": "s3://x/y", "mandatory": True, "meta": {"content_length": 1}}
    return {
        "empty": (b"", "0 bytes"),
        "text": (b"<script>alert(1)</script>", "not JSON"),
        "truncated": (json.dumps(document).encode()[:-40], "not JSON"),
        "deep": (b"[" * 100_000, "not JSON"),
        "huge": (b" " * (2 * 2**20 + 1), "bytes"),
        "list": (b"[1]", "violates"),
        "rows": (changed(rows=-1), "violates"),
        "sum": (changed(rows=document["rows"] + 1), "do not add up"),
        "later": (changed(manifest_version=2), "version 2"),
        "foreign": (json.dumps(foreign).encode(), "only objects in the bucket"),
        "elsewhere": (changed(entries=[entry]), "its entries and its files differ"),
        "time": (changed(started_at="yesterday"), "not a time"),
        "many": (
            changed(rows=10**30, files=[document["files"][0] | {"rows": 10**30}]),
            "has impossible values",
        ),
    }


def test_hostile_manifests(airflow: Airflow, shop: str, put: Callable[..., str], document: dict[str, Any]) -> None:
    """One that can't be used is a row that says so, and the page works on; none can be had by its URL."""
    cases = hostile(document, shop)
    urls = {name: put(f"hostile/{name}-20261101.csv", body) for name, (body, _) in cases.items()}
    for name, (_, words) in cases.items():
        found = listed(airflow, series=f"hostile/{name}-*.csv")
        (row,) = found["rows"]
        assert words in row["problem"], name
        assert (row["may_download"], found["tiles"]) == (False, None)
    session = airflow.session("admin")
    for name, url in urls.items():
        answer = session.get(f"{airflow.url}/exports/details", params={"manifest": url})
        assert answer.status_code in ((403,) if name == "foreign" else (200,) if name == "many" else (422, 503)), name


def test_odd_manifests_are_shown(airflow: Airflow, put: Callable[..., str], document: dict[str, Any]) -> None:
    """Text of any kind stays text: HTML, halves of surrogate pairs, numbers that JSON has not."""
    odd = document | {
        "columns": [{"name": HTML, "type": "text'; DROP TABLE x; --"}, {"name": "b", "type": "\ud800" * 200}],
        "unique_key": None,
        "run": {"dag": HTML, "task": "\ud800", "run": "../../x", "try": 10**300},
        "older_transactions": {"waited_seconds": float("inf"), "unseen": "\ud800"},
        "export_id": "\ud800",
    }
    url = put("odd/odd-20261101.csv", json.dumps(odd).encode())
    session = airflow.session("admin")
    (row,) = listed(airflow, "admin", series="odd/odd-*.csv")["rows"]
    assert (row["dag"], row["run"]) == (HTML, "../../x")
    assert row["run_path"] == "dags/%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E/runs/..%2F..%2Fx"
    found = session.get(f"{airflow.url}/exports/details", params={"manifest": url}).json()
    assert found["columns"][0]["name"] == HTML
    assert "DROP TABLE" not in json.dumps(found["snippets"])


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("s3://another/orders/a.csv.manifest.json", 403),
        ("https://example.com/a.csv.manifest.json", 403),
        ("s3://{shop}/nothing.csv.manifest.json", 404),
        ("s3://{shop}/orders/../a.csv.manifest.json", 422),
        ("s3://{shop}/a.csv", 422),
        ("s3://{shop}/", 422),
        ("", 403),
    ],
)
def test_only_manifests_of_the_bucket(airflow: Airflow, shop: str, url: str, status: int) -> None:
    """Of another bucket nothing is read; each refusal is a sentence that names a way out."""
    asked = {"manifest": url.format(shop=shop)}
    session = airflow.session("admin")
    for route in ("details", "files"):
        answer = session.get(f"{airflow.url}/exports/{route}", params=asked)
        assert (answer.status_code, answer.json()["detail"].endswith(".")) == (status, True)
    assert session.post(f"{airflow.url}/exports/verify", json=asked).status_code == status


def test_a_connection_that_is_missing_is_not_guessed(
    airflow: Airflow, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow would take whatever AWS credentials the machine has."""
    for connection, user, route in (("EXPORTS_S3", "viewer", "list"), ("ORDERS_DB", "user", "orders.csv")):
        monkeypatch.delenv(f"AIRFLOW_CONN_{connection}")
        answer = airflow.session(user).get(f"{airflow.url}/exports/{route}")
        assert answer.status_code == 503, route
        assert "Create this connection" in answer.json()["detail"]


def test_a_bucket_with_too_many_objects(airflow: Airflow, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing ends somewhere; the page shows what it has by then, and says so."""
    assert listed(airflow)["truncated"] is False
    monkeypatch.setattr("exports_page.catalogue.MOST_OBJECTS", 6)
    relist()
    found = listed(airflow)
    assert (found["truncated"], found["total"]) == (True, 3)
    monkeypatch.undo()
    relist()


def test_a_store_that_is_down_leaves_what_is_known(
    airflow: Airflow, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page shows the previous list, and says so."""
    from exports_page.api import catalogue

    assert listed(airflow)["problem"] is None
    connection = json.loads(os.environ["AIRFLOW_CONN_EXPORTS_S3"])
    connection["extra"] |= {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"connect_timeout": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_EXPORTS_S3", json.dumps(connection))
    catalogue._until, catalogue._bucket = time.monotonic() - 1, None
    assert listed(airflow)["rows"], "the stale list comes at once"
    deadline = time.monotonic() + 15
    while not (found := listed(airflow))["problem"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found["rows"]
    monkeypatch.undo()
    relist()
