"""The package: built as a wheel, installed where nothing of this project is, with Airflow.

Airflow itself is not installed anew, which would take minutes: the environment sees the packages of the test run, in
which none of ours is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from demo import services
from tests.conftest import content

OURS = {"exports_page", "postgres_to_s3", "streaming_export", "streaming_ingest"}

DAG_FILE = """
from airflow.sdk import DAG
from postgres_to_s3 import PostgresToS3Operator

with DAG("installed", schedule=None):
    PostgresToS3Operator(
        task_id="export", query="SELECT 1 AS one", s3_bucket="exports", s3_key="installed.csv",
        postgres_conn_id="orders_db", aws_conn_id="exports_s3",
    )
"""

# Lists the plugins by Airflow's command, runs the DAG, looks at the page: to import Airflow once takes long enough.
RUN = """
import atexit
import gc
import importlib.util
import os
gc.disable()  # Airflow makes very many objects, which stay
atexit.register(gc.freeze)  # nor are they taken apart at the end
from airflow.api_fastapi.app import create_app
from airflow.cli.cli_parser import get_parser
from airflow.dag_processing.dagbag import DagBag
from fastapi.testclient import TestClient
import postgres_to_s3
command = get_parser().parse_args(["plugins", "--output", "json"])
command.func(command)
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
print("RESULT run", bag.dags["installed"].test(logical_date=None).state, postgres_to_s3.__file__)
assert importlib.util.find_spec("orders") is None
client = TestClient(create_app(apps="core"))
token = client.get("/auth/token").json()["access_token"]
for path in ("list", "static/exports.js", "orders.csv"):
    answer = client.get(f"/exports/{path}", headers={"Authorization": f"Bearer {token}"})
    print("RESULT", path, answer.status_code, answer.text if path == "list" else "")
print("RESULT open", client.get("/exports/list", headers={"Authorization": ""}, cookies={}).status_code)
"""


def run(command: list[str], **arguments: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel; pip fetches the build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(services.PROJECT)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment that holds the wheel, and sees Airflow."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = str(folder / "bin" / "python")
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "airflow_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    run(pip)
    return python


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the newcomer's."""
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def environment(airflow_database: Path, home: Path) -> dict[str, str]:
    """Airflow without folders of this project."""
    for name in ("dags", "plugins"):
        (home / name).mkdir()
    (home / "dags" / "installed.py").write_text(DAG_FILE)
    shutil.copy(airflow_database, home / "airflow.db")
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API_AUTH__JWT_SECRET": "0" * 64,
    }


@pytest.fixture(scope="module")
def said(python: str, environment: dict[str, str], home: Path) -> str:
    """What Airflow says with the wheel."""
    return run([python, "-c", RUN], env=environment, cwd=home)


def test_the_wheel_holds_the_packages_and_the_schema(wheel: Path) -> None:
    """The engine, the ingest, the operator and the page; neither the orders nor tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == OURS
    assert {"streaming_export/manifest.schema.json", "exports_page/static/exports.js"} <= names
    ours = {str(path.relative_to(services.PROJECT / "plugins")) for one in OURS for path in sources(one)}
    assert ours <= names


def sources(package: str) -> list[Path]:
    return list((services.PROJECT / "plugins" / package).rglob("*.py"))


def test_airflow_lists_the_plugin(said: str) -> None:
    """It is found by its entry point, with the folder of plugins empty: the page, and the link that leads there."""
    listed, _ = json.JSONDecoder().raw_decode(said, said.index("[{"))
    (plugin,) = [one for one in listed if one["name"] == "postgres_to_s3"]
    assert "postgres-to-s3==0.1.0" in plugin["source"]
    assert "/exports" in str(plugin["fastapi_apps"])
    assert "exports/static/exports.js" in str(plugin["react_apps"])
    assert "ExportLink" in str(plugin["operator_extra_links"])


def test_an_export_runs_and_is_shown(python: str, said: str, client: Any) -> None:
    """A DAG of somebody's own imports the operator from the wheel; without the orders, the page shows its export."""
    found = dict(re.findall(r"^RESULT (\S+) (.*)$", said, re.MULTILINE))
    assert found["run"].startswith(f"success {Path(python).parent.parent}")
    assert content(client, services.BUCKET, "installed.csv") == b"one\n1\n"
    assert found["list"].startswith("200 {")
    assert '"file":"installed.csv"' in found["list"]
    assert found["static/exports.js"].startswith("200")
    assert found["orders.csv"].startswith("404"), "the table as it is now is the project's own"
    assert found["open"].startswith("401")


def test_the_engine_needs_no_airflow(python: str, environment: dict[str, str], home: Path) -> None:
    """Only the extra brings it, and neither the engine nor the ingest imports it."""
    code = (
        "import sys, importlib.metadata, json; sys.modules['airflow'] = None;"
        "import streaming_export, streaming_ingest;"
        "print(json.dumps(importlib.metadata.requires('postgres-to-s3')))"
    )
    needs = json.loads(run([python, "-c", code], env=environment, cwd=home))
    assert [need for need in needs if "airflow" in need and 'extra == "airflow"' not in need.replace("'", '"')] == []
    assert len([need for need in needs if "extra ==" not in need]) == 6
