"""A unique key that is not: the export says so, with the count; nothing is asked where an index says that it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from streaming_export import open_csv
from streaming_export.postgres import counting, reader
from streaming_export.postgres.counting import KeyFaults
from tests.conftest import SEARCH_PATH, content, new_schema
from tests.streaming_export.exporting import export, take_options
from tests.streaming_export.postgres.statements import another, watched

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY, name text);
CREATE TABLE child (id int REFERENCES parent, line int, PRIMARY KEY (id, line));
CREATE TABLE parted (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (3);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (3) TO (9);
CREATE TABLE nullable (id int UNIQUE);
CREATE TABLE partly (id int NOT NULL, kept boolean);
CREATE UNIQUE INDEX ON partly (id) WHERE kept;
CREATE TABLE heir () INHERITS (partly);
CREATE TABLE old (id int PRIMARY KEY);
CREATE TABLE young () INHERITS (old);
CREATE TABLE unchecked (id int UNIQUE);
INSERT INTO unchecked VALUES (1), (NULL);
ALTER TABLE unchecked ADD CONSTRAINT later NOT NULL id NOT VALID;
CREATE VIEW seen AS SELECT id FROM parent;
INSERT INTO parent SELECT i, 'row ' || i FROM generate_series(1, 5) AS i;
INSERT INTO child VALUES (1, 1), (1, 2), (1, 3), (2, 1);
INSERT INTO parted SELECT * FROM parent;
INSERT INTO nullable VALUES (1), (NULL), (NULL);
INSERT INTO partly VALUES (1, true), (1, false), (1, false);
INSERT INTO old VALUES (1), (2);
INSERT INTO young VALUES (2), (3);
ANALYZE
"""

BY_INDEX = [
    "SELECT * FROM parent",
    "SELECT name, id AS id FROM parent WHERE id > 1 AND name <> 'x'",
    "SELECT * FROM parent ORDER BY name LIMIT 3",
    "WITH w AS (SELECT * FROM parent) SELECT id FROM w",
    "SELECT id, (SELECT max(line) FROM child) AS lines FROM parent",
    "SELECT id, (SELECT max(line) FROM child AS c WHERE c.id = p.id) AS lines FROM parent AS p",
    "SELECT id, count(*) OVER () AS others FROM parent",
    "SELECT p.id FROM parent AS p LEFT JOIN parent AS q USING (id)",
    "SELECT * FROM parted",
    "SELECT DISTINCT id FROM parent",
]

BY_COUNT = {
    "SELECT p.id FROM parent AS p JOIN child USING (id)": KeyFaults(0, 2),
    "SELECT id FROM parent UNION ALL SELECT id FROM parent": KeyFaults(0, 5),
    "SELECT id FROM (SELECT id FROM parent UNION ALL SELECT 7) AS u": KeyFaults(0, 0),
    "SELECT id, unnest(ARRAY[1, 2]) AS line FROM parent": KeyFaults(0, 5),
    "SELECT id, line FROM child": KeyFaults(0, 2),
    "SELECT id FROM nullable": KeyFaults(2, 0),
    "SELECT id FROM unchecked": KeyFaults(1, 0),
    "SELECT id FROM partly": KeyFaults(0, 2),
    "SELECT id FROM old": KeyFaults(0, 1),
    "SELECT id FROM seen": KeyFaults(0, 0),
    "SELECT id / 2 AS id FROM parent": KeyFaults(0, 2),
    "SELECT id FROM generate_series(1, 3) AS id": KeyFaults(0, 0),
    "SELECT p.id FROM nullable AS n LEFT JOIN parent AS p USING (id)": KeyFaults(2, 0),
    "SELECT id FROM (VALUES (1), (1), (NULL)) AS v (id)": KeyFaults(1, 1),
    "SELECT id, now() AS at FROM child": KeyFaults(0, 2),
}


@pytest.fixture(scope="module")
def made(engine: sa.Engine) -> Iterator[str]:
    """A schema of tables with and without keys."""
    with new_schema(engine) as name:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL search_path = {name}; {TABLES}")
        yield name


@pytest.fixture
def tables(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables with and without keys, which no test changes."""
    monkeypatch.setenv("PGOPTIONS", SEARCH_PATH + made)


def look(exporter: sa.Engine, query: str, **options: Any) -> tuple[KeyFaults | None, list[str]]:
    """What is found in a query's key `id`, and the statements that looked for it."""
    statements: list[str] = []
    watching = watched(another(exporter), statements.append)
    with open_csv(query, engine=watching, unique_key="id", options=take_options(options)) as csv:
        for _ in csv:
            pass
        return csv.key_faults, [one for one in statements if "count(DISTINCT" in one]


@pytest.mark.parametrize("query", BY_INDEX)
def test_an_index_answers(tables: None, exporter: sa.Engine, query: str) -> None:
    """A column with a unique index, of a query that gives each of its rows once, costs no question."""
    assert look(exporter, query) == (KeyFaults(0, 0), [])
    assert look(exporter, query, verify_rows=False) == (KeyFaults(0, 0), [])


@pytest.mark.parametrize("how", ["ranges", "stream", "rows"])
@pytest.mark.parametrize("query", BY_COUNT)
def test_the_database_counts(
    tables: None, exporter: sa.Engine, query: str, how: str, request: pytest.FixtureRequest
) -> None:
    """Everything else is counted, once, by whichever way the query is read."""
    if how == "ranges":
        request.getfixturevalue("ranges")
    options = {"ranges": {}, "stream": {"readers": 1}, "rows": {"method": "rows"}}[how]
    found, asked = look(exporter, query, **options)
    assert (found, len(asked)) == (BY_COUNT[query], 1)


def test_nobody_looks_where_nobody_counts(tables: None, exporter: sa.Engine) -> None:
    """Without verify_rows, for a volatile query, and without a key, nothing is known."""
    assert look(exporter, "SELECT id FROM child", verify_rows=False) == (None, [])
    assert look(exporter, "SELECT id, random() AS r FROM child") == (None, [])
    with open_csv("SELECT id FROM child", engine=exporter) as csv:
        assert (b"".join(csv).count(b"\n"), csv.key_faults) == (5, None)


def test_the_end_of_an_export_warns(
    tables: None, exporter: sa.Engine, client: Any, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the count, in lines that the log view shows; the file has all rows, and is published."""
    place: dict[str, Any] = {"engine": exporter, "client": client, "bucket": bucket, "key": "a.csv", "unique_key": "id"}
    result = export("SELECT id FROM (VALUES (1), (1), (NULL), (2), (1)) AS v (id)", **place)
    assert content(client, bucket, "a.csv") == b"id\n1\n1\n1\n2\n\n"
    assert (result.rows, result.rows_verified, result.unique) == (5, True, False)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "unique_key='id' should be unique and never NULL, but 1 row has NULL and 2 rows repeat a value of another.",
        "The file is whole, but an ingest will refuse it. Correct the query, and export again.",
    ]
    caplog.clear()
    assert export("SELECT * FROM parent", **place).unique is True
    assert export("SELECT id FROM seen", **place).unique is True
    assert export("SELECT id FROM child", verify_rows=False, **place).unique is None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_look_that_takes_long_is_left(
    tables: None, exporter: sa.Engine, ranges: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside readers of ranges it counts nothing that is needed: the export goes on, and the log says so."""
    caplog.set_level("INFO", "streaming_export")
    slow = "SELECT count(*), count(id), count(DISTINCT id) FROM child, pg_sleep(5)"
    monkeypatch.setattr(reader, "_LOOK_SECONDS", 1.0)
    monkeypatch.setattr(counting.Query, "count_keys", lambda query: slow)
    found, _ = look(exporter, "SELECT id FROM child")
    assert found is None
    assert "It is not known whether unique_key='id' is unique: counting took too long." in caplog.text


def test_a_look_that_fails_fails_nothing(
    tables: None, exporter: sa.Engine, ranges: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the server's temporary files are limited."""
    caplog.set_level("INFO", "streaming_export")
    monkeypatch.setattr(counting.Query, "count_keys", lambda query: "SELECT 1 / 0")
    found, _ = look(exporter, "SELECT id FROM child")
    assert found is None
    assert "It is not known whether unique_key='id' is unique" in caplog.text
