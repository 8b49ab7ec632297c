"""An Airflow with the page, and a month of exports in its bucket."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from tests.conftest import content
from tests.exports_page.server import Airflow, publish_days, relist, save_dags, serving

ROWS = 30_000
DAYS = 30


@pytest.fixture(scope="session")
def shop(client: Any) -> str:
    """The bucket of the exports that the page shows, for the whole session."""
    bucket = f"exports-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture
def table(database: str, shop: str) -> int:
    """The table `orders` of the database; returns the number of its rows."""
    rows = services.load_orders(database, ROWS)
    services.make_exporter(database)
    return rows


@pytest.fixture(scope="session", autouse=True)
def table_gone(engine: sa.Engine) -> Iterator[None]:
    """The table is gone for the tests after these."""
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS public.orders")


@pytest.fixture(scope="session")
def keys(database: str, engine: sa.Engine, exporter: sa.Engine, client: Any, shop: str) -> list[str]:
    """Keys of the files of a month of exports, the oldest first."""
    services.load_orders(database, ROWS)
    services.make_exporter(database)
    return publish_days(client, exporter, shop, DAYS)


@pytest.fixture(scope="session")
def app(airflow_home: Path, airflow_database: Path, keys: list[str]) -> Iterator[Airflow]:
    """Airflow's app."""
    save_dags()
    with serving(airflow_home) as running:
        yield running


@pytest.fixture
def airflow(app: Airflow, shop: str, monkeypatch: pytest.MonkeyPatch) -> Airflow:
    """Airflow's app, with the bucket of the page's tests; other tests of this session have another."""
    monkeypatch.setenv("AIRFLOW_VAR_ORDERS_EXPORT_BUCKET", shop)
    return app


@pytest.fixture
def fresh(airflow: Airflow) -> None:
    """The bucket is listed again for this test."""
    relist()


@pytest.fixture
def put(shop: str, client: Any, fresh: None) -> Iterator[Callable[..., str]]:
    """Puts a manifest into the bucket, for the length of the test; returns its URL."""
    made = []

    def put(key: str, body: bytes) -> str:
        client.put_object(Bucket=shop, Key=f"{key}.manifest.json", Body=body)
        made.append(f"{key}.manifest.json")
        return f"s3://{shop}/{key}.manifest.json"

    yield put
    for key in made:
        client.delete_object(Bucket=shop, Key=key)
    relist()


@pytest.fixture
def document(shop: str, keys: list[str], client: Any) -> dict[str, Any]:
    """A manifest."""
    found: dict[str, Any] = json.loads(content(client, shop, f"{keys[-1]}.manifest.json"))
    return found
