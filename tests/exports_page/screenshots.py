"""`make screenshots`: takes docs/images/exports-light.png and exports-dark.png.

    python -m tests.exports_page.screenshots [FOLDER]

With a folder, also the details, the phone and the tab of a DAG are taken, all into it.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo import services
from demo.steps import alive, say

ORDERS = 60_000
DAYS = 45


def main(folder: Path | None) -> None:
    """Take the pictures."""
    services.isolate_environment()
    with tempfile.TemporaryDirectory() as temporary, alive():
        home = Path(temporary) / "airflow"
        home.mkdir()
        say("Starting PostgreSQL and an S3 server")
        with services.postgres(Path(temporary) / "postgres") as database, services.s3() as endpoint:
            os.environ |= services.airflow_environment(home, database, endpoint) | {
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"
            }
            take(database, endpoint, home, folder)


def take(database: str, endpoint: str, home: Path, folder: Path | None) -> None:
    """Publish some days of exports, and look at them."""
    import sqlalchemy as sa
    from airflow.utils import db

    from tests.exports_page.browser import MISSING, browser, chromium, context_of
    from tests.exports_page.server import publish_days, save_dags, serving

    if chromium() is None:
        raise SystemExit(MISSING)
    say(f"Publishing {DAYS} days of exports")
    services.create_bucket(endpoint)
    services.load_orders(database, ORDERS)
    services.make_exporter(database)
    engine = sa.create_engine(database.replace("postgresql://", "postgresql+psycopg2://"))
    publish_days(services.s3_client(endpoint), engine, services.BUCKET, DAYS)
    engine.dispose()
    say("Starting Airflow")
    db.initdb()
    save_dags()
    logging.disable(logging.WARNING)
    with serving(home) as airflow, browser() as running:
        images = folder or services.PROJECT / "docs" / "images"
        images.mkdir(parents=True, exist_ok=True)

        def shoot(name: str, path: str, details: bool = False, **options: Any) -> None:
            say(f"Taking {name}.png")
            with context_of(running, airflow, "admin", **options).new_page() as page:
                scheme = options.get("color_scheme", "light")
                page.add_init_script(f"localStorage.setItem('theme', '{scheme}')")
                page.goto(f"{airflow.url}/{path}")
                page.wait_for_selector("table.exports, .empty")
                if details:
                    page.click("button.file >> nth=0")
                    page.wait_for_selector("pre")
                    page.locator("button.file").first.scroll_into_view_if_needed()
                page.wait_for_timeout(400)
                page.screenshot(path=images / f"{name}.png")

        size = {"viewport": {"width": 1280, "height": 940}}
        shoot("exports-light", "plugin/exports", **size)
        shoot("exports-dark", "plugin/exports", color_scheme="dark", **size)
        if folder:
            shoot("details", "plugin/exports", True, viewport={"width": 1280, "height": 1500})
            shoot("details-dark", "plugin/exports", True, viewport={"width": 1280, "height": 1500}, color_scheme="dark")
            shoot("phone", "plugin/exports", viewport={"width": 390, "height": 844})
            shoot("phone-details", "plugin/exports", True, viewport={"width": 390, "height": 2400})
            shoot("tab", "dags/orders_export/plugin/dag-exports")
            shoot("tab-empty", "dags/orders_ingest/plugin/dag-exports")
            shoot("whole", "plugin/exports", viewport={"width": 1280, "height": 2000})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
