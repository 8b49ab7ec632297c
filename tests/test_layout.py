"""Rules for the tree as a whole."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


@pytest.fixture(scope="module")
def said(airflow_home: Path) -> list[str]:
    """What a program of Airflow's says of the plugin: which modules it brings, and how it is loaded."""
    code = (
        "import json, sys, airflow.sdk; before = set(sys.modules); import orders_plugin;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "page = sorted(new & {'fastapi', 'starlette', 'uvicorn'}), 'exports_page.api' in sys.modules;"
        "from airflow import plugins_manager as p;"
        "plugins, errors = p._get_plugins();"
        "print(*page);"
        "print(json.dumps([[x.name for x in plugins if x.name == 'orders'], errors]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PLUGINS)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-2:]


def test_a_task_does_not_pay_for_the_page(said: list[str]) -> None:
    """Every program of Airflow's loads the plugin; only the api-server imports FastAPI and the page for it."""
    assert said[0] == "[] False"


def test_airflow_loads_the_plugin(said: list[str]) -> None:
    """Airflow loads the plugin without an error, with the operator's link."""
    assert said[1] == '[["orders"], {}]'


AIRFLOW = {"airflow", "postgres_to_s3", "orders", "orders_live", "exports_page"}

#: Of each folder or file, what it must not import: imports go downwards.
FORBIDDEN = [
    ("dags", {"streaming_export", "streaming_ingest", "exports_page", "orders_live"}),
    ("plugins/orders_live", {"streaming_ingest"}),
    ("plugins/exports_page", {"streaming_ingest", "orders", "orders_live"}),
    ("plugins/orders", {"postgres_to_s3", "exports_page", "orders_live"}),
    ("plugins/postgres_to_s3", {"orders", "orders_live", "exports_page"}),
    ("plugins/streaming_ingest", {*AIRFLOW, "streaming_export.export", "streaming_export.options"}),
    ("plugins/streaming_export", {*AIRFLOW, "streaming_ingest"}),
    ("plugins/streaming_export/postgres", {"streaming_export.s3", "streaming_export.manifest"}),
    (
        "plugins/streaming_export/s3",
        {"streaming_export.postgres", "streaming_export.manifest", "streaming_export.options"},
    ),
    ("plugins/streaming_export/manifest.py", {"streaming_export.postgres", "streaming_export.options"}),
    ("plugins/streaming_export/errors.py", {"streaming_export"}),
    ("plugins/streaming_export/cancellation.py", {"streaming_export.postgres", "streaming_export.s3"}),
]


@pytest.mark.parametrize(("place", "not_allowed"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else "")
def test_imports_go_downwards(place: str, not_allowed: set[str]) -> None:
    """From dags down to streaming_export; nothing imports demo or tests."""
    path = services.PROJECT / place
    wrong = {
        str(file.relative_to(services.PROJECT)): names
        for file in (path.rglob("*.py") if path.is_dir() else [path])
        if (names := {name for name in modules(file) if under(name, not_allowed | {"demo", "tests"})})
    }
    assert not wrong


def modules(path: Path) -> set[str]:
    """Full names of all modules that a file imports, and of what it takes from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def under(name: str, packages: set[str]) -> bool:
    """Whether a module is one of the packages, or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_files_are_small() -> None:
    """A file has one job: at most 300 lines, or a reason in its docstring ("Long: …")."""
    long = {
        str(path.relative_to(services.PROJECT)): lines
        for path in PLUGINS.rglob("*.py")
        if (lines := len((text := path.read_text()).splitlines())) > 300 and "Long: " not in text
    }
    assert not long


REQUIREMENTS = ["requirements.txt", "demo/requirements.txt", "tests/requirements.txt", "benchmarks/requirements.txt"]
REQUIREMENTS += ["requirements-celery.txt", "demo/scale-requirements.txt"]


def lines_of(path: str) -> Iterator[tuple[str, str]]:
    """Requirement and comment of each line of a requirements file."""
    for line in (services.PROJECT / path).read_text().splitlines():
        requirement, _, comment = line.partition("#")
        if requirement.strip():
            yield requirement.strip(), comment.strip()


@pytest.mark.parametrize("path", REQUIREMENTS)
def test_each_requirement_is_pinned_and_has_a_reason(path: str) -> None:
    """A requirement has one version, perhaps only for some machines, and the comment behind it says what for."""
    wrong = [
        requirement
        for requirement, comment in lines_of(path)
        if not re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+( ; .+)?", requirement) or not comment
    ]
    assert not wrong, f"{path}: write NAME==VERSION  # what it is for"


def installed_by(paths: list[str]) -> set[str]:
    """Names of the packages that requirements files install, with all that these bring."""
    todo = [Requirement(requirement) for path in paths for requirement, _ in lines_of(path)]
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in done:
            continue
        done.add(key)
        try:
            brought = [Requirement(line) for line in importlib.metadata.requires(wanted.name) or []]
        except importlib.metadata.PackageNotFoundError:  # for other systems
            continue
        extras = ("", *wanted.extras)
        todo += [one for one in brought if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name, _ in done}


@pytest.mark.parametrize(
    ("folder", "paths"),
    [
        ("plugins", REQUIREMENTS[:1]),
        ("dags", REQUIREMENTS[:1]),
        ("demo", REQUIREMENTS[:2]),
        ("tests", REQUIREMENTS[:3]),
    ],
)
def test_what_is_imported_gets_installed(folder: str, paths: list[str]) -> None:
    """Each package that the code imports is in the requirements of its part, or is brought by one that is."""
    files = list((services.PROJECT / folder).rglob("*.py"))
    ours = {path.stem for place in (services.PROJECT, PLUGINS, services.PROJECT / "demo") for path in place.iterdir()}
    names = set().union(*map(imported, files)) - ours - set(sys.stdlib_module_names)
    providers, installed = importlib.metadata.packages_distributions(), installed_by(paths)
    missing = [name for name in names if not {canonicalize_name(one) for one in providers.get(name, [])} & installed]
    assert not missing, f"add to {paths[-1]} what installs {missing}"
