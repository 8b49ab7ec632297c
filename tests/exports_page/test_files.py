"""Published files: whole, in parts, resumed, replaced, damaged."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import content
from tests.exports_page.server import Airflow, file_of, raw, rest


def test_a_published_file(airflow: Airflow, shop: str, keys: list[str], client: Any) -> None:
    """The bytes of the object, with their number, also for who accepts gzip."""
    answer = airflow.session("user").get(f"{airflow.url}/{file_of(shop, keys[-1])}")
    assert answer.status_code == 200
    assert answer.content == content(client, shop, keys[-1])
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert keys[-1].rsplit("/", 1)[1] in answer.headers["Content-Disposition"]


def test_ranges_and_resuming(airflow: Airflow, shop: str, keys: list[str], client: Any, tmp_path: Path) -> None:
    """A part is a part of this very file; curl completes what it has the beginning of."""
    session, whole = airflow.session("user"), content(client, shop, keys[-1])
    url = f"{airflow.url}/{file_of(shop, keys[-1], sha256=hashlib.sha256(whole).hexdigest())}"
    for asked, begin, end in (
        ("5-9", 5, 10),
        ("100-", 100, len(whole)),
        ("-7", len(whole) - 7, len(whole)),
        ("9-99999999", 9, len(whole)),
    ):
        answer = session.get(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, whole[begin:end])
        assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(whole)}"
    tag = answer.headers["ETag"]
    assert session.get(url, headers={"Range": "bytes=0-4", "If-Range": tag}).status_code == 206
    assert session.get(url, headers={"Range": "bytes=0-4", "If-Range": '"another"'}).content == whole
    for ignored in ("bytes=9-5", "bytes=1-2,4-5", "lines=1-2", "bytes=-"):
        assert session.get(url, headers={"Range": ignored}).content == whole
    for beyond in (f"bytes={len(whole)}-", "bytes=-0"):
        assert session.get(url, headers={"Range": beyond}).status_code == 416
    half = tmp_path / "half.csv"
    half.write_bytes(whole[: len(whole) // 2])
    token = f"Authorization: Bearer {airflow.token('user')}"
    subprocess.run(["curl", "-sSf", "-C", "-", "-H", token, "-o", str(half), url], check=True)
    assert half.read_bytes() == whole


def test_nothing_is_resumed_by_another_file(
    airflow: Airflow, shop: str, keys: list[str], client: Any, tmp_path: Path
) -> None:
    """A client that does not say of which file it has the beginning gets no part of the one that is there now."""
    half = tmp_path / "half.csv"
    half.write_bytes(b"the beginning of the file that was there before\n")
    token, url = f"Authorization: Bearer {airflow.token('user')}", f"{airflow.url}/{file_of(shop, keys[-1])}"
    done = subprocess.run(["curl", "-sSf", "-C", "-", "-H", token, "-o", str(half), url], capture_output=True)
    assert (done.returncode, half.stat().st_size) == (33, 48)  # "cannot resume", and nothing was added
    whole = airflow.session("user").get(url, headers={"Range": "bytes=48-"})
    assert (whole.status_code, whole.content) == (200, content(client, shop, keys[-1]))


def test_a_replaced_file_is_a_conflict(airflow: Airflow, shop: str, keys: list[str], client: Any) -> None:
    """409 and a sentence, if the object is not the manifest's, or the manifest is not the page's any more."""
    session, before = airflow.session("user"), content(client, shop, keys[0])
    assert session.get(f"{airflow.url}/{file_of(shop, keys[0], sha256='0' * 64)}").status_code == 409
    client.put_object(Bucket=shop, Key=keys[0], Body=before[:-1] + b"!")
    try:
        for asked in ({}, {"Range": "bytes=5-9"}):
            of_before = file_of(shop, keys[0], sha256=hashlib.sha256(before).hexdigest())
            answer = session.get(f"{airflow.url}/{of_before}", headers=asked)
            assert answer.status_code == 409
            assert "another export has replaced it" in answer.json()["detail"]
        url = f"s3://{shop}/{keys[0]}.manifest.json"
        assert session.post(f"{airflow.url}/exports/verify", json={"manifest": url}).status_code == 409
    finally:
        client.put_object(Bucket=shop, Key=keys[0], Body=before)
    good = session.post(f"{airflow.url}/exports/verify", json={"manifest": url})
    assert good.json()["verified"] is True


def test_a_damaged_file_never_looks_complete(airflow: Airflow, shop: str, keys: list[str], client: Any) -> None:
    """A file whose SHA-256 is not the manifest's breaks off before its last bytes, though the ETag is right."""
    key = f"{keys[0]}.manifest.json"
    document = json.loads(content(client, shop, key))
    document["files"][0]["sha256"] = "0" * 64
    client.put_object(Bucket=shop, Key="damaged/a.csv.manifest.json", Body=json.dumps(document).encode())
    try:
        connection = raw(airflow, file_of(shop, "damaged/a.csv"), "user")
        found = rest(connection)
        assert b" 200 " in found[:20]
        had = len(found.split(b"\r\n\r\n", 1)[1])
        assert 0 < had < document["bytes"]
        # Chromium asks for the rest by itself.
        resume = {"Range": f"bytes={had}-", "If-Range": f'"{"0" * 64}"'}
        answer = airflow.session("user").get(f"{airflow.url}/{file_of(shop, 'damaged/a.csv')}", headers=resume)
        assert (answer.status_code, "SHA-256 differs" in answer.text) == (409, True)
        url = f"s3://{shop}/damaged/a.csv.manifest.json"
        answer = airflow.session("user").post(f"{airflow.url}/exports/verify", json={"manifest": url})
        assert (answer.status_code, "SHA-256 differs" in answer.text) == (409, True)
    finally:
        client.delete_object(Bucket=shop, Key="damaged/a.csv.manifest.json")
