"""How to export: the options, which are the same for every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from streaming_export.errors import InvalidArgument
from streaming_export.postgres.masks import Mask, key_settings
from streaming_export.s3.layout import Compression

Method = Literal["copy", "rows"]
OnEmpty = Literal["header", "skip", "fail"]

#: Rows per batch, by method: "rows" holds a batch in memory as Python objects, "copy" does not.
DEFAULT_YIELD_PER: dict[str, int] = {"copy": 50_000, "rows": 5_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to export; the same for every run.

    :param method: "copy", or "rows" where COPY is not available; the bytes are the same.
    :param yield_per: rows per batch; None: 50,000 for "copy", and 5,000 for "rows", which holds a batch in memory; or
        fewer, if the planner expects more than 4 MiB of them.
    :param readers: connections that read at the same time, each a key range of `yield_per` rows; used by "copy" with a
        unique key. None: 2, or 3 if the database takes more than 15 ms to answer. With 1, the query is read as one
        ordered stream, and no value of a row appears in SQL.
    :param on_empty: if the query returns no rows: "header" writes just the header, "skip" writes nothing and leaves
        what was there, "fail" raises.
    :param verify_rows: have the database count the rows of a stream in the same snapshot, and compare. Rows of key
        ranges are always counted.
    :param columns: the columns of the file, in order; None: all columns of the query.
    :param mask: column name → "hash" (the HMAC-SHA-256 of the value in hex), "redact" (``***``) or "drop" (the column
        is left out). NULL stays NULL. The database server masks, so the original values never leave it.
    :param spreadsheet_safe: put ``'`` before text that a spreadsheet would take for a formula; changes the data.
    :param compression: None, "gzip" or "zstd"; adds ``.gz`` or ``.zst`` to the key.
    :param max_file_rows: maximum data rows of a file; the files are then ``…-00001.csv``, ``…-00002.csv``, …
    :param max_file_bytes: maximum CSV bytes of a file, before compression; likewise.
    :param overwrite: False: raise `AlreadyExists` if the object exists, even if another export writes it meanwhile, or
        if its manifest does. A store without conditional writes is only checked before.
    :param wait_for_transactions: maximum seconds to wait, before the snapshot is taken, for transactions that began
        before the end of the window; None does not wait.
    :raises InvalidArgument: naming the option, its value and what is allowed.
    """

    method: Method = "copy"
    yield_per: int | None = None
    readers: int | None = None
    on_empty: OnEmpty = "header"
    verify_rows: bool = True
    columns: Sequence[str] | None = None
    mask: Mapping[str, Mask] = field(default_factory=dict)
    spreadsheet_safe: bool = False
    compression: Compression | None = None
    max_file_rows: int | None = None
    max_file_bytes: int | None = None
    overwrite: bool = True
    wait_for_transactions: int | None = None

    def __post_init__(self) -> None:
        choices: list[tuple[str, tuple[Any, ...]]] = [
            ("method", get_args(Method)),
            ("on_empty", get_args(OnEmpty)),
            ("compression", (None, *get_args(Compression))),
            ("verify_rows", (True, False)),
            ("overwrite", (True, False)),
        ]
        for name, allowed in choices:
            if (value := getattr(self, name)) not in allowed:
                raise InvalidArgument(name, value, f"one of {', '.join(map(str, allowed))}")
        optional = {"yield_per": 10**7, "readers": 16, "max_file_rows": 10**12, "max_file_bytes": 5 * 2**40}
        for name, most in {**optional, "wait_for_transactions": 7 * 86_400}.items():
            if (value := getattr(self, name)) is not None:
                check_whole_number(name, value, 0 if name == "wait_for_transactions" else 1, most)
        self._check_columns()

    def mask_settings(self, mask_key: str | None) -> dict[str, str]:
        """The settings that a session needs for the masks, by name.

        :param mask_key: key of the mask "hash".
        :raises InvalidArgument: if it is needed, and missing or short; the error does not contain it.
        """
        return key_settings(mask_key) if "hash" in self.mask.values() else {}

    def _check_columns(self) -> None:
        if (names := self.columns) is not None:
            if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
                raise InvalidArgument("columns", names, "a list of names, or None for all columns")
            if twice := repeated(names):
                raise InvalidArgument("columns", list(names), f"each name once, not {twice} twice")
        if not isinstance(self.mask, Mapping) or not all(mask in get_args(Mask) for mask in self.mask.values()):
            raise InvalidArgument("mask", self.mask, f"a mapping of columns to one of {', '.join(get_args(Mask))}")
        if not isinstance(self.spreadsheet_safe, bool):
            raise InvalidArgument("spreadsheet_safe", self.spreadsheet_safe, "true or false")


def check_whole_number(argument: str, value: object, least: int, most: int) -> None:
    """Refuse a value that is not a whole number from `least` to `most`.

    :raises InvalidArgument: naming the argument, its value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgument(argument, value, f"a whole number from {least} to {most:,}")


def check_window(window: Any) -> None:
    """Refuse a window that is not a list or tuple of begin and end.

    :raises InvalidArgument: naming the argument.
    """
    try:
        if not isinstance(window, list | tuple):
            raise TypeError
        begin, end = (datetime.fromisoformat(text) for text in window)
        if begin.utcoffset() is None or end.utcoffset() is None or begin >= end:
            raise ValueError
    except (TypeError, ValueError):
        allowed = "two times in ISO 8601 with an offset, the first before the second"
        raise InvalidArgument("window", window, allowed) from None


def repeated(names: Sequence[str]) -> list[str]:
    """The names that are there more than once."""
    return sorted({name for name in names if names.count(name) > 1})
