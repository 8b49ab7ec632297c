"""Writes RESULTS.md from the figures of a run, and has the chart drawn.

    python -m benchmarks.report

writes it again from .bench/results.json.
"""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil
import psycopg

from benchmarks.figures import Results
from benchmarks.setting import FOLDER, PEERS, Setting
from benchmarks.tables import tables
from demo import services

HERE = Path(__file__).parent
METHOD, PROFILE = HERE / "method.md", HERE / "profile.md"
PEER_PACKAGES = (
    "awscli",
    "duckdb",
    "rivet-cli",
    "sling-linux-amd64",
    "apache-airflow-providers-amazon",
    "pandas",
    "polars",
)


def machine(setting: Setting) -> dict[str, str]:
    """The machine and the versions of the run."""
    with psycopg.connect(setting.uri) as connection:
        server = connection.info.parameter_status("server_version") or ""
    ours = ("apache-airflow", "psycopg2-binary", "boto3")
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "PostgreSQL": server.split()[0],
        **{name: version(name) for name in ours},
        **_peer_versions(),
    }


def write(folder: Path) -> None:
    """Write RESULTS.md and results.png."""
    results: Results = json.loads((FOLDER / "results.json").read_text())
    texts = [path.read_text(encoding="utf-8") for path in (METHOD, PROFILE)]
    text = "\n\n".join(part.strip() for part in [INTRODUCTION, _machine(results), tables(results), *texts])
    (folder / "RESULTS.md").write_text(text + "\n", encoding="utf-8")
    command = [PEERS / "python", "-m", "benchmarks.chart", FOLDER / "results.json", folder / "results.png"]
    subprocess.run(command, check=True, cwd=services.PROJECT)


def _machine(results: Results) -> str:
    return "Measured on: " + ", ".join(f"{name} {value}" for name, value in results["machine"].items()) + "."


def _peer_versions() -> dict[str, str]:
    """The versions of the packages in the environment of the peers."""
    code = (
        "import importlib.metadata as m, json; print(json.dumps({d.metadata['Name'].lower(): d.version"
        " for d in m.distributions()}))"
    )
    found = subprocess.run([PEERS / "python", "-c", code], check=True, capture_output=True, text=True).stdout
    versions = json.loads(found)
    return {name: versions[name] for name in PEER_PACKAGES if name in versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


INTRODUCTION = """
# Results

`make bench` wrote this file. It shows how long this project's operator and its peers take to export a table of orders
from PostgreSQL to an S3 object, as CSV ordered by id, and what that costs.

![rows per second and memory of each](results.png)
"""


if __name__ == "__main__":
    write(HERE)
