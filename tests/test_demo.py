"""The demo as a newcomer meets it: what it says, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from demo import services, steps
from tests.streaming_export.waiting import eventually


def listens(pid: int) -> bool:
    """Whether a process handles SIGTERM, as Python by itself does not (Linux, proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        time.sleep(0.5)
        return True
    caught = int(status.read_text().partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("module", ["demo", "demo.ui"])
@pytest.mark.parametrize("seconds", [0, 0.3])
def test_ctrl_c_in_the_first_second(module: str, seconds: float) -> None:
    """It says "Stopping…" at once, ends soon, and shows no traceback: also while modules are still imported."""
    command = [sys.executable, "-m", module, "--orders", "1"]
    program = subprocess.Popen(command, cwd=services.PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert eventually(lambda: listens(program.pid))
    time.sleep(seconds)
    program.send_signal(signal.SIGINT)
    out = program.communicate(timeout=60)[0].decode()
    assert "Stopping…" in out
    assert "Traceback" not in out
    assert program.returncode != 1


def test_a_second_demo_is_told_at_once(tmp_path: Path) -> None:
    """Two demos in one folder would share its services."""
    with services.alone(tmp_path):
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=r"Another demo or test run uses .* Wait for it to end, or stop it"):  # noqa: SIM117
            with services.alone(tmp_path):
                pass
        assert time.monotonic() - started < 1


def test_orders_end_yesterday(database: str, engine: sa.Engine, schema: str) -> None:
    """Last night's file of a day has rows; but for the date, they are the same on every day."""
    today = datetime.now(UTC).date()
    services.load_orders(database, 3_000, today)
    last = "SELECT max(created_at), count(*) FILTER (WHERE created_at >= %s) FROM orders"
    offsets = "SELECT array_agg(created_at - (SELECT min(created_at) FROM orders) ORDER BY id) FROM orders"
    with psycopg.connect(database) as connection:
        row = connection.execute(last, [today - timedelta(1)]).fetchone()
        before = connection.execute(offsets).fetchone()
    assert row is not None
    assert row[0].astimezone(UTC).date() == today - timedelta(1)
    assert row[1] == 100
    services.load_orders(database, 3_000)
    with psycopg.connect(database) as connection:
        assert connection.execute(offsets).fetchone() == before


def test_without_a_setting_the_file_takes_today(database: str, schema: str) -> None:
    """docker-compose.yml runs the file as it is."""
    with psycopg.connect(database) as connection:
        connection.execute("SELECT set_config('demo.orders', '30', true)")
        connection.execute((services.PROJECT / "demo" / "orders.sql").read_text())
        row = connection.execute(
            "SELECT (now() AT TIME ZONE 'UTC')::date - max(created_at)::date FROM orders"
        ).fetchone()
        connection.rollback()
    assert row == (1,)


def test_progress_says_how_far(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits reads what is done, and how far it is."""
    monkeypatch.setattr(steps, "ALIVE_SECONDS", 0.1)
    with steps.alive():
        steps.say("Filling the table", lambda: "12 MB in the database")
        time.sleep(0.5)
        steps.say("Stopping the services (output: a.log)")
        time.sleep(0.5)
    out = capsys.readouterr().out
    assert "]   12 MB in the database\n" in out
    assert "]   stopping the services, not done yet\n" in out


def test_the_first_install_is_announced(tmp_path: Path) -> None:
    """Minutes, megabytes and the network are known before they are spent."""
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "constraints.txt").touch()
    # With the pip of the tests: to make a new one takes ten seconds, and `make test` has done so.
    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    (packages,) = tmp_path.glob(".venv/lib/python*/site-packages")
    (packages / "pip_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, str(services.PROJECT / "demo" / "install.py"), "requirements.txt"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "needs the network and 1 to 3 minutes, about 150 MB to download" in done.stdout
