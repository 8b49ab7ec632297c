"""Thousands of exports."""

from __future__ import annotations

import collections
import http.client
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import content
from tests.exports_page.server import Airflow, relist
from tests.streaming_export.store import record

EXPORTS = 2_100


def test_thousands_of_exports(
    airflow: Airflow, client: Any, shop: str, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is known yet the bucket is listed once, and only what is shown is read; then nothing is asked."""
    from exports_page.api import catalogue

    bucket = f"large-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    monkeypatch.setenv("AIRFLOW_VAR_ORDERS_EXPORT_BUCKET", bucket)
    body = content(client, shop, f"{keys[-1]}.manifest.json").replace(shop.encode(), bucket.encode())

    place = urlsplit(client.meta.endpoint_url)

    def put(worker: int) -> None:
        # boto3's own put_object takes five times as long.
        connection = http.client.HTTPConnection(place.hostname or "", place.port)
        for index in range(worker, EXPORTS, 4):
            key = f"orders/orders-{date(2016, 1, 1) + timedelta(index):%Y%m%d}.csv.manifest.json"
            signed = client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key})
            connection.request("PUT", signed.removeprefix(client.meta.endpoint_url), body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    relist()
    requests = record(catalogue.bucket().client)
    session = airflow.session("viewer")
    asked = []
    for _ in range(2):
        answer = session.get(f"{airflow.url}/exports/list").json()
        assert (answer["total"], len(answer["rows"])) == (EXPORTS, 20)
        asked.append(collections.Counter(operation for operation, _ in requests))
    assert asked[0]["ListObjectsV2"] == 3  # of 1,000 keys each
    assert asked[0]["GetObject"] < 140  # those of the table and the charts, once
    assert asked[0] == asked[1]
    relist()
