"""Which process runs which tests, and in which order, so that all end at about the same time."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# What one process runs, one after the other, because it shares what takes long to start: files, or folders of them.
# Those that take longest come first: given out last, they would have the other processes wait for them.
_TOGETHER = (
    ("tests/exports_page/",),  # a served Airflow
    ("tests/dags/", "tests/test_docs.py", "tests/postgres_to_s3/"),  # what `dag.test` imports
    ("tests/streaming_export/test_stores.py",),
    ("tests/faults/",),
    ("tests/orders/test_another_table.py",),
    ("tests/test_wheel.py",),
    ("tests/test_canaries.py",),
    ("tests/streaming_export/test_faults.py",),
    ("tests/streaming_export/test_memory.py",),
    ("tests/streaming_ingest/test_ingest.py",),
    ("tests/streaming_export/s3/test_upload.py",),
    ("tests/test_stand_ins.py",),
    ("tests/test_embedded_s3.py",),
)


def _group(nodeid: str) -> int:
    """Which of them a test belongs to; their number, if to none."""
    found = (number for number, paths in enumerate(_TOGETHER) if nodeid.startswith(paths))
    return next(found, len(_TOGETHER))


class _Scheduling(LoadFileScheduling):
    """Gives a process a file or, of those above, all files that belong together."""

    def _split_scope(self, nodeid: str) -> str:
        group = _group(nodeid)
        return super()._split_scope(nodeid) if group == len(_TOGETHER) else _TOGETHER[group][0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling:
    """Have this decide which process runs what."""
    return _Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long."""
    items.sort(key=lambda item: _group(item.nodeid))
