"""Rules for the tree as a whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from demo import services

PLUGINS = services.PROJECT / "plugins"


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_plugin_loader_runs_one_file(airflow_home: Path) -> None:
    """Airflow's plugin loader executes every file that it sees as a module of its own: it must see one."""
    from airflow._shared.module_loading import find_path_from_directory

    seen = [Path(path) for path in find_path_from_directory(str(PLUGINS), ".airflowignore")]
    assert [path.name for path in seen if path.suffix == ".py"] == ["orders_plugin.py"]


def test_airflow_loads_the_plugin(airflow_home: Path) -> None:
    """Airflow loads the plugin without an error, with the operator's link."""
    code = (
        "from airflow import plugins_manager as p; import json;"
        "errors = p.get_import_errors() if hasattr(p, 'get_import_errors') else p.import_errors;"
        "plugins, errors = p._get_plugins();"
        "print(json.dumps([[x.name for x in plugins if x.name == 'orders'], errors]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ['[["orders"], {}]'], done.stderr


def test_imports_go_downwards() -> None:
    """dags → postgres_to_s3, orders → streaming_export; nothing imports demo or tests."""
    forbidden = {
        "plugins/streaming_export": {"airflow", "postgres_to_s3", "orders", "demo", "tests"},
        "plugins/postgres_to_s3": {"orders", "demo", "tests"},
        "plugins/orders": {"postgres_to_s3", "demo", "tests"},
        "dags": {"streaming_export", "demo", "tests"},
    }
    wrong = {
        str(path.relative_to(services.PROJECT)): names
        for folder, not_allowed in forbidden.items()
        for path in (services.PROJECT / folder).rglob("*.py")
        if (names := imported(path) & not_allowed)
    }
    assert not wrong
