"""Loading an export: exactly what its manifest says, once, or nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from demo import services
from streaming_export import (
    Bucket,
    DatabaseError,
    Export,
    ExportResult,
    ForeignBucket,
    InvalidArgument,
    ManifestInvalid,
    ManifestMissing,
    ObjectChanged,
    Options,
    StoreError,
    VerificationError,
)
from streaming_ingest import ColumnsChanged, IngestResult, ingest
from tests.conftest import content

Publish = Callable[..., ExportResult]
Load = Callable[..., IngestResult]

WINDOW = ("2026-11-01T00:00:00+00:00", "2026-11-02T00:00:00+00:00")


@pytest.fixture
def analytics(engine: sa.Engine, schema: str) -> Iterator[str]:
    """The name of a schema that does not exist yet, gone after the test."""
    name = f"{schema}_a%b"  # to be quoted, and not to be taken for a parameter
    yield name
    with engine.begin() as connection:
        connection.exec_driver_sql(f'DROP SCHEMA IF EXISTS "{name}" CASCADE', execution_options={"no_parameters": True})


@pytest.fixture
def sql(pooled: sa.Engine) -> Callable[[str], list[Any]]:
    """Runs statements, and returns the rows of the last one."""

    def run(statement: str) -> list[Any]:
        with pooled.begin() as connection:
            result = connection.execution_options(no_parameters=True).exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []

    return run


@pytest.fixture
def items(sql: Callable[[str], list[Any]], schema: str) -> None:
    """A table to export, of three rows."""
    sql("CREATE TABLE items (id bigint PRIMARY KEY, name text)")
    sql("INSERT INTO items VALUES (1, 'one'), (2, ''), (3, NULL)")


@pytest.fixture
def publish(exporter: sa.Engine, client: Any, bucket: str) -> Publish:
    """Exports the table items."""

    def run(query: str = "SELECT * FROM items", **arguments: Any) -> ExportResult:
        names = {field.name for field in dataclasses.fields(Options)} & arguments.keys()
        options = Options(**{name: arguments.pop(name) for name in names})
        defaults: dict[str, Any] = {"key": "items.csv", "unique_key": "id", "options": options}
        return Export(query, engine=exporter, bucket=Bucket(client, bucket), **defaults | arguments).run()

    return run


@pytest.fixture
def load(engine: sa.Engine, client: Any, bucket: str, analytics: str) -> Load:
    """Loads an export, or the manifest at a URL, into the table loaded."""

    def run(what: ExportResult | str, **arguments: Any) -> IngestResult:
        url = what if isinstance(what, str) else str(what.manifest_url)
        where = Bucket(arguments.pop("client", client), arguments.pop("bucket", bucket))
        defaults: dict[str, Any] = {"engine": engine, "bucket": where, "table": "loaded", "schema": analytics}
        return ingest(url, **defaults | arguments)

    return run


@pytest.fixture
def loaded(sql: Callable[[str], list[Any]], analytics: str) -> Callable[[], list[Any]]:
    """The rows of the table, by id."""
    return lambda: sql(f'SELECT * FROM "{analytics}".loaded ORDER BY id')


@pytest.fixture
def history(sql: Callable[[str], list[Any]], analytics: str) -> Callable[[], list[Any]]:
    """Mode and rows of each load."""
    return lambda: sql(f'SELECT mode, rows FROM "{analytics}".load_history ORDER BY loaded_at')


@pytest.fixture
def edit(client: Any, bucket: str) -> Callable[..., None]:
    """Changes the manifest of items.csv."""

    def run(change: Callable[[dict[str, Any]], object], key: str = "items.csv.manifest.json") -> None:
        document = json.loads(content(client, bucket, key))
        change(document)
        client.put_object(Bucket=bucket, Key=key, Body=json.dumps(document).encode())

    return run


pytestmark = pytest.mark.usefixtures("items")

# One column of each kind of type that the file has a rule for, or that a database of one's own would not know.
KINDS = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE kinds (
    id uuid PRIMARY KEY, "small, ""i"" nt" smallint, n numeric, n2 numeric(10,2), r real, d double precision,
    yes boolean, t text, v varchar(9), c char(5), one "char", day date, at timestamptz, local timestamp,
    clock time, zoned timetz, span interval, j json, jb jsonb, bytes bytea, ip inet, net cidr, mac macaddr,
    bits bit(4), vbits varbit, p point, tsv tsvector, r4 int4range, mr nummultirange, cash money,
    feeling mood, two pair, pos positive, ints int[], texts text[], days timestamptz[], empty text
);
INSERT INTO kinds VALUES (
    gen_random_uuid(), -32768, 12345678901234567890.000100, 1.50, 0.1, 1e-300, true, E'a,"b"\\n\\\\.\\nü', '', 'ab',
    'x', '4713-01-01 BC', '2026-11-01 01:02:03.4+05', 'infinity', '24:00', '01:02+03', '-1 year 2 days -03:04:05.6',
    '{"a": 1,  "a": null}', '{"b": [1.10]}', '\\x00ff', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03',
    B'0101', B'', '(1,2.5)', 'a:1 b:2', '[1,5)', '{[1,2),[3,4)}', 12.34,
    'sad', '(1,"x,y")', 7, '{1,NULL,3}', '{a,"","NULL",NULL}', '{2026-11-01 01:02:03+00}', NULL
), (
    gen_random_uuid(), NULL, 'NaN', NULL, 'NaN', '-Infinity', false, '', NULL, '', '', 'infinity', '-infinity',
    '0044-03-15 12:00 BC', '00:00', NULL, '0', 'null', 'null', '', NULL, NULL, NULL, NULL, NULL, NULL, '',
    'empty', '{}', NULL, 'ok', '(,)', NULL, '{}', '{}', NULL, NULL
);
"""


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "zstd", "max_file_rows": 1}])
def test_every_kind_of_value_comes_back(
    publish: Publish, load: Load, sql: Callable[[str], list[Any]], analytics: str, options: dict[str, Any]
) -> None:
    """What is loaded equals what was exported, in SQL: in its own type, arrays as jsonb, enums and such as text."""
    sql(KINDS)
    assert load(publish("SELECT * FROM kinds", key="kinds.csv", **options)).rows == 2
    types = dict(
        sql(f"SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute WHERE attnum > 0"
            f" AND attrelid = '\"{analytics}\".loaded'::regclass")
    )  # fmt: skip
    as_text = ["one", "cash", "feeling", "two"]
    assert {types[name] for name in as_text} == {"text"}
    assert types["pos"] == "integer"
    assert {types[name] for name in ("ints", "texts", "days")} == {"jsonb"}
    for name in types:
        quoted = '"' + name.replace('"', '""') + '"'
        source = {"jsonb": f"to_jsonb(s.{quoted})::text"}.get(types[name], f"s.{quoted}::text")
        assert sql(
            f'SELECT count(*) FROM kinds s JOIN "{analytics}".loaded t USING (id)'
            f" WHERE {source} IS NOT DISTINCT FROM t.{quoted}::text"
        ) == [(2,)], name
        if name not in ("pos", "bits") and types[name] not in ("text", "jsonb"):
            kinds = f"SELECT pg_typeof({quoted})::text FROM"
            assert len(sql(f'{kinds} kinds UNION {kinds} "{analytics}".loaded')) == 1, name


def test_first_load_makes_the_table(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], history: Callable[[], list[Any]],
    sql: Callable[[str], list[Any]], analytics: str,
) -> None:  # fmt: skip
    """Schema, table and history are made from the manifest, with the unique key as primary key."""
    result = load(publish())
    assert (result.outcome, result.rows) == ("replaced", 3)
    assert loaded() == [(1, "one"), (2, ""), (3, None)]
    assert history() == [("replaced", 3)]
    assert sql(
        f"SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p'"
        f" AND conrelid = '\"{analytics}\".loaded'::regclass"
    ) == [("PRIMARY KEY (id)",)]


def test_an_export_of_all_rows_replaces_all(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], sql: Callable[[str], list[Any]]
) -> None:
    """Rows that are gone from the source are gone after the next full load."""
    load(publish())
    sql("DELETE FROM items WHERE id < 3; UPDATE items SET name = 'drei'")
    assert load(publish()).outcome == "replaced"
    assert loaded() == [(3, "drei")]


def test_an_export_without_rows_empties_the_table(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]]
) -> None:
    """No rows are as good a state as any other."""
    load(publish())
    assert load(publish("SELECT * FROM items WHERE id > 99")).rows == 0
    assert loaded() == []


def test_a_window_is_put_in_by_the_unique_key(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], history: Callable[[], list[Any]]
) -> None:
    """An export of a window changes and adds its own rows, and leaves all others."""
    load(publish())
    windowed = publish("SELECT 2 AS id, 'zwei' AS name UNION SELECT 4, 'four'", window=WINDOW)
    with pytest.raises(ColumnsChanged, match="id is bigint in the table and integer in the export"):
        load(windowed)
    windowed = publish("SELECT 2::bigint AS id, 'zwei' AS name UNION SELECT 4, 'four'", window=WINDOW)
    assert load(windowed).outcome == "upserted"
    assert loaded() == [(1, "one"), (2, "zwei"), (3, None), (4, "four")]
    assert history() == [("replaced", 3), ("upserted", 2)]


def test_a_window_of_nothing_but_keys(publish: Publish, load: Load, loaded: Callable[[], list[Any]]) -> None:
    """A table of one column takes windows too."""
    load(publish("SELECT id FROM items"))
    load(publish("SELECT id + 1 AS id FROM items", window=WINDOW))
    assert loaded() == [(1,), (2,), (3,), (4,)]


def test_a_window_needs_a_unique_key(publish: Publish, load: Load) -> None:
    """Without a unique key nobody knows which rows those of a window replace: refused."""
    with pytest.raises(ManifestInvalid, match="no unique key"):
        load(publish(unique_key=None, window=WINDOW))


def test_the_same_event_twice(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], history: Callable[[], list[Any]],
    sql: Callable[[str], list[Any]], analytics: str,
) -> None:  # fmt: skip
    """A second delivery changes nothing, also after later loads: not the table, not the history."""
    first = publish(window=WINDOW)
    load(first)
    sql(f"UPDATE \"{analytics}\".loaded SET name = 'touched'")
    before = loaded(), history()
    assert load(first).outcome == "already_loaded"
    assert (loaded(), history()) == before


def test_the_same_event_at_the_same_time(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], history: Callable[[], list[Any]]
) -> None:
    """Loads of one table wait for each other: of eight at once, of the very first export, one does it."""
    first = publish()
    with ThreadPoolExecutor(8) as threads:
        outcomes = sorted(result.outcome for result in threads.map(load, [first] * 8))
    assert outcomes == ["already_loaded"] * 7 + ["replaced"]
    assert (len(loaded()), history()) == (3, [("replaced", 3)])


def test_a_late_event_does_not_bring_old_rows_back(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], sql: Callable[[str], list[Any]]
) -> None:
    """An export whose snapshot is older than that of a loaded export of the same rows is left out."""
    old, old_window = publish(key="old.csv"), publish(key="window.csv", window=WINDOW)
    sql("UPDATE items SET name = 'new'")
    load(publish())
    assert load(old).outcome == "outdated"
    assert load(old_window).outcome == "outdated"
    assert {name for _, name in loaded()} == {"new"}
    assert load(old).outcome == "outdated"


def test_a_late_event_of_a_part_of_a_window(publish: Publish, load: Load, loaded: Callable[[], list[Any]]) -> None:
    """A later snapshot of a longer window has the rows of this one: its older rows are left out."""
    day = publish("SELECT 1::bigint AS id, 'old' AS name", key="day.csv", window=WINDOW)
    load(publish("SELECT 1::bigint AS id, 'new' AS name", key="month.csv", window=(WINDOW[0], "2026-12-01T00:00Z")))
    assert load(day).outcome == "outdated"
    assert loaded() == [(1, "new")]


def test_a_late_event_of_another_window(publish: Publish, load: Load, loaded: Callable[[], list[Any]]) -> None:
    """A later snapshot of another window says nothing of this one's rows."""
    one = publish("SELECT 1::bigint AS id", key="one.csv", window=WINDOW)
    load(publish("SELECT 2::bigint AS id", window=(WINDOW[1], "2026-11-03T00:00:00+00:00")))
    late = load(one)
    assert (late.outcome, late.load_again) == ("upserted", ())
    assert loaded() == [(1,), (2,)]


def test_a_late_event_of_a_row_that_has_moved(publish: Publish, load: Load, loaded: Callable[[], list[Any]]) -> None:
    """A row was in this window before it got into that of a later snapshot, which is named for being loaded again."""
    one = publish("SELECT 1::bigint AS id, 'old' AS name", key="one.csv", window=WINDOW)
    two = publish("SELECT 1::bigint AS id, 'new' AS name", window=(WINDOW[1], "2026-11-03T00:00:00+00:00"))
    load(two)
    late = load(one)
    assert (late.outcome, late.load_again) == ("upserted", (two.manifest_url,))
    again = load(two)
    assert (again.outcome, again.load_again) == ("upserted", ())
    assert loaded() == [(1, "new")]
    assert [load(export).outcome for export in (one, two)] == ["already_loaded"] * 2


def test_a_late_export_of_all_rows_takes_no_window_away(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], history: Callable[[], list[Any]]
) -> None:
    """What a window with a later snapshot had added is named for being loaded again, until it is."""
    all_rows = publish("SELECT 1::bigint AS id", key="all.csv")
    window = publish("SELECT 2::bigint AS id", key="window.csv", window=WINDOW)
    assert load(window).outcome == "upserted"
    first = load(all_rows)
    assert (first.outcome, first.load_again) == ("replaced", (window.manifest_url,))
    assert loaded() == [(1,)]
    again = load(all_rows)
    assert (again.outcome, again.load_again) == ("already_loaded", (window.manifest_url,))
    second = load(window)
    assert (second.outcome, second.load_again) == ("upserted", ())
    assert loaded() == [(1,), (2,)]
    assert load(window).outcome == "already_loaded"


def test_of_a_window_that_was_exported_again_the_last_is_loaded_again(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]]
) -> None:
    """A rerun has replaced the manifest of the first run: it is named once, and not any more when it is loaded."""
    all_rows = publish("SELECT 1::bigint AS id", key="all.csv")
    load(publish("SELECT 2::bigint AS id", key="window.csv", window=WINDOW))
    window = publish("SELECT 3::bigint AS id", key="window.csv", window=WINDOW)
    load(window)
    assert load(all_rows).load_again == (window.manifest_url,)
    again = load(window)
    assert (again.outcome, again.load_again) == ("upserted", ())
    assert loaded() == [(1,), (3,)]


def test_a_later_export_of_all_rows_has_the_windows_too(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]]
) -> None:
    """A window whose snapshot is earlier is not loaded again."""
    load(publish("SELECT 2::bigint AS id", key="window.csv", window=WINDOW))
    assert load(publish("SELECT 1::bigint AS id", key="all.csv")).load_again == ()
    assert loaded() == [(1,)]


def test_a_dropped_table_is_made_anew(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], sql: Callable[[str], list[Any]], analytics: str
) -> None:
    """Dropping the table is how to have an export loaded again: its history goes with it."""
    first = publish()
    load(first)
    sql(f'DROP TABLE "{analytics}".loaded')
    assert load(first).outcome == "replaced"
    assert len(loaded()) == 3


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_an_object_that_was_replaced(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], client: Any, bucket: str, compression: Any
) -> None:
    """If the object is no longer the one that the manifest describes, the error says so and nothing is loaded."""
    load(publish(key="before.csv"))
    result = publish("SELECT 9::bigint AS id, 'nine' AS name", compression=compression)
    client.put_object(Bucket=bucket, Key=result.key, Body=b"id,name\n8,x\n")
    with pytest.raises(ObjectChanged, match=r"replaced \(its ETag differs\)(.|\n)*Nothing was loaded"):
        load(result)
    assert len(loaded()) == 3


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("change", ["same size", "shorter", "longer"])
def test_bytes_that_were_tampered_with(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], client: Any, bucket: str, edit: Callable[..., None],
    compression: Any, change: str,
) -> None:  # fmt: skip
    """Size and SHA-256 of what was streamed are compared: an ETag alone convinces nobody."""
    load(publish(key="before.csv"))
    result = publish("SELECT 9::bigint AS id, 'nine' AS name", compression=compression)
    data = content(client, bucket, str(result.key))
    bad = {"same size": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], "shorter": data[:-1], "longer": data + b"\n"}
    etag = client.put_object(Bucket=bucket, Key=result.key, Body=bad[change])["ETag"].strip('"')
    edit(lambda document: document["files"][0].update(etag=etag))
    with pytest.raises(ObjectChanged, match="is not the object that the manifest describes"):
        load(result)
    assert len(loaded()) == 3


def test_an_object_that_is_gone(publish: Publish, load: Load, client: Any, bucket: str) -> None:
    """The error for a file that the lifecycle removed is not that for a replaced one."""
    result = publish()
    client.delete_object(Bucket=bucket, Key="items.csv")
    with pytest.raises(ObjectChanged, match="it is gone"):
        load(result)


def test_a_manifest_that_cannot_be_used(load: Load, loaded: Callable[[], list[Any]], bucket: str, client: Any) -> None:
    """The error of a manifest (tests/streaming_export/test_manifest.py) says that nothing was loaded."""
    client.put_object(Bucket=bucket, Key="m.json", Body=b"{}")
    for url, error in {"m.json": ManifestInvalid, "none.json": ManifestMissing}.items():
        with pytest.raises(error, match="\nNothing was loaded"):
            load(f"s3://{bucket}/{url}")
    with pytest.raises(ForeignBucket):
        load("s3://another/m.json")


def test_a_manifest_cannot_speak_sql(
    publish: Publish, load: Load, edit: Callable[..., None], sql: Callable[[str], list[Any]], analytics: str
) -> None:
    """Types that are not on the list are text, and names are quoted: nothing of a manifest is run."""
    name = 'x" int); DROP TABLE items; SELECT %s'
    quoted = name.replace('"', '""')
    result = publish(f'SELECT id, name AS "{quoted}" FROM items')
    edit(lambda document: document["columns"][1].update(type="text); DROP TABLE items; --"))
    load(result)
    assert sql(f'SELECT "{quoted}" FROM "{analytics}".loaded WHERE id = 1') == [("one",)]
    assert sql("SELECT count(*) FROM items") == [(3,)]


def test_a_column_that_was_added(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], sql: Callable[[str], list[Any]]
) -> None:
    """A new column is named and nothing is loaded, unless add_columns is set.

    Events from before it stay without effect.
    """
    before, late = publish(key="before.csv"), publish(key="late.csv")
    load(before)
    sql("ALTER TABLE items ADD price numeric, ADD tags text[]; UPDATE items SET price = 1.50, tags = '{a}'")
    result = publish()
    with pytest.raises(ColumnsChanged, match=r"new in the export: price \(numeric\), tags \(jsonb\)(.|\n)*add_columns"):
        load(result)
    assert loaded()[0] == (1, "one")
    load(result, add_columns=True)
    assert load(before).outcome == "already_loaded"
    assert load(late).outcome == "outdated"
    assert [str(value) for value in loaded()[0]] == ["1", "one", "1.50", "['a']"]


def test_columns_that_were_removed_or_changed(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], sql: Callable[[str], list[Any]]
) -> None:
    """A column that is gone or has another type is named; adding columns is no way around it."""
    load(publish())
    sql("ALTER TABLE items DROP name, ADD label text, ALTER id TYPE integer")
    with pytest.raises(ColumnsChanged) as error:
        load(publish(), add_columns=True)
    assert "no longer in the export: name" in str(error.value)
    assert "id is bigint in the table and integer in the export" in str(error.value)
    assert len(loaded()) == 3


def test_columns_in_another_order(publish: Publish, load: Load, loaded: Callable[[], list[Any]]) -> None:
    """Columns are matched by name, not by position."""
    load(publish())
    load(publish("SELECT name, id FROM items"))
    assert loaded()[0] == (1, "one")


def test_rows_are_counted(publish: Publish, load: Load, edit: Callable[..., None]) -> None:
    """If Postgres loaded another number of rows than the manifest lists, everything is rolled back."""
    result = publish()
    edit(lambda document: (document.update(rows=4), document["files"][0].update(rows=4)))
    with pytest.raises(VerificationError, match=r"loaded 3 rows .* lists 4"):
        load(result)


def test_rows_are_counted_by_file(publish: Publish, load: Load, edit: Callable[..., None]) -> None:
    """A total that is right does not excuse files that are not."""
    result = publish(max_file_rows=2)
    edit(lambda document: [file.update(rows=3 - file["rows"]) for file in document["files"]])
    with pytest.raises(VerificationError, match=r"items-00001\.csv, but the manifest lists 1"):
        load(result)


def test_a_header_of_other_columns(publish: Publish, load: Load, edit: Callable[..., None]) -> None:
    """The file's own header has the last word on which column is which."""
    result = publish()
    edit(lambda document: document["columns"].reverse())
    with pytest.raises(DatabaseError, match="BadCopyFileFormat"):
        load(result)


def test_a_manifest_from_before(
    publish: Publish, load: Load, edit: Callable[..., None], loaded: Callable[[], list[Any]]
) -> None:
    """A manifest of an earlier version of this program is loaded, with what it had and this one has not."""
    result = publish()

    def age(document: dict[str, Any]) -> None:
        document.pop("export_id")
        document["unique_key"].update(first="1", last="3")
        for column in document["columns"]:
            column["nullable"] = None

    edit(age)
    assert load(result).outcome == "replaced"
    assert len(loaded()) == 3


def test_errors_hold_no_value_of_a_row(publish: Publish, load: Load, edit: Callable[..., None]) -> None:
    """What Postgres says of a value that it refuses stays out of the error, and so out of logs."""
    result = publish()
    edit(lambda document: document["columns"][1].update(type="integer"))
    with pytest.raises(DatabaseError) as error:
        load(result)
    assert "one" not in str(error.value).split("loading")[1].replace("Nothing", "")
    assert error.value.sqlstate == "22P02"
    assert error.value.__cause__ is None


def test_arguments_are_checked(load: Load) -> None:
    """The history's name is taken, and a name is 1 to 63 bytes."""
    for arguments in ({"table": "load_history"}, {"table": ""}, {"schema": "x" * 64}):
        with pytest.raises(InvalidArgument):
            load("s3://b/k", **arguments)


def test_a_role_that_may_create_nothing(
    publish: Publish, load: Load, engine: sa.Engine, sql: Callable[[str], list[Any]], analytics: str
) -> None:
    """Once all tables are there, a role needs no right to create any."""
    load(publish())
    role = analytics.replace("%", "_")
    sql(f'CREATE ROLE "{role}"; GRANT USAGE ON SCHEMA "{analytics}" TO "{role}"')
    sql(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{analytics}" TO "{role}"')
    limited = sa.create_engine(engine.url, poolclass=sa.pool.NullPool)

    @sa.event.listens_for(limited, "connect")
    def become(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f'SET ROLE "{role}"')
        connection.commit()

    try:
        assert load(publish(), engine=limited).outcome == "replaced"
    finally:
        sql(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


class Failing:
    """A client whose answers end with an error in the middle of the object."""

    def __init__(self, client: Any, error: BaseException) -> None:
        self._client, self._errors = client, [error]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **arguments: Any) -> Any:
        answer = self._client.get_object(**arguments)
        if not arguments["Key"].endswith(".manifest.json"):
            answer["Body"] = self
        return answer

    def read(self, size: int) -> bytes:
        if self._errors:
            raise self._errors.pop()
        return b""


def test_a_store_that_fails_in_the_middle(publish: Publish, load: Load, client: Any) -> None:
    """A connection that breaks while an object is read is an error of the store, and may be retried."""
    from botocore.exceptions import ResponseStreamingError

    result = publish()
    with pytest.raises(StoreError, match="Nothing was loaded"):
        load(result, client=Failing(client, ResponseStreamingError(error="reset")))
    assert load(result).outcome == "replaced"


def test_an_interruption_stays_one(publish: Publish, load: Load, client: Any) -> None:
    """What is raised into a load (a time-out, Ctrl-C) comes out as it is, though the driver stands between."""
    with pytest.raises(KeyboardInterrupt):
        load(publish(), client=Failing(client, KeyboardInterrupt()))


def waiting(sql: Callable[[str], list[Any]]) -> int:
    """The server process that waits for a lock of a table, once there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if rows := sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE%'"):
            return int(rows[0][0])
        time.sleep(0.05)
    raise AssertionError("no load came to its DELETE")


def test_the_connection_is_ended_inside_the_transaction(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], history: Callable[[], list[Any]],
    engine: sa.Engine, sql: Callable[[str], list[Any]], analytics: str,
) -> None:  # fmt: skip
    """If the server ends the load's connection, nothing has changed, and a retry does it."""
    load(publish())
    before = loaded(), history()
    sql("INSERT INTO items VALUES (4, 'four')")
    result = publish()
    with ThreadPoolExecutor(1) as thread, engine.begin() as blocker:
        blocker.exec_driver_sql(f'LOCK "{analytics}".loaded IN SHARE MODE', execution_options={"no_parameters": True})
        future = thread.submit(load, result)
        sql(f"SELECT pg_terminate_backend({waiting(sql)})")
        with pytest.raises(DatabaseError, match="Nothing was loaded"):
            future.result(30)
    assert (loaded(), history()) == before
    assert load(result).outcome == "replaced"
    assert len(loaded()) == 4


PROGRAM = """
import sys, sqlalchemy
from demo import services
from streaming_export import Bucket
from streaming_ingest import ingest
uri, endpoint, url, bucket, schema = sys.argv[1:]
ingest(url, engine=sqlalchemy.create_engine(uri), bucket=Bucket(services.s3_client(endpoint), bucket),
       table="loaded", schema=schema)
"""


def test_the_process_is_killed_inside_the_transaction(
    publish: Publish, load: Load, loaded: Callable[[], list[Any]], history: Callable[[], list[Any]],
    engine: sa.Engine, sql: Callable[[str], list[Any]], analytics: str, endpoint: str, bucket: str,
) -> None:  # fmt: skip
    """If the worker is killed, the server rolls back by itself, and a retry does it."""
    load(publish())
    before = loaded(), history()
    sql("INSERT INTO items VALUES (4, 'four')")
    result = publish()
    uri = engine.url.render_as_string(hide_password=False)
    arguments = [uri, endpoint, str(result.manifest_url), bucket, analytics]
    with engine.begin() as blocker:
        blocker.exec_driver_sql(f'LOCK "{analytics}".loaded IN SHARE MODE', execution_options={"no_parameters": True})
        worker = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], cwd=services.PROJECT, env={"PYTHONPATH": "plugins:."}
        )
        server = waiting(sql)
        worker.kill()
        worker.wait()
    deadline = time.monotonic() + 30
    while sql(f"SELECT FROM pg_stat_activity WHERE pid = {server}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (loaded(), history()) == before
    assert load(result).outcome == "replaced"
    assert len(loaded()) == 4


def test_readers_never_see_an_empty_table(
    publish: Publish, load: Load, engine: sa.Engine, sql: Callable[[str], list[Any]], analytics: str
) -> None:
    """Whoever reads while a load runs, or began before it, neither waits nor sees anything but whole states."""
    load(publish())
    count = f'SELECT count(*) FROM "{analytics}".loaded'
    with engine.connect().execution_options(isolation_level="REPEATABLE READ", no_parameters=True) as reader:
        assert reader.exec_driver_sql("SELECT 1").scalar() == 1
        load(publish("SELECT * FROM items WHERE id = 1"))
        assert reader.exec_driver_sql(count).scalar() == 3
    assert sql(count) == [(1,)]


def test_memory_is_flat(publish: Publish, load: Load, sql: Callable[[str], list[Any]]) -> None:
    """The process does not grow with the file, nor with how well it is compressed."""
    sql("INSERT INTO items SELECT n, repeat('x', 1000) FROM generate_series(4, 50000) n")
    result = publish(compression="zstd")
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert load(result).rows == 50_000
    finally:
        done.set()
        watcher.join()
    assert peak - before < 32 * 2**20
