"""The ways in which a file can be compressed while it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import zstandard
from isal import isal_zlib

Compression = Literal["gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a compressed file is named, and made.

    :param extension: what is added to the key.
    :param content_encoding: its ``Content-Encoding`` (IANA, HTTP Content Coding Registry).
    :param compressor: makes an object with ``compress(data)`` and ``flush()``.
    """

    extension: str
    content_encoding: str
    compressor: Callable[[], Any]


_GZIP_FORMAT = 31  # zlib manual, deflateInit2: a window of 32 KiB (15), with gzip's header (16)

#: Both at level 1, which keeps up with several readers. Higher levels of ISA-L are slower and hardly
#: smaller; zstd at 3 takes twice the time for rows of a table without getting smaller.
ENCODINGS: dict[str, Encoding] = {
    "gzip": Encoding(".gz", "gzip", lambda: isal_zlib.compressobj(1, wbits=_GZIP_FORMAT)),
    "zstd": Encoding(".zst", "zstd", lambda: zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj()),
}
