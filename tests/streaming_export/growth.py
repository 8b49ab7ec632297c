"""Prints the bytes by which a process grows while it exports, for each line of arguments, as JSON, that it is given.

Each export has a process of its own, a fork of this one, in which there was none before: to start a program for each
would take longer than most exports.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import boto3
import sqlalchemy as sa

from demo import services
from tests.streaming_export.exporting import export


def main() -> None:
    boto3.client("s3", region_name=services.REGION)  # reads S3's description, which each fork then has
    for line in sys.stdin:
        if not os.fork():
            print(measure(**json.loads(line)), flush=True)  # noqa: T201
            os._exit(0)
        _, status = os.wait()
        if status:
            print("failed", flush=True)  # noqa: T201


def measure(*, database: str, endpoint: str, rows: int, **arguments: Any) -> int:
    """Export, and return by how many bytes this process has grown meanwhile."""
    engine = sa.create_engine(database, poolclass=sa.NullPool)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=services.REGION,
        aws_access_key_id=services.ACCESS_KEY,
        aws_secret_access_key=services.SECRET_KEY,
        verify=False,  # the test's server has a certificate of its own making
    )
    client.create_bucket(Bucket=arguments["bucket"])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (proc(5))
    before = resident("VmRSS")
    result = export(engine=engine, client=client, **arguments)
    assert result.rows == rows
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of this process that are in memory now (VmRSS), or were at most (VmHWM)."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    services.isolate_environment()
    main()
