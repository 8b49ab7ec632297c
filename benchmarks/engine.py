"""Everything that the benchmark uses of the engine's internals."""

import sqlalchemy as sa

from streaming_export.postgres.query import describe

#: What the threads of an export do, by the first word of their names.
THREADS = {
    "reader": "reader threads: libpq, one call into Python per row, chunks of 1 MiB",
    "export": "export thread: SHA-256 of the file, filling the parts",
    "part": "part threads: botocore's CRC32 and (over plain HTTP) SHA-256 of each part, sending it",
    "feeder": "feeder thread: the walk along the key, the count",
}


def file_select(uri: str, query: str, unique_key: str) -> str:
    """The SELECT of the file's text, as this project sends it to Postgres; other contenders run it if they can."""
    url = uri.replace("postgresql://", "postgresql+psycopg2://")
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        return describe(connection, query, None, unique_key).select()
