"""The layout of an export's files: names, HTTP headers and compression."""

from __future__ import annotations

import posixpath
import urllib.parse
from dataclasses import dataclass
from typing import Any, Literal

import zstandard
from isal import isal_zlib

from streaming_export.errors import InvalidArgument

Compression = Literal["gzip", "zstd"]

#: By how many bytes the key of a file may be longer than the export's key.
LONGEST_SUFFIX = len("-00001.zst")

_GZIP_FORMAT = 31  # zlib manual, deflateInit2: a window of 32 KiB (15), with gzip's header (16)

_EXTENSIONS = {"gzip": ".gz", "zstd": ".zst"}


def split_key(key: str) -> tuple[str, str]:
    """A key up to its extension, and the extension, to which that of a compression belongs: ``.csv.gz``."""
    compression = next((extension for extension in _EXTENSIONS.values() if key.endswith(extension)), "")
    stem, extension = posixpath.splitext(key.removesuffix(compression))
    return stem, extension + compression


@dataclass(frozen=True, slots=True)
class FileLayout:
    """The layout of an export's files.

    :param compression: of the files.
    :param max_rows: maximum data rows of a file; None for no limit.
    :param max_bytes: maximum CSV bytes of a file, before compression; None for no limit. A single row may be larger.
    """

    compression: Compression | None = None
    max_rows: int | None = None
    max_bytes: int | None = None

    @property
    def split(self) -> bool:
        """Whether there can be several files, which are then numbered."""
        return self.max_rows is not None or self.max_bytes is not None

    def key(self, key: str, number: int) -> str:
        """The key of file `number` (from 1) of an export to `key`.

        :raises InvalidArgument: if its extension promises a compression that the file does not have.
        """
        for name, extension in _EXTENSIONS.items():
            if key.endswith(extension) and name != self.compression:
                stored = f"{self.compression or 'plain CSV'} under {extension}"
                raise InvalidArgument("key", key, f'it would hold {stored}; pass compression="{name}" or another key')
        key = key.removesuffix(self._extension) + self._extension
        if not self.split:
            return key
        stem, extension = split_key(key)
        return f"{stem}-{number:05}{extension}"

    def headers(self, key: str) -> dict[str, str]:
        """Headers that make a browser save the file under its name, decompressed (RFC 6266, RFC 9110 8.4)."""
        name = key.rsplit("/", 1)[-1].removesuffix(self._extension)
        quoted = urllib.parse.quote(name, safe="")
        form = f'filename="{name}"' if name == quoted else f"filename*=UTF-8''{quoted}"
        headers = {"ContentType": "text/csv", "ContentDisposition": f"attachment; {form}"}
        if self.compression:
            headers["ContentEncoding"] = self.compression  # the same names (IANA, HTTP Content Coding Registry)
        return headers

    def compressor(self) -> Any:
        """A compressor for one file, with ``compress(data)`` and ``flush()``; None for no compression."""
        # Both at level 1, which keeps up with several readers. Higher levels of ISA-L are slower and compress hardly
        # better; for rows of a table, zstd at level 3 takes twice as long and compresses no better.
        if self.compression == "gzip":
            return isal_zlib.compressobj(1, wbits=_GZIP_FORMAT)
        if self.compression == "zstd":
            return zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj()
        return None

    @property
    def _extension(self) -> str:
        return _EXTENSIONS[self.compression] if self.compression else ""
