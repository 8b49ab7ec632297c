"""An export in one call, for tests: the client and all options by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from streaming_export import Bucket, Export, ExportResult, Options, Preview, open_csv
from streaming_export.s3.bucket import PATIENCE_SECONDS


def new_export(
    query: Any,
    *,
    client: Any,
    bucket: str,
    extra_args: dict[str, Any] | None = None,
    patience: float = PATIENCE_SECONDS,
    **arguments: Any,
) -> Export:
    """An export with what `Export` and `Options` take."""
    options = take_options(arguments)
    return Export(query, bucket=Bucket(client, bucket, extra_args, patience), options=options, **arguments)


def export(query: Any, **arguments: Any) -> ExportResult:
    """Export."""
    return new_export(query, **arguments).run()


def preview(query: Any, **arguments: Any) -> Preview:
    """What it would do."""
    return new_export(query, **arguments).preview()


def read(query: Any, parameters: dict[str, Any] | None = None, **arguments: Any) -> bytes:
    """The whole file, without a store."""
    options = take_options(arguments)
    with open_csv(query, parameters, options=options, **arguments) as csv:
        return b"".join(csv)


def take_options(arguments: dict[str, Any]) -> Options:
    """Take those arguments out that are options."""
    names = {option.name for option in dataclasses.fields(Options)} & arguments.keys()
    return Options(**{name: arguments.pop(name) for name in names})
