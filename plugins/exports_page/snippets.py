"""Code to paste that loads an export. A manifest is untrusted input: what it says is quoted or left out."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from exports_page.download import saved_as
from streaming_export.manifest_reader import Manifest

# PostgreSQL's types and their counterparts in DuckDB and in pandas; all others are text.
_DUCKDB = {
    "smallint": "SMALLINT",
    "integer": "INTEGER",
    "bigint": "BIGINT",
    "real": "FLOAT",
    "double precision": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp with time zone": "TIMESTAMPTZ",
    "timestamp without time zone": "TIMESTAMP",
    "uuid": "UUID",
}
_PANDAS = {
    "smallint": "Int64",
    "integer": "Int64",
    "bigint": "Int64",
    "real": "float64",
    "double precision": "float64",
    "boolean": "boolean",
}
_TIMES = ("date", "timestamp with time zone", "timestamp without time zone")
# Without a precision it may be any number, which DuckDB's DECIMAL and Redshift's NUMERIC would round: it stays text.
_NUMERIC = re.compile(r"numeric\(\d{1,3},\d{1,3}\)")
_DECOMPRESS = {"gzip": "gzip -dc --", "zstd": "zstd -dc --"}


def snippets(manifest: Manifest, endpoint: str) -> dict[str, str]:
    """Code that loads the export's files with their types, by the name of the tool.

    :param endpoint: URL of the store.
    """
    name = re.sub(r"[^a-z_]+", "", PurePosixPath(manifest.files[0].key).name.split(".")[0].split("-")[0].lower())
    table = _identifier(name or "export")
    masked = {column for column, mask in manifest.masked.items() if mask != "drop"}
    columns = [(column, "text" if column in masked else kind) for column, kind in manifest.columns]
    bucket = manifest.url.split("/")[2]
    urls = [f"s3://{bucket}/{file.key}" for file in manifest.files]
    return {
        "DuckDB": _duckdb(table, columns, urls, endpoint),
        "pandas": _pandas(columns, urls, endpoint),
        "psql": _psql(table, columns, [file.key for file in manifest.files], manifest.compression),
        "Redshift": _redshift(table, columns, manifest),
    }


def _duckdb(table: str, columns: list[tuple[str, str]], urls: list[str], endpoint: str) -> str:
    types = ", ".join(f"{_literal(name)}: '{_DUCKDB.get(kind, _decimal(kind))}'" for name, kind in columns)
    # Each stands for itself in brackets: DuckDB would load every file that a name with a star matches.
    files = ", ".join(_literal(re.sub(r"[*?\[]", r"[\g<0>]", url)) for url in urls)
    access = "TYPE s3, PROVIDER credential_chain"
    if not _is_aws(endpoint):
        at = urlsplit(endpoint)
        access += f", ENDPOINT {_literal(at.netloc)}, URL_STYLE 'path', USE_SSL {str(at.scheme == 'https').lower()}"
    return (
        "INSTALL httpfs; LOAD httpfs;\n"
        f"CREATE OR REPLACE SECRET exports ({access});\n"
        f"CREATE TABLE {table} AS FROM read_csv([{files}],\n"
        "    header = true, delim = ',', quote = '\"', escape = '\"', nullstr = '', allow_quoted_nulls = false,\n"
        f"    auto_detect = false, columns = {{{types}}});"
    )


def _pandas(columns: list[tuple[str, str]], urls: list[str], endpoint: str) -> str:
    types = {name: _PANDAS.get(kind, "string") for name, kind in columns if kind not in _TIMES}
    times = [name for name, kind in columns if kind in _TIMES]
    options = {} if _is_aws(endpoint) else {"client_kwargs": {"endpoint_url": endpoint}}
    return (
        "import pandas as pd  # with s3fs; NULL and the empty string are both <NA> here\n\n"
        f"files = {_python(urls)}\n"
        f"types = {_python(types)}\n"
        f"data = pd.concat(pd.read_csv(file, dtype=types, parse_dates={_python(times)}, date_format='ISO8601',\n"
        f'    keep_default_na=False, na_values=[""], skip_blank_lines=False, storage_options={_python(options)})\n'
        "    for file in files)"
    )


def _psql(table: str, columns: list[tuple[str, str]], keys: list[str], compression: str | None) -> str:
    copies = []
    for key in keys:
        file = saved_as(PurePosixPath(key).name)
        source = _literal(file)
        if compression in _DECOMPRESS:
            source = f"PROGRAM {_literal(f'{_DECOMPRESS[compression]} {shlex.quote(file)}')}"
        copies.append(f"\\copy {table} FROM {source} WITH (FORMAT csv, HEADER, ENCODING 'UTF8')")
    return "-- in the folder of the downloaded file\n" + _create(table, columns) + "\n" + "\n".join(copies)


def _redshift(table: str, columns: list[tuple[str, str]], manifest: Manifest) -> str:
    compression = f" {manifest.compression.upper()}" if manifest.compression in _DECOMPRESS else ""
    return (
        f"{_create(table, [(name, _redshift_type(kind)) for name, kind in columns])}\n"
        f"COPY {table} FROM {_literal(manifest.url)} IAM_ROLE default\n"
        f"    MANIFEST CSV IGNOREHEADER 1{compression} EMPTYASNULL TIMEFORMAT 'auto';"
    )


def _create(table: str, columns: list[tuple[str, str]]) -> str:
    return f"CREATE TABLE {table} ({', '.join(f'{_identifier(name)} {_postgres(kind)}' for name, kind in columns)});"


def _postgres(kind: str) -> str:
    return kind if kind in (*_DUCKDB, "numeric", "varchar(65535)") or _NUMERIC.fullmatch(kind) else "text"


def _redshift_type(kind: str) -> str:
    return kind if (kind in _DUCKDB and kind != "uuid") or _NUMERIC.fullmatch(kind) else "varchar(65535)"


def _decimal(kind: str) -> str:
    return kind.replace("numeric", "DECIMAL") if _NUMERIC.fullmatch(kind) else "VARCHAR"


def _python(value: object) -> str:
    # With ASCII alone, JSON writes a character such as an emoji as two halves, which are two characters to Python.
    return json.dumps(value, ensure_ascii=False)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_aws(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
