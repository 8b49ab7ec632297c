"""A real Chromium, Debian's, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.exports_page.server import Airflow

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

PACKAGE = "chromium"  # Debian's
MISSING = f"There is no Chromium here. Install Debian's package {PACKAGE}: apt-get install {PACKAGE}"

SIZE: Any = {"width": 1440, "height": 1000}  # of a window

# It asks nobody for anything, and needs no graphics card.
_ARGUMENTS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_ARGUMENTS += ["--disable-component-update", "--disable-sync"]


def chromium() -> str | None:
    """The program, if it is installed."""
    return shutil.which("chromium")


def must_be_there() -> bool:
    """Whether a machine without Chromium fails, as .ci/run and CI services demand."""
    return os.environ.get("CI") == "true" or "NEED_CHROMIUM" in os.environ


@contextmanager
def browser() -> Iterator[Browser]:
    """A running Chromium without a window."""
    from playwright.sync_api import sync_playwright

    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=[*_ARGUMENTS, *as_root])
        try:
            yield running
        finally:
            running.close()


def context_of(running: Browser, airflow: Airflow, user: str, **options: Any) -> BrowserContext:
    """Windows of a user who is logged in.

    :param options: of Playwright's `new_context`.
    """
    context = running.new_context(**{"viewport": SIZE, "locale": "en-GB", **options})
    context.add_cookies([{"name": "_token", "value": airflow.token(user), "url": airflow.url}])
    return context
