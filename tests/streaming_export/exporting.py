"""An export in one call, for tests: the client and all options by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from streaming_export import Bucket, Export, ExportResult, Options, Preview
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
    names = {option.name for option in dataclasses.fields(Options)} & arguments.keys()
    options = Options(**{name: arguments.pop(name) for name in names})
    return Export(query, bucket=Bucket(client, bucket, extra_args, patience), options=options, **arguments)


def export(query: Any, **arguments: Any) -> ExportResult:
    """Export."""
    return new_export(query, **arguments).run()


def preview(query: Any, **arguments: Any) -> Preview:
    """What it would do."""
    return new_export(query, **arguments).preview()
