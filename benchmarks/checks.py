"""Checks that a contender's objects contain the right rows."""

import csv
import hashlib
import itertools
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import Data
from benchmarks.setting import BUCKET, FOLDER, Setting, Store, psql

RIGHT, WRONG = "right", "**wrong**"


@dataclass(frozen=True)
class _Content:
    """Fingerprints of rows: in their order and in any, with all fields and without the timestamp.

    Of fields, since quotes may differ where CSV leaves a choice.
    """

    ordered: int
    unordered: int
    ordered_rest: int
    unordered_rest: int


class Rows:
    """The rows that every object must contain, as Postgres itself writes them.

    :param select: the SELECT of the file's text.
    """

    def __init__(self, setting: Setting, data: Data, select: str) -> None:
        self._path = FOLDER / "expected.csv"
        copy = f"copy ({select}) to stdout (format csv, header)"
        command = [psql(), "--no-psqlrc", "--quiet", "--command", copy]
        with self._path.open("wb") as file:
            subprocess.run(command, stdout=file, check=True, env=setting.environment(setting.store))
        self.bytes = self._path.stat().st_size
        self._data = data
        self._digest = _digest(self._path)
        self._content: _Content | None = None

    def compare(self, store: Store, key: str) -> str:
        """The verdict on the object, or the objects in the folder, at `key`."""
        paths = list(_fetched(store, list(objects(store, key))))
        paths.sort(key=_first_key)
        try:
            verdict = self._verdict(paths) if paths else WRONG
        finally:
            for path in paths:
                path.unlink()
        return f"{verdict}, {len(paths)} files" if len(paths) > 1 else verdict

    def _verdict(self, paths: Sequence[Path]) -> str:
        if len(paths) == 1 and _digest(paths[0]) == self._digest:
            return RIGHT
        expected = self._content = self._content or self._read([self._path])
        found = self._read(paths)
        if found.ordered == expected.ordered:
            return RIGHT
        if found.unordered == expected.unordered:
            return "other order"
        if found.ordered_rest == expected.ordered_rest:
            return "other timestamps"
        return "other timestamps and order" if found.unordered_rest == expected.unordered_rest else WRONG

    def _read(self, paths: Sequence[Path]) -> _Content:
        ordered = unordered = ordered_rest = unordered_rest = 0
        timestamp = self._data.columns.index(self._data.timestamp) if self._data.timestamp else None
        for row in _rows(paths):
            fields = hash(tuple(row))
            ordered, unordered = hash((ordered, fields)), unordered + fields
            if timestamp is not None:
                del row[timestamp]
                fields = hash(tuple(row))
                ordered_rest, unordered_rest = hash((ordered_rest, fields)), unordered_rest + fields
        if timestamp is None:
            return _Content(ordered, unordered, ordered, unordered)
        return _Content(ordered, unordered, ordered_rest, unordered_rest)


def objects(store: Store, key: str) -> dict[str, int]:
    """Bytes of the CSV files at a key, by name: one object, or those in a folder."""
    listed = store.client().list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents", [])
    return {
        found["Key"]: found["Size"]
        for found in listed
        if found["Key"] == key or (found["Key"].startswith(f"{key}/") and found["Key"].endswith(".csv"))
    }


def remove(store: Store, key: str) -> None:
    """Remove everything that a contender wrote."""
    client = store.client()
    for found in client.list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])


def _fetched(store: Store, names: Sequence[str]) -> Iterator[Path]:
    client = store.client()
    for number, name in enumerate(names):
        path = FOLDER / f"object-{number}.csv"
        with path.open("wb") as file:  # in one piece: the store knows no ranges
            for chunk in client.get_object(Bucket=BUCKET, Key=name)["Body"].iter_chunks(1 << 20):
                file.write(chunk)
        yield path


def _first_key(path: Path) -> int:
    """The first value of a file's first column, by which several files are put in order."""
    with path.open(encoding="utf-8", newline="") as file:
        row = next(itertools.islice(csv.reader(file), 1, None), ["0"])
    return int(row[0])


def _rows(paths: Sequence[Path]) -> Iterator[list[str]]:
    """The rows of several files, with the header of the first."""
    for number, path in enumerate(paths):
        with path.open(encoding="utf-8", newline="") as file:
            reader: Any = csv.reader(file)
            if number:
                next(reader, None)
            yield from reader


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
