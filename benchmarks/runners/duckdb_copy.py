"""Runs a COPY of DuckDB from Postgres to S3; see the package.

Job: `extensions` (names of packages that hold one each), `setup` (statements before the measuring:
credentials and the attached database), `copy` (the statement that is measured).
"""

import importlib.util
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.runners.usage import Usage, measured, run


def copy(job: dict[str, Any]) -> Usage:
    """Measure the COPY statement."""
    connection = duckdb.connect(config={"allow_unsigned_extensions": "false"})
    for package in job["extensions"]:
        connection.load_extension(str(extension(package)))
    for statement in job["setup"]:
        connection.execute(statement)
    return measured(lambda: connection.execute(job["copy"]).fetchall())


def extension(package: str) -> Path:
    """The file of the extension that a package holds for this version of DuckDB."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"The package {package} is missing: install benchmarks/requirements.txt.")
    (file,) = Path(spec.origin).parent.glob(f"extensions/v{duckdb.__version__}/*.duckdb_extension")
    return file


if __name__ == "__main__":
    run(copy)
