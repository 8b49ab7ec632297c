"""Prints the bytes by which a process grows while it exports: python growth.py ARGUMENTS-AS-JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import boto3
import sqlalchemy as sa

from demo import services
from tests.streaming_export.exporting import export


def main(*, database: str, endpoint: str, rows: int, **arguments: Any) -> None:
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
    sys.stdout.write(str(resident("VmHWM") - before))


def resident(name: str) -> int:
    """Bytes of this process that are in memory now (VmRSS), or were at most (VmHWM)."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    services.isolate_environment()
    main(**json.loads(sys.argv[1]))
