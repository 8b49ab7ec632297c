"""What the operator refuses, when, and by which name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streaming_export import InvalidArgument

Make = Callable[..., Any]


@pytest.fixture
def make(airflow_home: Path) -> Make:
    """Makes an operator, as a DAG file does."""
    from postgres_to_s3 import PostgresToS3Operator

    def operator(**arguments: Any) -> Any:
        defaults = {"task_id": "export", "query": "SELECT 1 AS one", "s3_bucket": "exports", "s3_key": "a.csv"}
        return PostgresToS3Operator(**{**defaults, **arguments})

    return operator


def old_arguments() -> list[str]:
    from airflow.providers.amazon.aws.transfers.sql_to_s3 import SqlToS3Operator

    return [name for name in inspect.signature(SqlToS3Operator.__init__).parameters if name not in ("self", "kwargs")]


def test_every_argument_of_sql_to_s3_operator_is_known(make: Make) -> None:
    """Each is one of ours, or is refused by its name with what to write instead."""
    from postgres_to_s3 import PostgresToS3Operator
    from postgres_to_s3.arguments import OLD_NAMES

    ours = inspect.signature(PostgresToS3Operator.__init__).parameters
    assert [name for name in old_arguments() if name not in ours and name not in OLD_NAMES] == []
    assert [name for name in OLD_NAMES if name in ours] == []
    for name, instead in OLD_NAMES.items():
        with pytest.raises(InvalidArgument, match=rf"^{name}=None is not allowed: ") as caught:
            make(**{name: None})
        assert instead in str(caught.value)
        assert caught.value.__notes__ == ["Task: export."]


def test_an_argument_that_may_hold_a_password_is_not_quoted(make: Make) -> None:
    """Airflow shows the error of a DAG that can't be parsed to everybody."""
    with pytest.raises(InvalidArgument, match=r"^sql_hook_params='dict' is not allowed"):
        make(sql_hook_params={"password": "hunter2"})


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("s3_key", "s3://exports/a.csv", "the key alone, without s3://"),
        ("s3_key", "exports/", "a key that ends in the name of the file"),
        ("s3_key", "s3://exports/{{ ds }}.csv", "the key alone"),
        ("latest_key", "s3://exports/latest.json", "the key alone"),
        ("latest_key", "a.csv", "a key of its own"),
        ("latest_key", "a.csv.manifest.json", "a key of its own"),
        ("window", ["2026-11-01T00:00:00+00:00"], "two times"),
        ("window", "2026-11-01", "two times"),
        ("window", ["2026-11-01", "2026-11-02"], "two times in ISO 8601 with an offset"),
        ("window", ["2026-11-02T00:00:00Z", "2026-11-01T00:00:00Z"], "the first before the second"),
        ("unique_key", ["id", "version"], "composite keys are not supported"),
        ("query", "orders", 'such as "SELECT \\* FROM orders"'),
        ("query", 'shop."Orders"', "a SELECT, such as"),
        ("query", "DELETE FROM orders", "an export only reads"),
        ("query", "-- all\n/* of */ INSERT INTO orders SELECT 1", "an export only reads"),
        ("query", "SELECT * FROM orders WHERE id = %(id)s", "write :id"),
        ("query", "SELECT * FROM orders WHERE id = %s", "write :name, and a value for each name into parameters"),
        ("query", "SELECT * FROM orders WHERE name LIKE %s LIMIT %s", "write :name"),
        ("parameters", ["paid"], "a value for each name"),
        ("parameters", ("paid",), "a value for each name"),
        ("overwrite", "no", "one of True, False"),
    ],
)
def test_what_no_run_could_use_is_refused_when_the_dag_is_parsed(
    make: Make, argument: str, value: Any, says: str
) -> None:
    """By the operator's own name of the argument."""
    with pytest.raises(InvalidArgument, match=f"(?s)^{argument}=.* is not allowed: .*{says}"):
        make(**{argument: value})


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": "orders.sql"},
        {"query": "{{ params.query }}"},
        {"query": "WITH a AS (SELECT 1 AS one) SELECT * FROM a"},
        {"query": "(SELECT 1 AS one) UNION ALL SELECT 2"},
        {"query": "-- one\nSELECT '%(not)s a parameter' AS one"},
        {"query": "SELECT a %s AS rest, 'id = %s' AS text FROM (SELECT 5 AS a, 3 AS s) AS q"},
        {"query": "VALUES (1)"},
        {"query": "TABLE orders"},
        {"parameters": "{{ params.all }}"},
        {"window": "{{ params.window }}"},
        {"window": ["{{ data_interval_start }}", "{{ data_interval_end }}"]},
        {"window": ("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z")},
        {"s3_key": "{{ params.key }}"},
        {"overwrite": False},
    ],
    ids=str,
)
def test_what_a_run_may_use_is_accepted(make: Make, arguments: dict[str, Any]) -> None:
    """A template stands for anything until it is rendered; not every query begins with SELECT."""
    operator = make(**arguments)
    taken = {**vars(operator), **dataclasses.asdict(operator.options)}
    assert {name: taken[name] for name in arguments} == arguments


@pytest.mark.parametrize(
    ("argument", "template", "rendered"),
    [
        ("s3_key", "{{ key }}", "s3://exports/a.csv"),
        ("query", "{{ query }}", "orders"),
        ("window", ["{{ begin }}", "{{ end }}"], ["2026-11-01", "2026-11-02"]),
    ],
)
def test_templates_are_checked_when_the_task_runs(make: Make, argument: str, template: Any, rendered: Any) -> None:
    """The same rules hold for what they are rendered to."""
    operator = make(**{argument: template})
    setattr(operator, argument, rendered)
    with pytest.raises(InvalidArgument, match=f"^{argument}="):
        operator._check(rendered=True)
