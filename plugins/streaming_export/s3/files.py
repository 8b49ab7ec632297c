"""Turns the bytes of an export into one file or several, each with its header, compressed or not."""

from __future__ import annotations

import posixpath
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from streaming_export.compression import ENCODINGS
from streaming_export.multipart import StoredObject, Upload

# A row ends at the first line break that is not between quotes; a quote inside quotes is doubled.
_ROW = re.compile(rb'(?:[^"\n]++|"[^"]*+")*+\n')


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of an export.

    :param key: where it is in the bucket.
    :param rows: its data rows, without the header.
    :param bytes: size of the object.
    :param sha256: of the object's content, in hex.
    :param etag: of the object, as the store gives it, without quotes.
    :param parts: number of parts it was uploaded in.
    """

    key: str
    rows: int
    bytes: int
    sha256: str
    etag: str
    parts: int


@dataclass(frozen=True, slots=True)
class Format:
    """What the files of an export look like.

    :param header: the header row, the same in each file.
    :param compression: None, "gzip" or "zstd".
    :param max_rows: data rows of a file; None for no limit.
    :param max_bytes: bytes of CSV of a file, before compression; None for no limit. A single row may be more.
    """

    header: bytes
    compression: str | None = None
    max_rows: int | None = None
    max_bytes: int | None = None

    @property
    def split(self) -> bool:
        """Whether there can be several files; they are numbered then."""
        return self.max_rows is not None or self.max_bytes is not None

    def key(self, key: str, number: int) -> str:
        """The key of file `number` (from 1) of an export to `key`."""
        extension = ENCODINGS[self.compression].extension if self.compression else ""
        if self.split:
            stem, suffix = posixpath.splitext(key)
            key = f"{stem}-{number:05}{suffix}"
        return key if key.endswith(extension) else key + extension


class _File:
    """One file that is being written."""

    def __init__(self, key: str, upload: Upload, compression: str | None) -> None:
        self.key = key
        self.upload = upload
        self.rows = 0
        self.csv_bytes = 0
        self._compressor: Any = ENCODINGS[compression].compressor() if compression else None

    def write(self, data: bytes) -> None:
        self.csv_bytes += len(data)
        self.upload.write(self._compressor.compress(data) if self._compressor else data)

    def end(self) -> None:
        if self._compressor:
            self.upload.write(self._compressor.flush())
            self._compressor = None

    def exported(self, stored: StoredObject) -> ExportedFile:
        return ExportedFile(self.key, self.rows, stored.size, stored.sha256, stored.etag, stored.parts)


class Files:
    """Writes the files of an export; a context manager that aborts what was not completed.

    None of them is visible before `complete`.

    :param open_upload: opens the upload of a key.
    :param key: where the export goes.
    """

    def __init__(self, open_upload: Callable[[str], Upload], key: str, form: Format) -> None:
        self._open_upload = open_upload
        self._key = key
        self._form = form
        self._files: list[_File] = []
        self._partial_row = b""
        self._aborted = False
        self._completing = False

    @property
    def size(self) -> int:
        """Bytes of all files so far."""
        return sum(file.upload.size for file in self._files)

    def __enter__(self) -> Files:
        self._begin()
        return self

    def write(self, data: bytes, rows: int) -> None:
        """Add bytes of rows; `rows` are those that end in them.

        :raises UploadError: see `Upload.write`.
        """
        if self._form.split:
            self._write_split(self._partial_row + data)
        else:
            self._files[-1].rows += rows
            self._files[-1].write(data)

    def raise_error(self) -> None:
        """Raise what sending a part has failed with, if one has."""
        for file in self._files:
            file.upload.raise_error()

    def complete(self) -> list[ExportedFile]:
        """Make all files visible, one after the other; from here on `cancel` does nothing.

        :raises UploadError: see `Upload.complete`.
        :raises VerificationError: see `Upload.complete`.
        """
        last = self._files[-1]
        last.end()
        if last.upload.started:
            last.upload.finish()
        self._completing = True
        exported: list[ExportedFile] = []
        for file in self._files:
            if exported:
                file.upload.state = (
                    f"{len(exported)} of the {len(self._files)} files are visible, their manifest is not: export again"
                )
            exported.append(file.exported(file.upload.complete()))
        return exported

    def cancel(self) -> None:
        """Give up all files, unless they are being completed; safe from any thread."""
        if not self._completing:
            self._abort()

    def _abort(self) -> None:
        self._aborted = True
        for file in list(self._files):
            file.upload.abort()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    def _begin(self) -> None:
        key = self._form.key(self._key, len(self._files) + 1)
        upload = self._open_upload(key).open()
        self._files.append(_File(key, upload, self._form.compression))
        if self._aborted:
            upload.abort()
        self._files[-1].write(self._form.header)

    def _write_split(self, data: bytes) -> None:
        """Write whole rows to the file they fit in; keep the row that has not ended."""
        ends = [match.end() for match in _ROW.finditer(data)]
        start = done = 0
        while done < len(ends):
            file = self._files[-1]
            fitting = self._fitting(file, ends, start) - done
            if fitting <= 0 and file.rows:
                file.end()
                file.upload.finish()
                self._begin()
                continue
            done += max(1, fitting)
            file.rows += max(1, fitting)
            file.write(data[start : ends[done - 1]])
            start = ends[done - 1]
        self._partial_row = data[start:]

    def _fitting(self, file: _File, ends: list[int], start: int) -> int:
        """How many of the rows that end at `ends` are written when the file, from `start` on, is full."""
        done = bisect_right(ends, start)
        fitting = len(ends)
        if self._form.max_rows is not None:
            fitting = min(fitting, done + self._form.max_rows - file.rows)
        if self._form.max_bytes is not None:
            fitting = min(fitting, bisect_right(ends, start + self._form.max_bytes - file.csv_bytes))
        return fitting
