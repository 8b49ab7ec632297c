"""PostgresToS3Operator: what it makes of its arguments and of Airflow's connections."""

from __future__ import annotations

import hmac
import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import sqlalchemy as sa
from botocore.exceptions import ClientError

from demo import services
from orders.models import Order, select_orders
from streaming_export import DatabaseError, EmptyResult, ExportCancelled, InvalidArgument, StoreError
from tests.conftest import content, keys, open_uploads

if TYPE_CHECKING:
    from postgres_to_s3 import PostgresToS3Operator

TI = SimpleNamespace(
    dag_id="a_dag", task_id="a_task", run_id="a_run", try_number=1, map_index=-1, xcom_push=lambda key, value: None
)
CONTEXT: Any = {"ti": TI}

Make = Callable[..., "PostgresToS3Operator"]


@pytest.fixture
def make(airflow_home: Path, bucket: str) -> Make:
    """Makes an operator that exports the table orders to an empty bucket."""
    from postgres_to_s3 import PostgresToS3Operator

    def operator(**arguments: Any) -> PostgresToS3Operator:
        defaults = {
            "task_id": "export",
            "query": select_orders(),
            "s3_bucket": bucket,
            "s3_key": "a/file.csv",
            "unique_key": "id",
            "postgres_conn_id": "orders_db",
            "aws_conn_id": "exports_s3",
        }
        return PostgresToS3Operator(**{**defaults, **arguments})

    return operator


@pytest.fixture
def connection_with(monkeypatch: pytest.MonkeyPatch, airflow_home: Path) -> Callable[..., None]:
    """Adds extras to one of Airflow's connections."""

    def add(conn_id: str, **extra: Any) -> None:
        name = f"AIRFLOW_CONN_{conn_id.upper()}"
        connection = json.loads(os.environ[name])
        connection["extra"] = connection.get("extra", {}) | extra
        monkeypatch.setenv(name, json.dumps(connection))

    return add


def test_the_task_of_the_benchmark(airflow_home: Path, orders: int, client: Any, bucket: str) -> None:
    """What `make bench` gives the operator in the place of a task is enough."""
    from benchmarks.runners.airflow_task import execute

    arguments = {"query": "SELECT id FROM orders", "s3_bucket": bucket, "s3_key": "a.csv"}
    arguments |= {"postgres_conn_id": "orders_db", "aws_conn_id": "exports_s3"}
    operator = {"operator": "postgres_to_s3.operator.PostgresToS3Operator", "arguments": arguments}
    try:
        usage = execute({**operator, "imports": [], "connections": ["orders_db", "exports_s3"]})
    finally:
        logging.disable(logging.NOTSET)
    assert content(client, bucket, "a.csv").count(b"\n") == orders + 1
    assert usage.seconds > 0


def test_summary(make: Make, orders: int, client: Any, bucket: str) -> None:
    """The task returns, as XCom, what it published: JSON, and true of the object."""
    summary = make().execute(CONTEXT)
    assert json.loads(json.dumps(summary)) == summary
    head = client.head_object(Bucket=bucket, Key="a/file.csv")
    assert (summary["bucket"], summary["key"]) == (bucket, "a/file.csv")
    assert (summary["rows"], summary["rows_verified"]) == (orders, True)
    assert (summary["bytes"], summary["etag"]) == (head["ContentLength"], head["ETag"].strip('"'))
    assert len(summary["sha256"]) == 64
    assert summary["seconds"] > 0


def test_link_leads_to_the_page(make: Make, orders: int, bucket: str) -> None:
    """The link is a path of Airflow's own UI, under any base path: it does not expire and gives nobody access."""
    link = make().execute(CONTEXT)["link"]
    assert link == f"plugin/exports?export=s3%3A%2F%2F{bucket}%2Fa%2Ffile.csv.manifest.json"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("method", "pandas"),
        ("method", None),
        ("yield_per", 0),
        ("yield_per", -1),
        ("yield_per", "500"),
        ("readers", 0),
        ("readers", True),
        ("on_empty", "ignore"),
    ],
)
def test_bad_options_are_refused_when_the_dag_is_parsed(make: Make, argument: str, value: Any) -> None:
    """An option that no run could use fails the import of the DAG, naming option, value and what is allowed."""
    with pytest.raises(InvalidArgument, match=rf"{argument}={value!r} is not allowed: .+") as caught:
        make(**{argument: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("s3_bucket", ""),
        ("s3_bucket", "  "),
        ("s3_key", ""),
        ("s3_key", "/a.csv"),
        ("s3_key", "a/../b.csv"),
        ("s3_key", "a/./b.csv"),
        ("s3_key", "a\n.csv"),
        ("s3_key", "\ud800.csv"),
        ("s3_bucket", "a/b"),
        ("latest_key", "../latest.json"),
        ("latest_key", "/latest.json"),
        ("latest_key", "a\n.json"),
        ("latest_key", "a" * 1025),
        ("s3_key", "é" * 513),
        ("unique_key", "nope"),
        ("extra_args", {"Bucket": "other"}),
        ("query", ""),
        ("parameters", {"unknown": 1}),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(
    make: Make, orders: int, client: Any, bucket: str, argument: str, value: Any
) -> None:
    """What is only known after rendering is refused at the start of the task; nothing is read or written."""
    with pytest.raises(InvalidArgument, match=f"(?s)^{argument}=.* is not allowed: .*Nothing was read or written"):
        make(**{argument: value}).execute(CONTEXT)
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []


@pytest.mark.parametrize("run_id", ["..", ".", "manual__2026/../../orders", "a\nb"])
def test_a_run_id_is_no_way_out_of_its_prefix(make: Make, orders: int, client: Any, bucket: str, run_id: str) -> None:
    """Airflow's pattern for run ids can be changed: a key that one has led astray is refused."""
    from orders.places import SELECTION_KEY

    operator = make(s3_key=SELECTION_KEY)
    variables = SimpleNamespace(value={"orders_export_prefix": "orders"})
    run = SimpleNamespace(data_interval_end=datetime(2026, 11, 5, tzinfo=UTC))
    operator.render_template_fields({"var": variables, "run_id": run_id, "dag_run": run, "params": {"suffix": None}})
    with pytest.raises(InvalidArgument, match=r"(?s)^s3_key='orders/manual/.*Nothing was read or written"):
        operator.execute(CONTEXT)
    assert keys(client, bucket) == []


def test_on_empty(make: Make, orders: int, client: Any, bucket: str) -> None:
    """Without rows: a header, or a skipped task that leaves everything as it was, or a failure."""
    from airflow.sdk.exceptions import AirflowSkipException

    nothing = select_orders().where(sa.false())
    with pytest.raises(AirflowSkipException, match="nothing was written"):
        make(query=nothing, on_empty="skip").execute(CONTEXT)
    with pytest.raises(EmptyResult):
        make(query=nothing, on_empty="fail").execute(CONTEXT)
    assert keys(client, bucket) == []
    assert make(query=nothing).execute(CONTEXT)["rows"] == 0
    assert content(client, bucket, "a/file.csv") == b"id,customer_email,total_cents,status,created_at\n"


def test_sql_file_and_templates(make: Make, orders: int, client: Any, bucket: str, tmp_path: Path) -> None:
    """A query can be a .sql file; its text, the parameters and the key are rendered by Airflow."""
    from airflow.sdk import DAG

    (tmp_path / "big.sql").write_text(
        "SELECT id, total_cents FROM {{ params.table }}\nWHERE total_cents >= :least -- the big ones\n;\n"
    )
    with DAG("sql_file", schedule=None, template_searchpath=[str(tmp_path)]):
        operator = make(query="big.sql", parameters={"least": "{{ params.least }}"}, s3_key="big/{{ ds_nodash }}.csv")
    operator.resolve_template_files()
    operator.render_template_fields({"params": {"table": "orders", "least": 90_000}, "ds_nodash": "20261105"})
    operator.execute(CONTEXT)
    lines = content(client, bucket, "big/20261105.csv").decode().splitlines()
    assert lines[0] == "id,total_cents"
    assert len(lines) > 1
    assert all(int(line.split(",")[1]) >= 90_000 for line in lines[1:])


def test_a_template_that_gives_no_text(make: Make, orders: int, client: Any, bucket: str) -> None:
    """In a DAG that renders native objects, None is not exported to the key "None"; digits are a key."""
    from airflow.sdk import DAG

    with DAG("native", schedule=None, render_template_as_native_obj=True):
        none, digits = make(s3_key="{{ params.key }}"), make(s3_key="{{ ds_nodash }}", task_id="digits")
    none.render_template_fields({"params": {"key": None}})
    with pytest.raises(InvalidArgument, match=r"^s3_key=None is not allowed: a text"):
        none.execute(CONTEXT)
    digits.render_template_fields({"ds_nodash": "20261105"})
    digits.execute(CONTEXT)
    assert keys(client, bucket) == ["20261105"]


def test_mapped_tasks_with_one_key(make: Make, orders: int, client: Any, bucket: str) -> None:
    """A mapped task does not replace what another one has exported in this run; a retry or a cleared run may."""

    def run(index: int, status: str, begun: datetime, **more: Any) -> dict[str, Any]:
        operator = make(query="SELECT :s AS status", parameters={"s": status}, unique_key=None)
        ti = SimpleNamespace(**{**vars(TI), "map_index": index, **more})
        return operator.execute({"ti": ti, "dag_run": SimpleNamespace(start_date=begun)})  # type: ignore[typeddict-item]

    begun = datetime.now(UTC)
    run(0, "paid", begun)
    with pytest.raises(
        InvalidArgument, match=r"(?s)^s3_key='a/file\.csv' is not allowed: task 0 of this mapping.*Nothing was read"
    ):
        run(1, "shipped", begun)
    assert content(client, bucket, "a/file.csv") == b"status\npaid\n"
    run(0, "again", begun, try_number=2)
    run(1, "another run", begun, run_id="the_next")
    run(0, "cleared", datetime.now(UTC), run_id="the_next")
    assert content(client, bucket, "a/file.csv") == b"status\ncleared\n"


def test_a_mapped_task_whose_store_fails_says_what_is_published(make: Make) -> None:
    """It looks for the other tasks' files before the export begins, which would say so."""
    ti = SimpleNamespace(**{**vars(TI), "map_index": 0})
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(start_date=datetime.now(UTC))}
    with pytest.raises(StoreError, match=r"(?s)NoSuchBucket.*Nothing was published\..*Create the bucket"):
        make(s3_bucket="there-is-no-such-bucket").execute(context)


def test_rendered_query_is_stable_and_free_of_values(make: Make) -> None:
    """Airflow stores the rendered query: the same text at each parse, without the values that it binds."""
    from airflow.serialization.helpers import serialize_template_field

    query = select_orders().where(Order.customer_email == "canary@example.com")
    first, second = (serialize_template_field(make(query=query).query, "query") for _ in range(2))
    assert first == second
    assert "FROM orders" in first
    assert "canary" not in first


def test_libpq_options_of_the_connection_reach_the_driver(
    make: Make, orders: int, connection_with: Callable[..., None]
) -> None:
    """Options in the connection's extras are used, such as a time-out set by `options`."""
    connection_with("orders_db", options="-c statement_timeout=200", connect_timeout=7)
    with pytest.raises(DatabaseError, match="statement timeout") as caught:
        make(query="SELECT pg_sleep(10)::text AS a", unique_key=None).execute(CONTEXT)
    assert caught.value.sqlstate == "57014"


def test_tls_settings_of_the_connection_reach_the_driver(make: Make, connection_with: Callable[..., None]) -> None:
    """TLS settings in the extras reach libpq, Airflow's own extras do not, and silence is noticed."""
    from postgres_to_s3.connections import postgres_engine

    tls = {"sslmode": "verify-full", "sslrootcert": "/ca.pem", "sslcert": "/me.pem", "sslkey": "/me.key"}
    connection_with("orders_db", **tls, sqlalchemy_query={}, cursor="dictcursor", keepalives_idle=5)
    seen: dict[str, Any] = {}
    engine = postgres_engine("orders_db")

    @sa.event.listens_for(engine, "do_connect")
    def do_connect(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        seen.update(parameters)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        engine.connect()
    assert tls.items() <= seen.items()
    assert not {"cursor", "sqlalchemy_query", "cursor_factory"} & seen.keys()
    assert (seen["keepalives_idle"], seen["connect_timeout"]) == (5, 30)


def test_iam_login(make: Make, connection_with: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """With `iam` in the extras the login is a token of AWS."""
    from airflow.providers.postgres.hooks.postgres import PostgresHook

    from postgres_to_s3.connections import postgres_engine

    connection_with("orders_db", iam=True)
    monkeypatch.setattr(PostgresHook, "get_iam_token", lambda self, connection: ("iam_user", "token", 6543))
    url = postgres_engine("orders_db").url
    assert (url.username, url.password, url.port) == ("iam_user", "token", 6543)


def test_an_iam_token_that_has_expired(
    make: Make, connection_with: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is valid for 15 minutes: after a long wait for transactions, connections log in with a new one."""
    from airflow.providers.postgres.hooks.postgres import PostgresHook

    from postgres_to_s3 import connections

    connection_with("orders_db", iam=True)
    tokens = iter(["first", "second", "third"])
    monkeypatch.setattr(PostgresHook, "get_iam_token", lambda self, connection: ("iam_user", next(tokens), 6543))
    engine, used = connections.postgres_engine("orders_db"), []

    @sa.event.listens_for(engine, "do_connect")
    def do_connect(dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]) -> None:
        used.append((parameters["user"], parameters["password"], parameters["port"]))
        raise ConnectionAbortedError

    for seconds in (600, 600, -1, 600):
        monkeypatch.setattr(connections, "_TOKEN_SECONDS", seconds)
        with pytest.raises(ConnectionAbortedError):
            engine.connect()
    assert used == [("iam_user", token, 6543) for token in ("first", "first", "second", "second")]


def test_settings_of_the_aws_connection_reach_the_client(make: Make, connection_with: Callable[..., None]) -> None:
    """`config_kwargs` of the connection are used; without them, requests are retried in standard mode."""
    from postgres_to_s3 import s3_bucket

    assert s3_bucket("exports_s3", "b-1").client.meta.config.retries["mode"] == "standard"
    connection_with(
        "exports_s3",
        config_kwargs={"request_checksum_calculation": "when_required", "retries": {"mode": "adaptive"}},
    )
    config = s3_bucket("exports_s3", "b-1").client.meta.config
    assert config.request_checksum_calculation == "when_required"
    assert config.retries["mode"] == "adaptive"


def test_role_of_the_aws_connection_is_assumed(
    make: Make, orders: int, connection_with: Callable[..., None], bucket: str, moto_endpoint: str
) -> None:
    """With `role_arn` in the extras the client has the credentials of the role; moto hands out some for any role."""
    from postgres_to_s3 import s3_bucket

    services.create_bucket(moto_endpoint, bucket)
    connection_with(
        "exports_s3",
        endpoint_url=moto_endpoint,
        role_arn="arn:aws:iam::123456789012:role/exporter",
        service_config={"sts": {"endpoint_url": moto_endpoint}},
    )
    operator = make()
    assert s3_bucket(operator.aws_conn_id, "b-1").client._get_credentials().method == "sts-assume-role"
    assert operator.execute(CONTEXT)["rows"] == orders


def test_a_role_that_may_not_be_assumed(
    make: Make, orders: int, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is made beside the reading: what fails there ends the export, and nobody retries it in vain."""
    from postgres_to_s3 import connections

    def refuse(*_: object) -> None:
        answer = {"Error": {"Code": "AccessDenied", "Message": "not authorized to perform: sts:AssumeRole"}}
        raise ClientError(answer, "AssumeRole")  # type: ignore[arg-type]

    monkeypatch.setattr(connections.S3Hook, "get_client_type", refuse)
    told = r"(?s)sts:AssumeRole, while logging in.*Nothing was published.*to assume"
    with pytest.raises(StoreError, match=told) as caught:
        make().execute(CONTEXT)
    assert caught.value.transient is False
    assert keys(client, bucket) == []


def test_the_user_agent_names_the_operator(make: Make) -> None:
    """As that of Airflow's own hook does."""
    from postgres_to_s3 import s3_bucket

    assert "Caller/PostgresToS3Operator" in s3_bucket("exports_s3", "b-1").client.meta.config.user_agent_extra


def test_threads_share_a_client(make: Make) -> None:
    """It is made once, although several need it at the same time."""
    from postgres_to_s3 import s3_bucket

    shared, together = s3_bucket("exports_s3", "exports"), threading.Barrier(5)

    def client(_: int) -> Any:
        together.wait()
        return shared.client

    with ThreadPoolExecutor(5) as pool:
        assert len(set(map(id, pool.map(client, range(5))))) == 1


def test_the_client_is_made_of_botocores_models(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows what boto3's own client knows, also if a folder of one's own has a newer model."""
    from postgres_to_s3 import s3_bucket

    def model(client: Any) -> dict[str, Any]:
        described: dict[str, Any] = client.meta.service_model._service_description  # there is no public name
        return described

    theirs, ours = (
        model(boto3.session.Session().client("s3", "eu-west-1")),
        model(s3_bucket("exports_s3", "exports").client),
    )
    assert ours["shapes"] == theirs["shapes"]
    assert ours["operations"].keys() == theirs["operations"].keys()
    newer = tmp_path / "s3" / "2099-01-01"
    newer.mkdir(parents=True)
    (newer / "service-2.json").write_text(json.dumps(theirs | {"documentation": "newer"}))
    monkeypatch.setenv("AWS_DATA_PATH", f"{tmp_path}{os.pathsep}{'x' * 300}")  # too long for a folder's name
    assert model(s3_bucket("exports_s3", "exports").client)["documentation"] == "newer"


def test_on_kill(make: Make, orders: int, client: Any, bucket: str, engine: sa.Engine) -> None:
    """on_kill cancels the query on the server and leaves neither object nor upload."""
    operator = make(query="SELECT id, pg_sleep(60)::text AS a FROM orders", unique_key=None)
    raised: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute(CONTEXT)
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=execute)
    thread.start()
    while not queries(engine, "%pg_sleep%"):
        assert thread.is_alive()
    operator.on_kill()
    thread.join(30)
    assert [type(exc) for exc in raised] == [ExportCancelled]
    assert queries(engine, "%pg_sleep%") == []
    assert keys(client, bucket) == []
    assert open_uploads(client, bucket) == []


def test_a_dba_sees_who_reads(make: Make, orders: int, client: Any, bucket: str) -> None:
    """The connections' application_name has the DAG, the task and the run."""
    make(query="SELECT current_setting('application_name') AS name", unique_key=None).execute(CONTEXT)
    assert content(client, bucket, "a/file.csv") == b"name\nairflow a_dag.a_task a_run\n"


def queries(engine: sa.Engine, pattern: str) -> list[str]:
    """Running statements like `pattern`, but for this one."""
    with engine.connect() as connection:
        return list(
            connection.scalars(
                sa.text(
                    "SELECT query FROM pg_stat_activity"
                    " WHERE state = 'active' AND pid <> pg_backend_pid() AND query LIKE :pattern"
                ),
                {"pattern": pattern},
            )
        )


def test_a_preview_that_is_text_is_refused(make: Make, orders: int, client: Any, bucket: str) -> None:
    """A template that renders to "False" must not be taken for true: an export would silently write nothing."""
    with pytest.raises(InvalidArgument, match="preview='False' is not allowed"):
        make(preview="False").execute(CONTEXT)
    assert keys(client, bucket) == []


def test_templates_of_options_are_checked_when_the_task_runs(make: Make, orders: int) -> None:
    """What a template gives is known only then; until it is rendered it is no value of the option."""
    operator = make(compression="{{ params.compression }}", yield_per="{{ params.yield_per }}")
    with pytest.raises(InvalidArgument, match=r"compression='\{\{ params.compression \}\}' is not allowed"):
        operator.execute(CONTEXT)


@pytest.fixture
def mask_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """Airflow's connection `mask_key`, whose password is a key."""
    key = "a key of sixteen bytes or more"
    monkeypatch.setenv("AIRFLOW_CONN_MASK_KEY", json.dumps({"conn_type": "generic", "password": key}))
    return key


def test_the_key_of_a_mask_is_a_connections(
    make: Make, orders: int, client: Any, bucket: str, mask_key: str, engine: sa.Engine
) -> None:
    """The hash is that of the connection's password, which is not in the summary."""
    operator = make(mask={"customer_email": "hash"}, mask_conn_id="mask_key", columns=["id", "customer_email"])
    summary = operator.execute(CONTEXT)
    _, first, *_ = content(client, bucket, "a/file.csv").decode().splitlines()
    with engine.connect() as connection:
        email = connection.exec_driver_sql("SELECT customer_email FROM orders ORDER BY id LIMIT 1").scalar_one()
    assert first == f"1,{hmac.digest(mask_key.encode(), email.encode(), 'sha256').hex()}"
    assert mask_key not in str(summary)


def test_a_hash_without_a_key_is_refused_when_the_dag_is_parsed(make: Make) -> None:
    """A mask that needs a key names the connection that has it."""
    with pytest.raises(InvalidArgument, match="mask_conn_id=None is not allowed: a connection whose password"):
        make(mask={"customer_email": "hash"})


def test_rendered_parameters_are_shown(make: Make, orders: int, client: Any, bucket: str) -> None:
    """Airflow stores and shows the values of parameters, as those of its own operators; its masker hides secrets."""
    from airflow.sdk.execution_time.task_runner import _serialize_rendered_fields
    from airflow.sdk.log import mask_secret

    operator = make(
        query="SELECT id FROM orders WHERE customer_email <> :secret AND created_at >= :since AND id <> ALL(:ids)",
        parameters={"secret": "{{ secret }}", "since": "{{ since }}", "ids": [1, 2]},
    )
    mask_secret("a-secret-of-somebody")
    operator.render_template_fields({"secret": "a-secret-of-somebody", "since": "2026-10-01"})
    shown = _serialize_rendered_fields(operator)["parameters"]
    assert shown == {"secret": "***", "since": "2026-10-01", "ids": [1, 2]}
    assert operator.execute(CONTEXT)["rows"] == orders - 2


def test_parameters_that_are_no_mapping_are_refused(make: Make) -> None:
    """A template that renders to text is no set of values."""
    operator = make(parameters="{{ email }}")
    operator.render_template_fields({"email": "canary@example.com"})
    with pytest.raises(InvalidArgument, match="parameters='str' is not allowed") as caught:
        operator.execute(CONTEXT)
    assert "canary" not in str(caught.value)
