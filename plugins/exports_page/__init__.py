"""The page "Exports" in Airflow's UI, and the downloads, for a plugin to register.

Every program of Airflow loads the plugins, but only the api-server serves this: the app is imported with its first
request, so that a task pays neither the seconds nor the memory of FastAPI.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Where the app is mounted, below Airflow's own address.
PREFIX = "/exports"

_BUNDLE = {
    "name": "Exports",
    "bundle_url": "exports/static/exports.js",
    "icon": "exports/static/icon.svg",
    "icon_dark_mode": "exports/static/icon-dark.svg",
}

#: The page in the navigation, and a tab of each DAG. Both have one name, because a module is imported once.
REACT_APPS: list[Any] = [
    {**_BUNDLE, "destination": "nav", "url_route": "exports", "nav_top_level": True},
    {**_BUNDLE, "destination": "dag", "url_route": "dag-exports"},
]


def fastapi_apps(*more: str) -> list[Any]:
    """The app that serves the page, as a plugin registers it.

    :param more: names of modules that add routes to `exports_page.api.app`; imported with it.
    """

    async def served(scope: Any, receive: Any, send: Any) -> None:
        from exports_page.api import app

        for module in more:
            importlib.import_module(module)
        await app(scope, receive, send)

    return [{"name": "exports", "app": served, "url_prefix": PREFIX}]
