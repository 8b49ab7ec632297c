"""No value of a row and no secret gets anywhere but into the file; parameters show where any query's do.

Canaries are planted in the rows, the parameters and the connections of tasks that succeed and that fail, in an
Airflow of their own, on a PostgreSQL that logs all it can. Then every place is searched where somebody who may not
see the data, or know a secret, may look.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from demo import services
from tests.conftest import content, make_exporter

CANARIES = {
    "a row's value": "canary-row@example.com",
    "a row's key": "canary-key@example.com",
    "a masked value": "canary-masked-name",
    "a parameter": "canary-parameter@example.com",
    "a parameter in a list": "canary-listed@example.com",
    "a parameter that is a number": "4915112345678",
    "the database's password": "canary-database-password",
    "the store's secret key": "canary-store-secret-key",
    "the key of the mask": "canary-mask-key-of-enough-bytes",
}

ROWS = 20_000  # beside the two that have canaries

# Makes statements last, so that pg_stat_activity is seen to show them; called when they are planned.
NAP = """
CREATE FUNCTION nap() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN true; END'
"""

IN_THE_DATABASE = {"PostgreSQL's log", "pg_stat_activity"}
WHERE_PARAMETERS_SHOW = {*IN_THE_DATABASE, "Airflow's database", "events of OpenLineage"}

# Where a canary may be: key ranges and parameters are part of the statements, as any program's are.
SHOWN = {
    "a row's key": IN_THE_DATABASE,
    "a parameter": WHERE_PARAMETERS_SHOW,
    "a parameter in a list": WHERE_PARAMETERS_SHOW,
    "a parameter that is a number": WHERE_PARAMETERS_SHOW,
}

# What an administrator can switch on to see more.
TALKATIVE = {
    "log_statement": "all",
    "log_duration": "on",
    "log_min_duration_statement": "0",
    "log_parameter_max_length_on_error": "-1",
    "log_error_verbosity": "verbose",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_replication_commands": "on",
    "track_activity_query_size": "32kB",
}

DAG_FILE = """
import atexit
import gc
gc.disable()  # Airflow makes very many objects, which stay
atexit.register(gc.freeze)  # nor are they taken apart at the end
from airflow.sdk import DAG, Asset
from postgres_to_s3 import PostgresToS3Operator

PEOPLE = '''
SELECT email, phone, name FROM people
WHERE email <> :email AND email <> ALL(:listed) AND phone <> :phone AND nap()
'''
GIVEN = {
    "email": "{{ var.value.email }}",
    "listed": ["{{ var.value.listed }}", "nobody@example.com"],
    "phone": "{{ var.json.phone }}",
}

with DAG("canaries", schedule=None, render_template_as_native_obj=True) as dag:
    to = {"s3_bucket": "exports", "postgres_conn_id": "people_db", "aws_conn_id": "exports_s3"}
    # A batch ends at the row whose key is the canary.
    PostgresToS3Operator(
        task_id="succeeds", query=PEOPLE, parameters=GIVEN, unique_key="email", yield_per=20_001,
        mask={"name": "hash"}, mask_conn_id="mask_key", s3_key="people/{{ ds_nodash }}.csv",
        latest_key="people/latest.json", compression="gzip", outlets=[Asset("people")], **to,
    )
    PostgresToS3Operator(
        task_id="by_rows", query=PEOPLE, parameters=GIVEN, method="rows", mask={"name": "drop"},
        s3_key="people/rows.csv", **to,
    )
    PostgresToS3Operator(
        task_id="previews", query=PEOPLE, parameters=GIVEN, preview=True, s3_key="people/preview.csv", **to
    )
    PostgresToS3Operator.partial(task_id="mapped", query=PEOPLE, parameters=GIVEN, **to).expand(
        s3_key=["people/mapped-1.csv"]
    )
    PostgresToS3Operator.partial(task_id="mapped_parameters", query=PEOPLE, s3_key="people/mapped-2.csv", **to).expand(
        parameters=[GIVEN]
    )
    PostgresToS3Operator(
        task_id="wrong_key", query=PEOPLE, parameters=GIVEN, s3_key="people/{{ nothing.at_all }}.csv", **to
    )
    PostgresToS3Operator(
        task_id="no_mapping", query=PEOPLE, parameters="{{ var.value.email }}", s3_key="people/g.csv", **to
    )
    PostgresToS3Operator(
        task_id="wrong_query", query=PEOPLE + " AND nothing = :email", parameters=GIVEN, s3_key="people/a.csv", **to
    )
    PostgresToS3Operator(
        task_id="wrong_parameter", query=PEOPLE, parameters={**GIVEN, "more": "{{ var.value.email }}"},
        s3_key="people/b.csv", **to,
    )
    PostgresToS3Operator(
        task_id="no_bucket", query=PEOPLE, parameters=GIVEN, s3_key="people/d.csv", **{**to, "s3_bucket": "nowhere"}
    )
    PostgresToS3Operator(
        task_id="no_server", query=PEOPLE, parameters=GIVEN, s3_key="people/e.csv",
        **{**to, "postgres_conn_id": "lost_db"},
    )
    # PostgreSQL itself quotes the value in its log: not on the server whose log is searched.
    PostgresToS3Operator(
        task_id="failing_cast", query="SELECT CAST(:email AS int) AS a", parameters={"email": "{{ var.value.email }}"},
        s3_key="people/f.csv", **{**to, "postgres_conn_id": "orders_db"},
    )

if __name__ == "__main__":
    dag.test()
"""

STATES = {
    "succeeds": "success",
    "by_rows": "success",
    "previews": "skipped",
    "mapped": "success",
    "mapped_parameters": "success",
    "wrong_key": "failed",
    "no_mapping": "failed",
    "wrong_query": "failed",
    "wrong_parameter": "failed",
    "no_bucket": "failed",
    "no_server": "failed",
    "failing_cast": "failed",
}


class Run:
    """A run of the DAG: its database server, its Airflow, and what can be seen of them."""

    def __init__(self, folder: Path, people: str, database: str, endpoint: str) -> None:
        self.home = folder / "airflow"
        self.client = services.s3_client(endpoint)
        self.bucket = "exports"
        self.activity: set[str] = set()
        self._people = people
        self._folder = folder
        self._environment = os.environ | self._settings(database, endpoint)

    def run(self) -> None:
        """Run the DAG, and look at what the server shows meanwhile."""
        (self._folder / "dags").mkdir()
        dag_file = self._folder / "dags" / "canaries.py"
        dag_file.write_text(DAG_FILE)
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,))
        watcher.start()
        done = subprocess.run([sys.executable, dag_file], env=self._environment, capture_output=True, text=True)
        over.set()
        watcher.join()
        self.output = done.stdout + done.stderr

    def places(self) -> dict[str, str]:
        """The text of each place that others may look at."""
        documents = [key for key in self.listed() if key.endswith(".json")]
        return {
            "the tasks' logs, with their exceptions": self.output,
            "Airflow's database": "".join(
                path.read_bytes().decode("latin-1") for path in self.home.glob("airflow.db*")
            ),
            "events of OpenLineage": (self._folder / "lineage.jsonl").read_text(),
            "manifests and the pointer": "".join(content(self.client, self.bucket, key).decode() for key in documents),
            "names and headers of objects": json.dumps([self._head(key) for key in self.listed()], default=str),
            "PostgreSQL's log": (self._folder / "postgres" / "log").read_text(),
            "pg_stat_activity": "\n".join(self.activity),
        }

    def rows(self, table: str, columns: str, where: str = "dag_id") -> list[tuple[Any, ...]]:
        """What Airflow's database has of the DAG in a table."""
        with sqlite3.connect(self.home / "airflow.db") as connection:
            return connection.execute(f"SELECT {columns} FROM {table} WHERE {where} = 'canaries'").fetchall()

    def listed(self) -> list[str]:
        """Keys of all objects of the run."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix="people/")
        return [item["Key"] for item in found["Contents"]]

    def _head(self, key: str) -> Any:
        return key, self.client.head_object(Bucket=self.bucket, Key=key)["ResponseMetadata"]["HTTPHeaders"]

    def _watch(self, over: threading.Event) -> None:
        with psycopg.connect(self._people, autocommit=True) as connection:
            while not over.wait(0.02):
                for row in connection.execute("SELECT to_json(a)::text FROM pg_stat_activity AS a"):
                    self.activity.add(row[0])

    def _settings(self, database: str, endpoint: str) -> dict[str, str]:
        settings = services.airflow_environment(self.home, database, endpoint, self.bucket)
        people = json.loads(services.airflow_environment(self.home, self._people, endpoint)["AIRFLOW_CONN_ORDERS_DB"])
        people["password"] = CANARIES["the database's password"]
        store = json.loads(settings["AIRFLOW_CONN_EXPORTS_S3"]) | {"password": CANARIES["the store's secret key"]}
        mask_key = {"conn_type": "generic", "password": CANARIES["the key of the mask"]}
        lineage = {"type": "file", "log_file_path": str(self._folder / "lineage.jsonl"), "append": True}
        return settings | {
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._folder / "dags"),
            "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(lineage),
            "AIRFLOW_CONN_PEOPLE_DB": json.dumps(people),
            "AIRFLOW_CONN_LOST_DB": json.dumps(people | {"host": "127.0.0.1", "port": 1}),
            "AIRFLOW_CONN_EXPORTS_S3": json.dumps(store),
            "AIRFLOW_CONN_MASK_KEY": json.dumps(mask_key),
            "AIRFLOW_VAR_EMAIL": CANARIES["a parameter"],
            "AIRFLOW_VAR_LISTED": CANARIES["a parameter in a list"],
            "AIRFLOW_VAR_PHONE": CANARIES["a parameter that is a number"],
            "PYTHONPATH": str(services.PROJECT / "plugins"),
        }


def _forms(canary: str) -> set[str]:
    """What a canary may look like, as itself or encoded."""
    data = canary.encode()
    return {canary, data.hex(), base64.b64encode(data).decode().rstrip("="), urllib.parse.quote(canary)}


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, airflow_database: Path, database: str, moto_endpoint: str
) -> Iterator[Run]:
    """The run, over; moto takes a secret key that is a canary."""
    services.create_bucket(moto_endpoint)
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "airflow").mkdir()
    shutil.copy(airflow_database, folder / "airflow" / "airflow.db")
    with services.postgres(folder / "postgres", TALKATIVE) as people:
        make_exporter(people)
        with psycopg.connect(people, autocommit=True) as connection:
            connection.execute("CREATE TABLE people (email text PRIMARY KEY, phone bigint, name text)")
            connection.execute(f"GRANT SELECT ON people TO {services.EXPORTER}")
            connection.execute(NAP)
            # COPY's rows are in no log, unlike those of an INSERT.
            with connection.cursor().copy("COPY people FROM STDIN") as copy:
                for number in range(ROWS):
                    copy.write_row((f"canary-{number:05}-x@example.com", number, "a name"))
                copy.write_row((CANARIES["a row's key"], 1, CANARIES["a masked value"]))
                copy.write_row((CANARIES["a row's value"], 2, "a name"))
            connection.execute("VACUUM ANALYZE people")
        found = Run(folder, people, database, moto_endpoint)
        found.run()
        yield found


def test_the_tasks_did_what_they_were_meant_to(run: Run) -> None:
    """The search would find nothing where nothing happened."""
    assert dict(run.rows("task_instance", "task_id, state")) == STATES, run.output
    exported = gzip.decompress(content(run.client, run.bucket, _only(run.listed(), ".csv.gz"))).decode()
    assert CANARIES["a row's value"] in exported
    assert CANARIES["a row's key"] in exported
    assert CANARIES["a masked value"] not in exported


def test_the_places_are_where_canaries_would_be(run: Run) -> None:
    """Each place holds what belongs there: a search that finds nothing has looked at something."""
    returned = {task for task, key in run.rows("xcom", "task_id, key") if key == "return_value"}
    assert returned == {"succeeds", "by_rows", "mapped", "mapped_parameters"}
    rendered = {task for (task,) in run.rows("rendered_task_instance_fields", "task_id")}
    assert {"succeeds", "mapped", "mapped_parameters", "wrong_query"} <= rendered
    [(extra,)] = run.rows("asset_event", "extra", where="source_dag_id")
    assert "manifest_url" in extra
    told = {
        "the tasks' logs, with their exceptions": "DatabaseError",
        "Airflow's database": "manifest_url",
        "events of OpenLineage": "people/rows.csv",
        "manifests and the pointer": '"masked"',
        "names and headers of objects": "attachment",
        "PostgreSQL's log": CANARIES["a row's key"],
        "pg_stat_activity": CANARIES["a row's key"],
    }
    places = run.places()
    assert told.keys() == places.keys()
    assert {place for place, text in told.items() if text not in places[place]} == set()


def test_openlineage_is_told_what_was_published(run: Run) -> None:
    """Airflow's OpenLineage provider asks the task, and sends its answer."""
    told = [json.loads(line) for line in run.places()["events of OpenLineage"].splitlines()]
    (complete,) = (
        event for event in told if event["eventType"] == "COMPLETE" and event["job"]["name"] == "canaries.by_rows"
    )
    assert [read["name"] for read in complete["inputs"]] == ["postgres.public.people"]
    (written,) = complete["outputs"]
    assert (written["namespace"], written["name"]) == ("s3://exports", "people/rows.csv")
    assert written["outputFacets"]["outputStatistics"]["rowCount"] == ROWS + 2


@pytest.mark.parametrize("planted", CANARIES)
def test_no_canary_is_where_it_must_not_be(run: Run, planted: str) -> None:
    """No place holds a canary, in plain text or encoded, but for the statements of the database and Airflow's own."""
    forms = _forms(CANARIES[planted])
    found = {place for place, text in run.places().items() if any(form in text for form in forms)}
    assert found <= SHOWN.get(planted, set())


def _only(names: list[str], ending: str) -> str:
    (name,) = (name for name in names if name.endswith(ending))
    return name
