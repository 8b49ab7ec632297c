"""Thousands of exports."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import content
from tests.exports_page.server import Airflow, relist


def test_five_thousand_exports(
    airflow: Airflow, client: Any, shop: str, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page within 5 s where nothing is known yet, and within 100 ms afterwards."""
    bucket = f"large-{int(time.time())}"
    client.create_bucket(Bucket=bucket)
    monkeypatch.setenv("AIRFLOW_VAR_ORDERS_EXPORT_BUCKET", bucket)
    body = content(client, shop, f"{keys[-1]}.manifest.json").replace(shop.encode(), bucket.encode())

    place = urlsplit(client.meta.endpoint_url)

    def put(worker: int) -> None:
        # boto3's own put_object takes five times as long.
        connection = http.client.HTTPConnection(place.hostname or "", place.port)
        for index in range(worker, 5000, 4):
            key = f"orders/orders-{date(2016, 1, 1) + timedelta(index):%Y%m%d}.csv.manifest.json"
            signed = client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key})
            connection.request("PUT", signed.removeprefix(client.meta.endpoint_url), body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    relist()
    session = airflow.session("viewer")
    times = []
    for _ in range(6):
        start = time.monotonic()
        answer = session.get(f"{airflow.url}/exports/list").json()
        times.append(time.monotonic() - start)
        assert (answer["total"], len(answer["rows"])) == (5000, 20)
    assert times[0] < 5
    assert min(times[1:]) < 0.1
    relist()
