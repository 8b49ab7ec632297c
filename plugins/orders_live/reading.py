"""`orders.csv`: the table as it is now."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import ParamValidationError
from isal import isal_zlib

from exports_page.download import headers
from orders.models import TABLE, UNIQUE_KEY, select_orders_by
from orders.runs import DEFAULTS, FORM, FieldRefused, check_form
from postgres_to_s3.connections import postgres_engine
from streaming_export import CsvStream, open_csv

#: The connection of the orders database.
DATABASE = "orders_db"

#: The parameters of the route, and the corresponding fields of the trigger form.
FIELDS = {"created_from": "created_from", "created_to": "created_to", "status": "statuses"}

_GZIP = 31  # zlib's window bits: the largest window, in a gzip container
_FIRST_SECONDS = 0.05  # after which the compressor is flushed, if nothing was sent yet


def checked(given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The parameters of the query, checked like the fields of the trigger form of `orders_export`.

    :param given: names and values of the URL; `status` may be there several times.
    :raises FieldRefused: naming the parameter of the URL.
    """
    form: dict[str, Any] = dict(DEFAULTS)
    for name, value in given:
        if name not in FIELDS:
            raise FieldRefused(name, f"{name} is not a parameter. The parameters are {', '.join(FIELDS)}.")
        if not value:
            continue
        if name == "status":
            form["statuses"] = [*(form["statuses"] or ()), value]
        elif form[name] is not None:
            raise FieldRefused(name, f"{name} may be given once.")
        else:
            form[name] = value
    try:
        check_form(form, {})
    except FieldRefused as exc:
        name = next(name for name, field in FIELDS.items() if field == exc.field)
        raise FieldRefused(name, exc.cause.replace(exc.field, name, 1)) from None
    for name, field in FIELDS.items():
        try:
            # A copy, because resolve() stores the value in the Param.
            copy.copy(FORM[field]).resolve(form[field])
        except ParamValidationError:
            raise FieldRefused(name, f"{name} is not allowed: write 2026-11-01T00:00:00+00:00.") from None
    return {field: form[field] for field in FIELDS.values()}


class LiveOrders:
    """The CSV of the orders table, verified at its end; see `download.Reading`.

    :param parameters: of the query.
    :param gzip: whether to compress it.
    :raises AirflowNotFoundException: if the connection is missing.
    """

    def __init__(self, parameters: Mapping[str, Any], gzip: bool) -> None:
        BaseHook.get_connection(DATABASE)
        self._csv: CsvStream = open_csv(
            select_orders_by(),
            parameters,
            engine=postgres_engine(DATABASE),
            unique_key=UNIQUE_KEY,
            application_name="airflow exports page, orders.csv",
        )
        self._gzip = gzip

    def open(self) -> tuple[int, dict[str, str]]:
        """Take the snapshot."""
        self._csv.__enter__()
        self._chunks = self._compressed() if self._gzip else iter(self._csv)
        name = f"{TABLE.name}-{self._csv.snapshot.info.taken_at:%Y%m%d}.csv"
        return 200, headers(name, "text/csv; charset=utf-8") | {
            "Content-Encoding": "gzip" if self._gzip else "identity"
        }

    def read(self) -> bytes:
        """The next bytes."""
        return next(self._chunks, b"")

    def cancel(self) -> None:
        """Have the server cancel the queries."""
        self._csv.cancel()

    def close(self) -> None:
        """Close the connections."""
        self._csv.__exit__(None, None, None)

    def _compressed(self) -> Iterator[bytes]:
        # ISA-L takes an eighth of the time of Airflow's middleware, which skips a response with Content-Encoding.
        compressor, begun = isal_zlib.compressobj(1, wbits=_GZIP), time.monotonic()
        for chunk in self._csv:
            data = compressor.compress(chunk)
            if not data and begun and time.monotonic() - begun > _FIRST_SECONDS:
                data = compressor.flush(isal_zlib.Z_SYNC_FLUSH)
            if data:
                begun = 0.0
                yield data
        yield compressor.flush()
