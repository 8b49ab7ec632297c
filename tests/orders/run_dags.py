"""Runs every DAG of a folder that exports, or looks at exports, and prints what came of each, and a download, as JSON.

    python run_dags.py DAY

A program of its own: modules of the same names as the project's are imported from another folder.
"""

import atexit
import gc
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag

from orders_live.reading import LiveOrders, checked

ORDER = ("orders_export", "orders_export_daily", "orders_by_status", "orders_deadline")


def main(day: str) -> None:
    gc.disable()  # Airflow makes very many objects, which stay
    atexit.register(gc.freeze)  # nor are they taken apart at the end
    bag = DagBag(Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"]))
    assert not bag.import_errors, bag.import_errors
    assert set(bag.dags) == {*ORDER, "orders_ingest"}, sorted(bag.dags)
    at = datetime.fromisoformat(day).replace(tzinfo=UTC)
    states = {}
    for dag_id in ORDER:
        dag = bag.dags[dag_id]
        for task in dag.tasks:
            task.retries = 0
        hours = {"orders_export_daily": 0, "orders_by_status": 3, "orders_deadline": 4}.get(dag_id, 2)
        states[dag_id] = str(dag.test(logical_date=at + timedelta(hours=hours)).state)
    selection = bag.dags["orders_export"].test(logical_date=None, run_conf={"statuses": ["open"], "suffix": "open"})
    result = states | {"selection": str(selection.state), "run_id": selection.run_id, "live": live()}
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")


def live() -> str:
    """What the page's orders.csv sends of the open ones."""
    reading = LiveOrders(checked([("status", "open")]), gzip=False)
    reading.open()
    try:
        return b"".join(iter(reading.read, b"")).decode()
    finally:
        reading.close()


if __name__ == "__main__":
    main(sys.argv[1])
