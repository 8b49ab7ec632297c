"""Queries that ask for the time, or give other rows each time: one time in all rows, and the right count."""

from __future__ import annotations

import csv
import io
import tracemalloc
from typing import Any

import pytest
import sqlalchemy as sa

from streaming_export import CsvStream, open_csv
from tests.streaming_export.exporting import take_options
from tests.streaming_export.postgres.statements import another

ROWS = 2_000

#: Queries of a table `events`, of 2,000 rows with the key `id`, half of which are at least a second old, by what is to
#: be done: "ranges" reads in parallel; "one stream" by one connection, while the owner counts; "once" by one that also
#: counts; "uncounted" by one that can't.
QUERIES = {
    "ranges": [
        "SELECT id, at FROM events",
        "SELECT id, at FROM events WHERE at < '2999-01-01' AND lower('nowhere') <> 'knows'",
        "SELECT id, 'it''s now() or CURRENT_DATE, random()' AS at FROM events",
        'SELECT id, at AS "now()" FROM events',
        "SELECT id, to_char(at, 'YYYY') AS at FROM events WHERE date_trunc('day', at) > '1999-01-01'",
        "SELECT id, own_immutable(id) AS at FROM events",
        "SELECT e.id, (SELECT max(i) FROM generate_series(1, 3) AS i) AS at FROM events AS e JOIN odd USING (id)",
        "SELECT id, (SELECT at FROM events AS f WHERE f.id >= e.id ORDER BY f.id LIMIT 1) AS at FROM events AS e",
        "SELECT id, at FROM events WHERE id <= (SELECT max(id) FROM events)",
    ],
    "one stream": [
        "SELECT row_number() OVER () AS id, at FROM events",
        "SELECT row_number() OVER (ORDER BY at) AS id, at FROM events",
        f"SELECT id, at FROM events LIMIT {ROWS}",
        f"WITH w AS MATERIALIZED (SELECT id, at FROM events LIMIT {ROWS}) SELECT id, at FROM w",
        f"SELECT id, at FROM events WHERE id IN (SELECT id FROM odd LIMIT {ROWS})",
        f"SELECT id, at FROM events WHERE id > (SELECT id - {ROWS} FROM events LIMIT 1)",
        f"SELECT id, at FROM events WHERE id NOT IN (SELECT -id FROM events LIMIT {ROWS})",
        f"SELECT id, at FROM events WHERE id > ALL (SELECT -id FROM (SELECT id FROM odd LIMIT {ROWS}) AS o ORDER BY 1)",
        f"SELECT id, at FROM events WHERE id > ALL"
        f" (WITH w AS MATERIALIZED (SELECT -id AS id FROM odd LIMIT {ROWS}) SELECT id FROM w)",
        "SELECT DISTINCT ON (id) id, at FROM events ORDER BY id",
    ],
    "once": [
        "SELECT id, now() AS at FROM events",
        """SELECT id, "it's", now() AS at, "it's" AS b FROM apostrophe""",
        "SELECT id, CURRENT_TIMESTAMP AS at FROM events",
        "SELECT id, CURRENT_DATE AS at FROM events",
        "SELECT id, LOCALTIME AS at FROM events",
        "SELECT id, transaction_timestamp() AS at FROM events",
        "SELECT id, 'now'::timestamptz AS at FROM events",
        "SELECT id, timestamptz ' Now ' AS at FROM events",
        "SELECT id, 'today'::date AS at FROM events",
        "SELECT id, at FROM events WHERE at < now() - interval '30 minutes'",
        "SELECT id, at FROM events WHERE at < 'now'::timestamptz - interval '30 minutes'",
        "SELECT id, at FROM hidden",
        "SELECT id, at FROM deeper WHERE id > 0",
        "SELECT id, now FROM restored",
        "SELECT id, $$now$$::timestamptz AS now FROM events",
        "SELECT id, own_stable() AS at FROM events",
        'SELECT id, "Own Stable"() AS at FROM events',
        "SELECT id, at FROM events WHERE own_stable() > at",
        "SELECT id, own_sql() AS at FROM events",
        "SELECT id, pg_backend_pid() AS at FROM events",
        "SELECT id, age(at) > '-1 day' AS at FROM events",
        "SELECT id, (SELECT max(now()) FROM odd) AS at FROM events",
        "SELECT id, '2999-01-01'::timestamptz - now() AS at FROM events ORDER BY now()",
    ],
    "uncounted": [
        "SELECT id, statement_timestamp() AS at FROM events",
        "SELECT id, clock_timestamp() AS at FROM events",
        "SELECT id, random() AS at FROM events",
        """SELECT id, "it's" AS at FROM apostrophe WHERE random() < 0.5 AND "it's" IS NULL""",
        "SELECT id, at FROM events WHERE random() < 0.5",
        "SELECT id, gen_random_uuid() AS at FROM events",
        "SELECT id, at FROM lottery",
        "SELECT id, own_volatile() AS at FROM events",
        "SELECT id, at FROM events WHERE own_volatile() > 0.5",
        "SELECT id, at FROM events TABLESAMPLE SYSTEM (100)",
        "SELECT id, at FROM events TABLESAMPLE BERNOULLI (50)",
    ],
}
ALL = [(expected, query) for expected, queries in QUERIES.items() for query in queries]


@pytest.fixture(scope="module")
def events(engine: sa.Engine, exporter: sa.Engine) -> Any:
    """An engine whose search path has what the queries ask for."""
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(
            f"""
            CREATE SCHEMA test_plan;
            GRANT USAGE ON SCHEMA test_plan TO PUBLIC;
            ALTER DEFAULT PRIVILEGES IN SCHEMA test_plan GRANT SELECT ON TABLES TO PUBLIC;
            SET LOCAL search_path = test_plan;
            CREATE TABLE events (id int PRIMARY KEY, at timestamptz);
            INSERT INTO events SELECT i, now() - interval '1 hour' * (i % 2) FROM generate_series(1, {ROWS}) AS i;
            CREATE TABLE odd AS SELECT id FROM events;
            ALTER TABLE odd ADD PRIMARY KEY (id);
            CREATE TABLE apostrophe AS SELECT id, NULL::int AS "it's" FROM events;
            ALTER TABLE apostrophe ADD PRIMARY KEY (id);
            CREATE VIEW hidden AS SELECT id, now() AS at FROM events;
            CREATE VIEW deeper AS SELECT * FROM hidden WHERE id > -1;
            CREATE VIEW restored AS SELECT id, ('now'::text)::timestamp(6) AS now FROM events;
            CREATE VIEW lottery AS SELECT id, random() AS at FROM events;
            CREATE FUNCTION own_immutable(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN n + 1; END';
            CREATE FUNCTION own_stable() RETURNS timestamptz LANGUAGE plpgsql STABLE AS 'BEGIN RETURN now(); END';
            CREATE FUNCTION "Own Stable"() RETURNS timestamptz LANGUAGE plpgsql STABLE AS 'BEGIN RETURN now(); END';
            CREATE FUNCTION own_sql() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now()';
            CREATE FUNCTION own_volatile() RETURNS float LANGUAGE plpgsql AS 'BEGIN RETURN random(); END';
            ANALYZE events; ANALYZE odd; ANALYZE apostrophe
            """
        )
    url = exporter.url.update_query_dict({"options": "-c search_path=test_plan"})
    yield sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA test_plan CASCADE")


@pytest.mark.parametrize(("expected", "query"), ALL, ids=[query for _, query in ALL])
def test_a_query_gives_the_rows_of_one_time(
    events: sa.Engine, ranges: None, caplog: pytest.LogCaptureFixture, expected: str, query: str
) -> None:
    """A query of the time is read and counted in one transaction; a volatile one is read once, with a warning.

    One that numbers or limits rows is read as one stream, too: each range would run it anew, with other rows.
    """
    caplog.set_level("INFO", "streaming_export")
    rows, stream, connections = read_all(events, query, {"yield_per": 100, "readers": 3})
    assert connections == (4 if expected == "ranges" else 2)  # the snapshot's owner, and the readers
    repeats = {"ranges": "always", "one stream": "as many", "once": "in one transaction"}
    assert stream.plan.repeats == repeats.get(expected, "never")
    assert stream.verified is (expected != "uncounted")
    assert bool([record for record in caplog.records if record.levelname == "WARNING"]) is (expected == "uncounted")
    assert bool([message for message in caplog.messages if "one connection" in message]) is (expected != "ranges")
    ids = [int(row[0]) for row in rows]
    assert ids == sorted(set(ids))
    if expected != "uncounted":
        assert len(rows) == (ROWS // 2 if "- interval" in query else ROWS)
    if expected == "once" and "SELECT id, at" not in query:
        assert len({row[1] for row in rows}) == 1


@pytest.mark.parametrize("method", ["copy", "rows"])
@pytest.mark.parametrize("unique_key", ["id", None])
def test_the_time_of_a_busy_table(
    events: sa.Engine, engine: sa.Engine, ranges: None, method: Any, unique_key: str | None
) -> None:
    """Rows that pass a border of time while they are read are in the file as in the count."""
    # Every row passes the border within two seconds: at each time there are others.
    query = (
        "SELECT id, now() AS at FROM events WHERE"
        " (extract(epoch FROM now()) * 1000)::bigint % 1000 > id % 1000 AND 0 <= id"
    )
    found = set()
    for _ in range(3):
        rows, stream, _ = read_all(events, query, {"method": method, "yield_per": 100}, unique_key)
        assert stream.verified
        assert len({row[1] for row in rows}) <= 1
        found.add(len(rows))
    assert len(found) > 1


def read_all(
    engine: sa.Engine, query: str, options: dict[str, Any], unique_key: str | None = "id"
) -> tuple[list[list[str]], CsvStream, int]:
    """The rows without the header, the stream, and the number of connections."""
    own, connections = another(engine), []
    sa.event.listen(own, "connect", lambda connection, record: connections.append(record))
    with open_csv(query, engine=own, unique_key=unique_key, options=take_options(dict(options))) as stream:
        data = b"".join(stream)
        connected = len(connections)
    return list(csv.reader(io.StringIO(data.decode(), newline="")))[1:], stream, connected


def test_without_the_count_a_volatile_query_is_no_reason_to_warn_of_it(
    events: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """It says that the query is volatile, and claims no count that nobody asked for."""
    options = take_options({"verify_rows": False})
    with open_csv("SELECT id, random() FROM events", engine=events, options=options) as stream:
        assert b"".join(stream).count(b"\n") == ROWS + 1
        assert stream.verified is False
    assert "volatile function" in caplog.text
    assert "counted" not in caplog.text


def test_a_long_value_costs_some_copies(events: sa.Engine) -> None:
    """The plan has the values of parameters: looking for functions in it takes no more than a few times their size."""
    text = "it's now() " * 50_000
    tracemalloc.start()
    try:
        with open_csv("SELECT id, :text AS text FROM events WHERE id = 1", {"text": text}, engine=events) as stream:
            assert stream.plan.repeats == "always"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(text)


def test_what_the_planner_estimates(events: sa.Engine) -> None:
    """Rows, bytes and cost, before a row is read."""
    with open_csv("SELECT * FROM events", engine=events) as stream:
        found = stream.plan
    assert found.rows == ROWS
    assert found.bytes >= ROWS * 12
    assert found.cost > 0
