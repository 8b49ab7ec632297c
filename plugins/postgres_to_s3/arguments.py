"""Refuses wrong arguments of the operator before anything is read; if possible, when the DAG is parsed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from streaming_export import Bucket, InvalidArgument, ManifestError, StoreError, check_key
from streaming_export.manifest import manifest_key
from streaming_export.manifest_reader import read
from streaming_export.options import check_window

_NO_FRAME = "there is no data frame in between"
_TYPES = f"{_NO_FRAME}: cast columns in the query to change their types"

#: Arguments of `SqlToS3Operator` that this operator does not have: what to write instead, or why there is none.
OLD_NAMES = {
    "sql_conn_id": "write postgres_conn_id",
    "sql_hook_params": "write libpq's options into the extra of the connection postgres_conn_id",
    "replace": "write overwrite; overwrite=False is replace=False, but the default here is to replace",
    "file_format": "every file is CSV; for Parquet or JSON, use SqlToS3Operator",
    "max_rows_per_file": "write max_file_rows",
    "df_type": _NO_FRAME,
    "df_kwargs": f"{_NO_FRAME}: columns, mask and compression choose what the file is like",
    "pd_kwargs": f"{_NO_FRAME}: columns, mask and compression choose what the file is like",
    "read_kwargs": _TYPES,
    "read_pd_kwargs": _TYPES,
    "groupby_kwargs": "write one task for each group: .partial(…).expand_kwargs([{'parameters': …, 's3_key': …}, …])",
    "verify": "write it into the extra of the connection aws_conn_id",
}

#: The engine's names of arguments, and the operator's.
_NAMES = {"key": "s3_key", "bucket": "s3_bucket", "mask_key": "mask_conn_id"}

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
_NAME = re.compile(r'(?:"[^"]+"|[\w$]+)(?:\.(?:"[^"]+"|[\w$]+))*')
# Where %s can't be a modulo.
_POSITIONAL = re.compile(r"(?:[=<>(,]|\b(?:like|ilike|limit|offset|between|and|or|not|in))\s*%s\b", re.IGNORECASE)
_READING = ("select", "with", "values", "table")


def check_names(given: Mapping[str, object]) -> None:
    """Refuse arguments of `SqlToS3Operator`; the error says what to write instead.

    :raises InvalidArgument: naming the first of them.
    """
    for name, instead in OLD_NAMES.items():
        if name in given:
            value = given[name]  # a mapping may hold a password
            raise InvalidArgument(name, type(value).__name__ if isinstance(value, Mapping) else value, instead)


@contextlib.contextmanager
def of_task(task_id: object) -> Iterator[None]:
    """Add the task's id to an error in the block: for a DAG that can't be parsed, Airflow shows only our frames."""
    try:
        yield
    except InvalidArgument as exc:
        exc.add_note(f"Task: {task_id}.")
        raise


def check(
    *, query: Any, parameters: Any, unique_key: Any, s3_key: Any, latest_key: Any, window: Any, rendered: bool
) -> None:
    """Refuse arguments that no run could use.

    :param rendered: whether templates are filled in; if not, they are not checked.
    :raises InvalidArgument: naming the argument.
    """
    if parameters is not None and not isinstance(parameters, Mapping) and (rendered or not is_template(parameters)):
        kind = type(parameters).__name__
        raise InvalidArgument("parameters", kind, "a value for each name, as in {'day': …} for :day in the query")
    if unique_key is not None and not isinstance(unique_key, str):
        allowed = "one column: composite keys are not supported; add a unique column to the query, or pass None"
        raise InvalidArgument("unique_key", unique_key, allowed)
    if isinstance(query, str) and (rendered or not is_template(query)):
        _check_query(query)
    for name, key in (("s3_key", s3_key), ("latest_key", latest_key or "")):
        # With render_template_as_native_obj, digits become an int; None, which is no name, would become "None".
        if rendered and (isinstance(key, bool) or not isinstance(key, str | int)):
            raise InvalidArgument(name, key, "a text; a template of it gave something else")
        if isinstance(key, str) and key.startswith("s3://"):
            raise InvalidArgument(name, key, "the key alone, without s3:// and the bucket")
        if isinstance(key, str) and key.endswith("/"):
            raise InvalidArgument(name, key, "a key that ends in the name of the file, as in orders/orders.csv")
    if latest_key and s3_key and str(latest_key) in (str(s3_key), manifest_key(str(s3_key))):
        raise InvalidArgument("latest_key", latest_key, "a key of its own: it would replace the file or its manifest")
    if window is not None and (rendered or not is_template(window)):
        _check_window(window, rendered)


def check_own(bucket: Bucket, key: str, run: Mapping[str, Any], *, since: datetime) -> None:
    """Refuse the key of a mapped task if another task of the mapping has exported to it: its file would be lost.

    :param run: what the manifest will say of the task.
    :param since: when the run began, or was cleared: what its tasks have exported before may be replaced.
    :raises InvalidArgument: naming the other task.
    :raises StoreError: if the store failed.
    """
    check_key("s3_key", key)
    try:
        there = read(bucket, bucket.url(manifest_key(key)))
    except ManifestError:
        return  # there is none, or the export replaces it
    except StoreError as exc:
        exc.during("Nothing was published.")
        raise
    same = all(there.run.get(name) == run[name] for name in ("dag", "task", "run"))
    if same and there.run.get("map_index") != run["map_index"] and there.started_at >= since:
        allowed = (
            f"task {there.run.get('map_index')} of this mapping has exported to it; give each task a key of its own"
        )
        raise InvalidArgument("s3_key", key, allowed)


def is_template(value: object) -> bool:
    """Whether a value is a template that Airflow has not filled in yet."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def named(exc: InvalidArgument) -> InvalidArgument:
    """An error of the engine, with the operator's name of the argument."""
    name = _NAMES.get(exc.argument)
    return exc if name is None else InvalidArgument(name, exc.value, exc.allowed)


def _check_query(query: str) -> None:
    text = _COMMENT.sub(" ", query).strip(" \n\t\r;(\ufeff")
    if text.endswith(".sql") or not text:
        return  # Airflow reads the file; the engine refuses an empty query
    if _NAME.fullmatch(text):
        raise InvalidArgument("query", text, f'a SELECT, such as "SELECT * FROM {text}"')
    word = re.match(r"\w*", text)
    if word is None or word[0].lower() not in _READING:
        raise InvalidArgument("query", f"{text[:20]}…", "one SELECT (or WITH, VALUES, TABLE): an export only reads")
    unquoted = _QUOTED.sub("''", text)
    if old := re.search(r"%\((\w+)\)s", unquoted):
        raise InvalidArgument("query", old[0], f"write :{old[1]}")
    if _POSITIONAL.search(unquoted):
        raise InvalidArgument("query", "%s", "write :name, and a value for each name into parameters")


def _check_window(window: Any, rendered: bool) -> None:
    pair = isinstance(window, list | tuple) and len(window) == 2
    if rendered or not pair or not any(map(is_template, window)):
        check_window(window)
