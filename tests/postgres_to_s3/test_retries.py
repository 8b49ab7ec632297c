"""RetryByCause: which failures are retried, as in the table of docs/running.md."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.exceptions
import psycopg
import psycopg2
import pytest
import sqlalchemy as sa

import streaming_export
from demo import services
from streaming_export import (
    DatabaseError,
    ExportError,
    InvalidArgument,
    LoginRefused,
    ObjectChanged,
    StoreError,
)
from streaming_export.postgres.errors import TRANSIENT as TRANSIENT_SQLSTATES
from streaming_export.postgres.errors import database_error
from streaming_export.s3.codes import TRANSIENT as TRANSIENT_CODES
from streaming_export.s3.codes import store_error
from streaming_ingest import ColumnsChanged
from tests.streaming_export.exporting import export
from tests.streaming_export.store import hook, refusal
from tests.streaming_export.waiting import Running, eventually

RUNNING = (services.PROJECT / "docs" / "running.md").read_text(encoding="utf-8")
FOR_EVER = "SELECT pg_sleep(600)::text AS a"

Fail = Callable[..., ExportError]


def reaction(error: BaseException) -> str:
    """What the policy decides: retry, fail, or default, which leaves it to Airflow."""
    from postgres_to_s3 import RetryByCause

    return str(RetryByCause().evaluate(error, 1, 3).action.value)


@pytest.fixture
def fail(airflow_home: Path, exporter: sa.Engine, client: Any, bucket: str) -> Fail:
    """Exports, and returns the error."""

    def run(query: str = "SELECT 1 AS id", **arguments: Any) -> ExportError:
        defaults = {"engine": exporter, "client": client, "bucket": bucket, "key": "a.csv", "patience": 0}
        with pytest.raises(ExportError) as caught:
            export(query, **{**defaults, **arguments})
        return caught.value

    return run


@pytest.fixture
def store(endpoint: str) -> Any:
    """A client of the test's own, to be hooked."""
    return services.s3_client(endpoint)


def connecting(database: str, **arguments: Any) -> sa.Engine:
    """An engine of the role that exports, with libpq options of the test's."""
    url = database.replace("postgresql://", "postgresql+psycopg2://")
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args={"user": services.EXPORTER, **arguments})


# ---- Errors of a real database


@pytest.mark.parametrize(
    ("query", "sqlstate"),
    [
        ("SELECT * FROM not_there", "42P01"),
        ("SELECT nope FROM pg_class", "42703"),
        ("SELECT nope(1) AS a", "42883"),
        ("SELECT 1 AS a WHERE", "42601"),
        ("SELECT 1 / 0 AS a", "22012"),
    ],
)
def test_a_wrong_query_fails(fail: Fail, query: str, sqlstate: str) -> None:
    """A query that can't succeed is not run again."""
    error = fail(query)
    assert isinstance(error, DatabaseError)
    assert (error.sqlstate, reaction(error)) == (sqlstate, "fail")


def test_a_missing_privilege_fails(fail: Fail, engine: sa.Engine, database: str, schema: str) -> None:
    """A role without the privilege gets it from somebody, not from a retry."""
    role = f"role_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        connection.exec_driver_sql(f"CREATE TABLE {schema}.secrets (id int)")
    try:
        error = fail(f"SELECT * FROM {schema}.secrets", engine=connecting(database, user=role))
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
    assert isinstance(error, DatabaseError)
    assert (error.sqlstate, reaction(error)) == ("42501", "fail")


def test_a_time_out_of_the_server_retries(fail: Fail, database: str) -> None:
    """statement_timeout may be a busy server's."""
    error = fail(FOR_EVER, engine=connecting(database, options="-c statement_timeout=200"))
    assert isinstance(error, DatabaseError)
    assert (error.sqlstate, reaction(error)) == ("57014", "retry")


def test_a_lock_retries(fail: Fail, engine: sa.Engine, database: str, schema: str) -> None:
    """Whoever holds the lock ends."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {schema}.locked (id int)")
    with engine.begin() as holder:
        holder.exec_driver_sql(f"LOCK TABLE {schema}.locked")
        error = fail(f"SELECT * FROM {schema}.locked", engine=connecting(database, options="-c lock_timeout=200"))
    assert isinstance(error, DatabaseError)
    assert (error.sqlstate, reaction(error)) == ("55P03", "retry")


def test_a_session_that_is_ended_retries(fail: Fail, engine: sa.Engine) -> None:
    """A fail-over, or an administrator, ends it; libpq reports it with or without a SQLSTATE."""
    name = f"ended {uuid.uuid4().hex}"
    running = Running(lambda: fail(FOR_EVER, application_name=name, verify_rows=False))
    terminate = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = :name AND wait_event = 'PgSleep'"
    )

    def ended() -> bool:
        with engine.connect() as connection:
            return bool(connection.execute(terminate, {"name": name}).all())

    assert eventually(ended)
    assert running.ends()
    assert isinstance(running.result, DatabaseError)
    assert running.result.sqlstate in ("57P01", None)
    assert reaction(running.result) == "retry"


def test_a_server_that_is_not_there_retries(fail: Fail, database: str) -> None:
    """Nobody listens; it may come back."""
    error = fail(engine=connecting(database, host="127.0.0.1", port=1))
    assert isinstance(error, DatabaseError)
    assert error.failed.startswith("Cannot connect to the database: ")
    assert (error.sqlstate, reaction(error)) == (None, "retry")


@pytest.mark.parametrize(
    "arguments", [{"dbname": "not_there"}, {"user": "nobody_knows_me"}], ids=["no such database", "no such role"]
)
def test_a_login_that_is_refused_fails(fail: Fail, database: str, arguments: dict[str, Any]) -> None:
    """libpq gives no SQLSTATE for it, but the server's own words stand out: somebody has to correct it."""
    error = fail(engine=connecting(database, **arguments))
    assert isinstance(error, LoginRefused)
    assert error.failed.startswith("The login was refused: ")
    assert (error.sqlstate, reaction(error)) == (None, "fail")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('FATAL:  password authentication failed for user "a"', "fail"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "a", database "b", no encryption', "fail"),
        ('FATAL:  role "a" is not permitted to log in', "fail"),
        ('FATAL:  Peer authentication failed for user "a"', "fail"),
        ("fe_sendauth: no password supplied", "fail"),
        ("FATAL:  the database system is starting up", "retry"),
        ("FATAL:  sorry, too many clients already", "retry"),
        ("FATAL:  Passwort-Authentifizierung für Benutzer »a« fehlgeschlagen", "retry"),
        ("Connection refused", "retry"),
        ("timeout expired", "retry"),
    ],
)
def test_what_is_said_while_connecting(airflow_home: Path, said: str, expected: str) -> None:
    """A login that the server refuses in English fails; everything else, and other languages, are retried."""
    text = f'connection to server at "db.example.com" (10.0.0.2), port 5432 failed: {said}'
    error = database_error("looking for transactions", psycopg2.OperationalError(f"{text}\n\tIs the server running?\n"))
    assert reaction(error) == expected
    assert "looking for transactions" not in str(error)
    assert "Is the server running" not in str(error)


@pytest.fixture
def role_with_password(engine: sa.Engine) -> Iterator[str]:
    """A role that the server asks for a password."""
    role = f"role_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'right'")
        rules = Path(connection.exec_driver_sql("SHOW hba_file").scalar_one())
    before = rules.read_text()
    rules.write_text(f"local all {role} scram-sha-256\n{before}")
    reload(engine)
    yield role
    rules.write_text(before)
    reload(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP ROLE {role}")


def reload(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_reload_conf()")


def test_a_wrong_password_fails(fail: Fail, database: str, role_with_password: str) -> None:
    """The message says what it is, without the password."""
    wrong = {"user": role_with_password, "password": "wr0ng-pass"}

    def refused() -> bool:
        try:
            psycopg.connect(database, **wrong).close()
        except psycopg.OperationalError:
            return True
        return False

    assert eventually(refused)
    error = fail(engine=connecting(database, **wrong))
    assert isinstance(error, LoginRefused)
    assert "password authentication failed" in str(error)
    assert "wr0ng-pass" not in str(error)
    assert (error.sqlstate, reaction(error)) == (None, "fail")


# ---- Errors of the object store


def test_a_missing_bucket_fails(fail: Fail) -> None:
    """Somebody has to make it."""
    error = fail(bucket="not-there")
    assert isinstance(error, StoreError)
    assert (error.code, reaction(error)) == ("NoSuchBucket", "fail")


def test_a_store_that_is_not_there_retries(fail: Fail) -> None:
    """Nobody listens at its address."""
    client = services.s3_client("http://127.0.0.1:1", botocore.config.Config(retries={"max_attempts": 0}))
    error = fail(client=client)
    assert isinstance(error, StoreError)
    assert (error.code, reaction(error)) == ("EndpointConnectionError", "retry")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("SlowDown", "retry"),
        ("InternalError", "retry"),
        ("503", "retry"),
        ("ExpiredToken", "retry"),
        ("AccessDenied", "fail"),
        ("SignatureDoesNotMatch", "fail"),
        ("NoSuchUpload", "fail"),
    ],
)
def test_what_the_store_answers(fail: Fail, store: Any, code: str, expected: str) -> None:
    """A store's refusal is recognized by its code."""
    hook(store, "PutObject", lambda params: refusal(code))
    error = fail(client=store)
    assert isinstance(error, StoreError)
    assert (error.code, reaction(error)) == (code, expected)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://store"), "retry"),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="http://store"), "retry"),
        (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), "retry"),
        (botocore.exceptions.SSLError(endpoint_url="http://store", error="x"), "retry"),
        (botocore.exceptions.CredentialRetrievalError(provider="x", error_msg="x"), "retry"),
        (botocore.exceptions.NoCredentialsError(), "fail"),
        (botocore.exceptions.ParamValidationError(report="x"), "fail"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_what_boto3_raises(fail: Fail, store: Any, raised: Exception, expected: str) -> None:
    """A missing answer is recognized by boto3's exception."""

    def lose(params: dict[str, Any]) -> None:
        raise raised

    hook(store, "PutObject", lose)
    error = fail(client=store)
    assert isinstance(error, StoreError)
    assert (error.code, reaction(error)) == (type(raised).__name__, expected)


# ---- Errors of our own, and what is not an export's


def test_our_own_refusals_fail(fail: Fail) -> None:
    """An argument, and a query without rows, are the same in the next try."""
    assert reaction(fail(key="")) == "fail"
    assert reaction(fail("SELECT 1 AS id WHERE false", on_empty="fail")) == "fail"


def test_transactions_that_run_retry(fail: Fail, engine: sa.Engine) -> None:
    """They end some day."""
    window = ("2026-11-01T00:00:00+00:00", datetime.now(UTC).replace(year=2100).isoformat())
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_current_xact_id()")
        error = fail(window=window, unique_key="id", wait_for_transactions=0)
    assert (type(error).__name__, reaction(error)) == ("TransactionsRunning", "retry")


def test_an_unknown_connection_fails(airflow_home: Path) -> None:
    """Somebody has to add it."""
    from postgres_to_s3 import s3_bucket
    from postgres_to_s3.connections import postgres_engine, secret

    for argument, use in {
        "postgres_conn_id": postgres_engine,
        "aws_conn_id": lambda conn_id: s3_bucket(conn_id, "exports"),
        "mask_conn_id": secret,
    }.items():
        with pytest.raises(InvalidArgument, match=f"^{argument}='nobody_knows_me' is not allowed") as caught:
            use("nobody_knows_me")
        assert reaction(caught.value) == "fail"


@pytest.mark.parametrize("error", [streaming_export.ExportCancelled("x"), RuntimeError("x"), TimeoutError("x")])
def test_the_rest_is_left_to_airflow(airflow_home: Path, error: Exception) -> None:
    """What is not ours, and what was stopped: it may have been a worker that is shut down."""
    assert reaction(error) == "default"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ObjectChanged("x"), "retry"),
        (ColumnsChanged("x"), "fail"),
        (streaming_export.ManifestMissing("x"), "fail"),
    ],
)
def test_loading_is_told_in_the_same_way(airflow_home: Path, error: Exception, expected: str) -> None:
    """The policy serves the task that loads as well."""
    assert reaction(error) == expected


# ---- docs/running.md


def table() -> Iterator[tuple[str, str, str]]:
    """What the table names: SQLSTATE, class, code or exception; and its reaction."""
    (section,) = re.findall(r"^## What is retried\n(.*?)^## ", RUNNING, re.DOTALL | re.MULTILINE)
    for cause, codes, expected in re.findall(r"^\| (.*?) \| (.*?) \| (retry|fail|as Airflow .*?) \|$", section, re.M):
        for is_class, code in re.findall(r"(class )?`(\w+)`", codes):
            yield cause, code + ("000" if is_class else ""), expected if expected in ("retry", "fail") else "default"


def example(code: str) -> BaseException:
    """An error as the table names it."""
    from airflow.sdk import exceptions

    if re.fullmatch(r"[0-9A-Z]{5}", code):
        refused = RuntimeError("x")
        refused.diag = SimpleNamespace(sqlstate=code, message_primary="x")  # type: ignore[attr-defined]
        return database_error("running the query", refused)
    if code == "InvalidArgument":
        return streaming_export.InvalidArgument("key", "", "anything else")
    if code == "LoginRefused":
        return LoginRefused("x", "x")
    if code == "AlreadyExists":
        return streaming_export.AlreadyExists("x", "x")
    own = getattr(streaming_export, code, None) or getattr(exceptions, code, None)
    if own:
        return own("x")
    boto = getattr(botocore.exceptions, code, None)
    if boto is None:
        return store_error("sending a part", botocore.exceptions.ClientError({"Error": {"Code": code}}, "UploadPart"))
    return store_error("sending a part", boto.__new__(boto))


@pytest.mark.parametrize(("cause", "code", "expected"), list(table()), ids=lambda value: value[:30])
def test_the_table_tells_what_happens(airflow_home: Path, cause: str, code: str, expected: str) -> None:
    """Each line of the table is what the policy decides."""
    assert reaction(example(code)) == expected, cause


def test_the_table_names_all_that_is_retried() -> None:
    """Nothing is retried that the table does not name."""
    named = {code for _, code, expected in table() if expected == "retry"}
    known = {state if len(state) == 5 else f"{state}000" for state in TRANSIENT_SQLSTATES}
    assert named == known | TRANSIENT_CODES | {"TransactionsRunning", "Superseded"}


# ---- Inside Airflow

DAG_FILE = """
from datetime import timedelta
from pathlib import Path
from airflow.sdk import DAG
from postgres_to_s3 import PostgresToS3Operator

def tell(context):
    with Path(__file__).with_name("retried").open("a") as file:
        print(context["ti"].task_id, context["ti"].state.value, file=file)

always = {"retries": 1, "retry_delay": timedelta(0), "on_retry_callback": tell}
with DAG("retries", schedule=None, default_args=always):
    common = {"s3_bucket": "exports", "s3_key": "retries.csv", "postgres_conn_id": "orders_db",
              "aws_conn_id": "exports_s3"}
    PostgresToS3Operator(task_id="to_mend", query="SELECT * FROM not_there", **common)
    PostgresToS3Operator.partial(task_id="mapped", **common).expand(query=["SELECT * FROM not_there"])
    PostgresToS3Operator(task_id="passing", query="SELECT 1 AS a", **{**common, "postgres_conn_id": "lost_db"})
    PostgresToS3Operator(task_id="without", query="SELECT * FROM not_there", retry_policy=None, **common)
"""


@pytest.fixture
def dag(airflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A DAG of exports that fail, imported by Airflow."""
    from airflow.dag_processing.dagbag import DagBag

    lost = json.loads(os.environ["AIRFLOW_CONN_ORDERS_DB"]) | {"host": "127.0.0.1", "port": 1}
    monkeypatch.setenv("AIRFLOW_CONN_LOST_DB", json.dumps(lost))
    (tmp_path / "retries.py").write_text(DAG_FILE)
    bag = DagBag(tmp_path)
    assert not bag.import_errors
    return bag.dags["retries"]


def test_in_a_run(dag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permanent failure fails at once; a transient one is retried as often as the task says."""
    bundles = [
        {
            "name": "retries",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(tmp_path)},
        }
    ]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    run = dag.test(logical_date=None)
    tries = {task.task_id: (task.state, task.try_number) for task in run.get_task_instances()}
    assert tries == {
        "to_mend": ("failed", 1),
        "mapped": ("failed", 1),
        "passing": ("failed", 2),
        "without": ("failed", 2),
    }
    retried = (tmp_path / "retried").read_text().splitlines()
    assert sorted(retried) == ["passing up_for_retry", "without up_for_retry"]


def test_a_dag_with_the_policy_serializes(dag: Any) -> None:
    """The scheduler reads the DAG from the database, which says that there is a policy."""
    from airflow.serialization.serialized_objects import DagSerialization

    stored = json.loads(json.dumps(DagSerialization.serialize_dag(dag)))
    read = DagSerialization.deserialize_dag(stored)
    assert {task.task_id: task.has_retry_policy for task in read.tasks} == {
        "to_mend": True,
        "mapped": True,
        "passing": True,
        "without": False,
    }


def test_a_policy_of_the_dag_is_used(airflow_home: Path) -> None:
    """default_args can set another policy."""
    from airflow.sdk import DAG, ExceptionRetryPolicy

    from postgres_to_s3 import PostgresToS3Operator

    other = ExceptionRetryPolicy(rules=[])
    with DAG("policy", schedule=None, default_args={"retry_policy": other}):
        task = PostgresToS3Operator(task_id="export", query="SELECT 1 AS a", s3_bucket="b", s3_key="k")
    assert task.retry_policy is other
