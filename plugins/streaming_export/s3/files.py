"""Turns the bytes of an export into one file or several, each with its header row, compressed or not."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import partial
from typing import Any

from streaming_export.errors import StoreError
from streaming_export.s3.bucket import Bucket
from streaming_export.s3.layout import FileLayout
from streaming_export.s3.objects import ExportedFile
from streaming_export.s3.parts import part_bytes_for
from streaming_export.s3.upload import Upload

# A row ends at the first line break that is not between quotes; a quote inside quotes is doubled.
_ROW = re.compile(rb'(?:[^"\n]++|"[^"]*+")*+\n')


def row_ends(data: bytes) -> list[int]:
    """The ends of the complete rows in `data`, which starts at the start of a row."""
    ends, start = [], 0
    # Not finditer(): in an incomplete row, it would look for a row at each byte.
    while match := _ROW.match(data, start):
        start = match.end()
        ends.append(start)
    return ends


class _File:
    """A file that is being written."""

    def __init__(self, upload: Upload, compressor: Any) -> None:
        self.upload = upload
        self.rows = 0
        self.csv_bytes = 0
        self._compressor = compressor

    def write(self, data: bytes) -> None:
        self.csv_bytes += len(data)
        self.upload.write(self._compressor.compress(data) if self._compressor else data)

    def end(self) -> None:
        if self._compressor:
            self.upload.write(self._compressor.flush())
            self._compressor = None


class FileWriter:
    """Writes the files of an export; a context manager that aborts what was not completed.

    No file is visible before `complete`. Only one thread may use it; it gets `Stopped` once the bucket's `stop` is set.

    :param key: key of the export.
    :param header: the header row, the same in each file.
    :param export_id: id of the export, for the metadata of each object.
    :param estimated_bytes: of all files, before compression; decides the size of parts.
    :param overwrite: False: do not replace an existing object.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        layout: FileLayout,
        header: bytes,
        *,
        export_id: str,
        estimated_bytes: int = 0,
        overwrite: bool = True,
    ) -> None:
        part_bytes = part_bytes_for(min(estimated_bytes, layout.max_bytes or estimated_bytes))
        self._upload = partial(Upload, bucket, export_id=export_id, part_bytes=part_bytes, overwrite=overwrite)
        self._key = key
        self._layout = layout
        self._header = header
        self._files: list[_File] = []
        self._partial_row = b""
        #: Number of files that are visible.
        self.visible = 0

    @property
    def opened(self) -> int:
        """Number of files so far."""
        return len(self._files)

    @property
    def size(self) -> int:
        """Bytes of all files so far."""
        return sum(file.upload.size for file in self._files)

    def __enter__(self) -> FileWriter:
        self._begin()
        return self

    def open(self) -> None:
        """Look at what is there; another thread may do it, while the first file is written. Nothing is sent before.

        :raises StoreError: see `Upload.open`.
        :raises AlreadyExists: see `Upload.open`.
        """
        self._files[0].upload.open()

    def write(self, data: bytes, rows: int) -> None:
        """Add bytes of rows.

        :param rows: number of rows that end in them.
        :raises StoreError, Stopped: see `Upload.write`.
        """
        if self._layout.split:
            self._write_split(self._partial_row + data if self._partial_row else data)
        else:
            self._files[-1].rows += rows
            self._files[-1].write(data)

    def complete(self) -> list[ExportedFile]:
        """Make all files visible, one after the other.

        :raises StoreError, Superseded, AlreadyExists, VerificationError, Stopped: see `Upload.complete`; `visible` says
            how many files are visible by then.
        """
        last = self._files[-1]
        last.end()
        if last.upload.started:
            last.upload.finish()
        exported: list[ExportedFile] = []
        try:
            for file in self._files:
                if self.visible:
                    file.upload.commit()
                exported.append(file.upload.complete(file.rows))
                self.visible += 1
        except StoreError as exc:
            # Another export has aborted this one's upload after the first files became visible. It may fail itself;
            # then only a retry publishes a matching set of files and manifest.
            if self.visible and exc.code == "NoSuchUpload":
                exc.transient = True
            raise
        return exported

    def __exit__(self, _: object, exc: BaseException | None, trace: object) -> None:
        answering = True
        for file in self._files:
            # If the store does not answer, do not wait for it again for each further file.
            answering = file.upload.abort(exc, answering=answering)

    def _begin(self) -> None:
        key = self._layout.key(self._key, self.opened + 1)
        upload = self._upload(key, headers=self._layout.headers(key))
        if self._files:
            upload.open()
        self._files.append(_File(upload, self._layout.compressor()))
        self._files[-1].write(self._header)

    def _write_split(self, data: bytes) -> None:
        """Write complete rows to the file that has room for them; keep the incomplete row."""
        ends = row_ends(data)
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
        """How many of the rows that end at `ends` are written once the file, which continues at `start`, is full."""
        done = bisect_right(ends, start)
        fitting = len(ends)
        if self._layout.max_rows is not None:
            fitting = min(fitting, done + self._layout.max_rows - file.rows)
        if self._layout.max_bytes is not None:
            fitting = min(fitting, bisect_right(ends, start + self._layout.max_bytes - file.csv_bytes))
        return fitting
