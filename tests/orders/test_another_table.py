"""models.py is the one file to edit for another table: all DAGs work with a model that has nothing of the orders'."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import Bucket
from streaming_ingest import ingest
from tests.conftest import content, keys, others_environment

MODEL = Path(__file__).with_name("tickets.py")
COLUMNS = ["ticket", "subject", "body", "State", "due", "urgent", "hours", "opened"]
TABLE = """
CREATE SCHEMA "Help Desk";
CREATE TABLE "Help Desk".tickets (
    ticket uuid PRIMARY KEY, subject text, body text, "State" text, due date, urgent boolean, hours numeric,
    opened timestamptz, internal_note text DEFAULT 'not for export'
);
INSERT INTO "Help Desk".tickets
SELECT gen_random_uuid(), 'a, "b"', E'two\nlines', (ARRAY['open', 'closed'])[1 + i % 2], '2026-11-04', i % 3 = 0,
    i / 10.0, '2026-11-04+00'::timestamptz + i * interval '1 minute'
FROM generate_series(1, 500) AS i;
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of dags/ and plugins/ with the other model."""
    for name in ("dags", "plugins"):
        shutil.copytree(services.PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    ours = (services.PROJECT / "plugins" / "orders" / "models.py").read_text()
    rest = ours.partition("TABLE: Table = inspect(Order).local_table\n")[2]  # what needs no edit
    imports = "from sqlalchemy import ARRAY, any_, bindparam, cast, or_\n"
    (tmp_path / "plugins/orders/models.py").write_text(f"{MODEL.read_text()}\n{imports}{rest}")
    return tmp_path


@pytest.fixture
def desk(database: str) -> Iterator[str]:
    """URI of a database with the other table."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE DATABASE desk")
    uri = str(sa.make_url(database).set(database="desk"))
    with psycopg.connect(uri) as connection:
        connection.execute(TABLE)
    yield uri
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP DATABASE desk WITH (FORCE)")


@pytest.fixture
def environment(project: Path, airflow_database: Path, desk: str, database: str, endpoint: str) -> dict[str, str]:
    """Airflow with the copy, with the role that the script of the model makes, and an Airflow database of its own."""
    home = project / "airflow"
    home.mkdir()
    shutil.copy(airflow_database, home / "airflow.db")
    settings = services.airflow_environment(home, database, endpoint)
    orders_db = json.loads(settings["AIRFLOW_CONN_ORDERS_DB"]) | {"schema": "desk"}
    analytics_db = json.loads(settings["AIRFLOW_CONN_ANALYTICS_DB"]) | {"schema": "desk"}
    return {
        **others_environment(),
        **settings,
        "AIRFLOW_VAR_ORDERS_EXPORT_PREFIX": "tickets",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(project / "plugins"),
        "AIRFLOW_CONN_ORDERS_DB": json.dumps(orders_db),
        "AIRFLOW_CONN_ANALYTICS_DB": json.dumps(analytics_db),
        "PYTHONPATH": str(project / "plugins"),
    }


def rows_of(client: Any, key: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content(client, services.BUCKET, key).decode(), newline="")))


def test_all_dags_work_with_another_model(environment: dict[str, str], desk: str, client: Any, project: Path) -> None:
    """Names, types, key, schema and number of columns come from the model; what it leaves out is not exported."""
    script = [sys.executable, "-m", "orders.exporter_role"]
    sql = subprocess.run(script, env=environment, cwd=project, capture_output=True, text=True, check=True).stdout
    with psycopg.connect(desk) as connection:
        connection.execute(sql)
    command = [sys.executable, str(Path(__file__).with_name("run_dags.py")), "2026-11-05"]
    done = subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stdout[-4000:] + done.stderr[-2000:]
    result = json.loads(results[0].removeprefix("RESULT "))
    run_id, live = result.pop("run_id"), result.pop("live")
    assert set(result.values()) == {"success"}, (result, done.stdout[-6000:])

    nightly = rows_of(client, "tickets/tickets-20261105.csv")
    assert list(nightly[0]) == COLUMNS
    assert len(nightly) == 500
    assert [row["ticket"] for row in nightly] == sorted(row["ticket"] for row in nightly)
    assert len(rows_of(client, "tickets/daily/dt=2026-11-04/tickets-20261104.csv")) == 500
    totals = rows_of(client, "tickets/by-status/tickets-by-status-20261104.csv")
    assert [(row["State"], row["orders"]) for row in totals] == [("closed", "250"), ("open", "250")]
    assert sum(float(row["hours"]) for row in totals) == 12525.0
    (selection,) = [key for key in keys(client, services.BUCKET) if f"tickets/manual/{run_id}/" in key]
    assert selection.endswith("-open.csv")
    assert {row["State"] for row in rows_of(client, selection)} == {"open"}
    engine = sa.create_engine(desk.replace("postgresql://", "postgresql+psycopg2://"), poolclass=sa.NullPool)
    url = f"s3://{services.BUCKET}/tickets/tickets-20261105.csv.manifest.json"
    ingest(url, engine=engine, bucket=Bucket(client, services.BUCKET), schema="analytics", table="tickets")
    with psycopg.connect(desk) as connection:
        loaded = connection.execute("SELECT count(*), sum(hours), count(DISTINCT ticket) FROM analytics.tickets")
        assert [int(value) for value in loaded.fetchone() or ()] == [500, 12525, 500]

    header, *lines = live.split()
    assert header == ",".join(COLUMNS)
    assert sum(line.count(",open,") for line in lines) == 250


def test_the_script_of_the_role_is_the_file_as_long_as_the_model_is_ours() -> None:
    """Whoever runs the file, as the demo and docker-compose.yml do, runs what the model says."""
    from orders.exporter_role import script

    assert script() == (services.PROJECT / "plugins" / "orders" / "exporter_role.sql").read_text()


def test_a_composite_key_is_refused_by_name(project: Path) -> None:
    """A model with a key of two columns fails the import, and says what to write."""
    models = project / "plugins/orders/models.py"
    text = models.read_text().replace('mapped_column("State", Text)', 'mapped_column("State", Text, primary_key=True)')
    models.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(project / "plugins")}
    command = [sys.executable, "-c", "import orders.models"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "tickets: write primary_key=True on one column; composite keys are not supported." in done.stderr
