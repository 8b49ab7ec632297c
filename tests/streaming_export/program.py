"""A program that exports, for the tests that stop it from outside: python program.py ARGUMENTS-AS-JSON.

`on_signal` is what its handler of SIGTERM and SIGINT does: "raise" an exception, or "cancel" the export;
`pool` are arguments of its engine. Prints the type of the exception that ended the export, and stays until
its standard input ends.
"""

from __future__ import annotations

import json
import signal
import sys

import sqlalchemy as sa

from demo import services
from tests.streaming_export.exporting import new_export


class Interrupted(BaseException):
    """As Airflow's AirflowTaskTimeout: not an Exception."""


def main(*, database: str, endpoint: str, on_signal: str, pool: dict[str, int], **arguments: str) -> None:
    services.isolate_environment()
    export = new_export(
        engine=sa.create_engine(database, **pool),
        client=services.s3_client(endpoint),
        **arguments,  # type: ignore[arg-type]
    )

    def stop(*_: object) -> None:
        if on_signal == "raise":
            raise Interrupted
        export.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        export.run()
    except BaseException as exc:
        print(type(exc).__name__, flush=True)  # noqa: T201
    sys.stdin.read()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
