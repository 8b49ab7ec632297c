"""Clients for Airflow's connections."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk.exceptions import AirflowNotFoundException
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import JSONFileLoader, Loader
from sqlalchemy import event
from sqlalchemy.pool import NullPool

from streaming_export import Bucket, InvalidArgument
from streaming_export.s3.codes import store_error

if TYPE_CHECKING:
    from sqlalchemy import Engine

# Defaults that a connection's extras override. libpq waits forever for a host that does not answer, and a firewall may
# drop a connection that is idle for minutes (PostgreSQL manual, 32.1.2 "Parameter Key Words").
_LIBPQ_DEFAULTS = {"connect_timeout": 30, "keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 6}

# Defaults that the connection's ``config_kwargs`` override. `Bucket` repeats requests for a minute; with these
# time-outs, an export ends within two minutes if the store does not answer.
_BOTO_DEFAULTS = Config(connect_timeout=10, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 1})

# An IAM token lets in for 15 minutes, and an export may wait for transactions for hours.
_TOKEN_SECONDS = 600.0


def check_connection(argument: str, conn_id: str) -> None:
    """Refuse a connection that Airflow does not know: its AWS hook would silently use the machine's own credentials.

    :param argument: the operator's argument, for the error.
    :raises InvalidArgument: naming the argument.
    """
    try:
        PostgresHook.get_connection(conn_id)
    except AirflowNotFoundException:
        unknown = InvalidArgument(argument, conn_id, "Airflow has no connection with this id")
        # Airflow's lookup leaves out a backend that fails, without a word above the level DEBUG.
        unknown.remedy = "Add the connection, or correct the id; or clear the task if a secrets backend was down."
        raise unknown from None


def postgres_hook(conn_id: str) -> PostgresHook:
    """The provider's hook for a Postgres connection."""
    return PostgresHook(postgres_conn_id=conn_id, sqlalchemy_scheme="postgresql+psycopg2")


def postgres_engine(conn_id: str) -> Engine:
    """An engine for a Postgres connection, with its libpq options and its IAM login.

    :raises InvalidArgument: if Airflow does not know the connection.
    """
    check_connection("postgres_conn_id", conn_id)
    hook = postgres_hook(conn_id)
    # The hook's URL does not contain these.
    extras = hook.connection.extra_dejson
    options = {name: extras[name] for name in extras.keys() - hook.ignored_extra_options}
    engine = hook.get_sqlalchemy_engine(
        {
            "connect_args": {**_LIBPQ_DEFAULTS, **options},
            "poolclass": NullPool,
            "hide_parameters": True,
            "use_native_hstore": False,
        }
    )
    if extras.get("iam"):
        _renew_token(engine, conn_id)
    return engine


def _renew_token(engine: Engine, conn_id: str) -> None:
    """Have connections that are opened late log in with a new IAM token."""
    made, lock = time.monotonic(), threading.Lock()
    login: dict[str, Any] = {}

    @event.listens_for(engine, "do_connect")
    def log_in(dialect: object, record: object, arguments: object, parameters: dict[str, Any]) -> None:
        nonlocal made
        with lock:
            if time.monotonic() - made > _TOKEN_SECONDS:
                hook = postgres_hook(conn_id)
                login["user"], login["password"], login["port"] = hook.get_iam_token(hook.connection)
                made = time.monotonic()
            parameters.update(login)


def secret(conn_id: str) -> str | None:
    """The password of a connection of any type."""
    check_connection("mask_conn_id", conn_id)
    password: str | None = PostgresHook.get_connection(conn_id).password
    return password


class _Models(Loader):
    """botocore's loader of its models, without the search of 400 services' folders for those that have the file."""

    def list_available_services(self, type_name: str) -> list[str]:
        services: list[str] = []
        for path in map(Path, self.search_paths):
            with contextlib.suppress(OSError):  # the first is in the home directory, which may be another user's
                services += [service.name for service in path.iterdir()]
        return services


class _Files(JSONFileLoader):
    """botocore's reader of its models, without an OrderedDict for each of their 23,000 objects."""

    def load_file(self, file_path: str) -> Any:
        for suffix, opened in ((".json", open), (".json.gz", gzip.open)):
            with contextlib.suppress(FileNotFoundError), opened(file_path + suffix, "rb") as file:
                return json.load(file)
        return None


class _Hook(S3Hook):
    """The provider's hook, made faster: a tenth of an export of a million rows."""

    def _get_caller(self, target_function_name: str = "execute") -> str:
        # For the client's user agent, the provider looks in the sources of all modules on the call stack.
        return "PostgresToS3Operator"

    def get_session(self, region_name: str | None = None, deferrable: bool = False) -> Any:
        session = super().get_session(region_name, deferrable)
        botocore = session._session  # boto3 has no other way to it
        paths = botocore.get_component("data_loader").search_paths
        models = _Models(paths, _Files(), include_default_search_paths=False)
        botocore.register_component("data_loader", models)
        return session


def s3_bucket(conn_id: str | None, name: str, extra_args: Mapping[str, Any] | None = None) -> Bucket:
    """A bucket for an AWS connection, with its endpoint, role and ``config_kwargs``; the first request logs in.

    :param conn_id: None for the machine's own credentials.
    :param extra_args: further arguments of the S3 requests, see `Bucket`.
    :raises InvalidArgument: if Airflow does not know the connection, or an argument is not allowed.
    :raises StoreError: by the first request, if its role may not be assumed.
    """
    if conn_id is not None:
        check_connection("aws_conn_id", conn_id)
    hook = _Hook(aws_conn_id=conn_id)
    # Airflow's connection is asked for here: in a task, that goes through its supervisor.
    region, config = hook.region_name, _BOTO_DEFAULTS.merge(hook.config)

    @functools.cache
    def make() -> Any:
        try:
            return hook.get_client_type(region, config)
        except (ClientError, BotoCoreError) as exc:
            error = store_error(f"logging in to reach s3://{name}", exc)
            if not error.transient:
                error.remedy = "Correct the login of the connection, or allow it to assume the role."
            raise error from exc

    making = threading.Lock()

    def client() -> Any:
        with making:  # threads that need it at the same time wait for the one that makes it
            return make()

    return Bucket(client, name, extra_args)
