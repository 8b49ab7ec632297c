"""The tables that are exported, each with its query."""

from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from benchmarks.setting import Setting
from demo import services

_ORDERS = ("id", "customer_email", "total_cents", "status", "created_at")
_TEXTS = 16  # columns of a wide row
_TEXT_CHARACTERS = 122  # of each, so that a row has 2 KB and is just short of what PostgreSQL would compress (TOAST)


@dataclass(frozen=True)
class Data:
    """A table and its rows.

    :param name: for the command line.
    :param title: for tables, after the number of rows.
    :param table: its name in the database.
    :param columns: in the file's order; the first is the unique key.
    :param timestamp: the column that is one, if any.
    :param load: makes the table with so many rows.
    """

    name: str
    title: str
    table: str
    columns: tuple[str, ...]
    timestamp: str | None
    load: Callable[[Setting, int], None]

    @property
    def query(self) -> str:
        """The query as a user writes it; the contender makes the text of the values."""
        return f"select {', '.join(self.columns)} from {self.table}"


def _load_orders(setting: Setting, rows: int) -> None:
    services.load_orders(setting.uri, rows)
    services.make_exporter(setting.uri)


def _load_orders_with(table: str, microseconds: str) -> Callable[[Setting, int], None]:
    """Orders whose timestamps have the fraction of a second that an expression gives in microseconds."""
    seconds = f"date_trunc('second', created_at) + ({microseconds}) * interval '1 microsecond'"

    def load(setting: Setting, rows: int) -> None:
        _load_orders(setting, rows)
        select = f"select id, customer_email, total_cents, status, {seconds} as created_at from orders"
        create(setting, table, select)

    return load


def _load_wide(setting: Setting, rows: int) -> None:
    """Texts of hexadecimal digits, cut from one long random string: all rows differ, and it is fast."""
    texts = ", ".join(
        f"encode(substr(pool, 1 + (n * {7919 + 2 * number} % 99000)::int, {_TEXT_CHARACTERS // 2}), 'hex')"
        f" as text_{number}"
        for number in range(1, _TEXTS + 1)
    )
    pool = "select string_agg(sha256(i::text::bytea), '' order by i) as pool from generate_series(1, 3200) as i"
    create(setting, "wide_rows", f"select n as id, {texts} from ({pool}) as p, generate_series(1::bigint, {rows}) as n")


def create(setting: Setting, table: str, select: str) -> None:
    """Create a table from a SELECT, with the key `id`, for the exporter to read."""
    with psycopg.connect(setting.uri, autocommit=True) as connection:
        connection.execute(f"drop table if exists {table}")
        connection.execute(f"create table {table} as {select}")
        connection.execute(f"alter table {table} add primary key (id)")
        connection.execute(f"grant select on {table} to {services.EXPORTER}")
        connection.execute(f"vacuum analyze {table}")


def drop(setting: Setting, data: Data) -> None:
    """Free disk space, but keep the orders, from which other tables are made."""
    if data.table != "orders":
        with psycopg.connect(setting.uri, autocommit=True) as connection:
            connection.execute(f"drop table {data.table}")


ORDERS = Data("orders", "orders", "orders", _ORDERS, "created_at", _load_orders)
MICROS = Data(
    "micros",
    "orders, timestamps of all microseconds",
    "orders_micros",
    _ORDERS,
    "created_at",
    _load_orders_with("orders_micros", "id * 7919 % 99999 * 10 + 1 + id % 9"),
)
ZEROS = Data(
    "zeros",
    "orders, timestamps of whole milliseconds",
    "orders_zeros",
    _ORDERS,
    "created_at",
    _load_orders_with("orders_zeros", "(1 + id * 7919 % 999) * 1000"),
)
WIDE = Data(
    "wide",
    "rows of 2 KB",
    "wide_rows",
    ("id", *(f"text_{number}" for number in range(1, _TEXTS + 1))),
    None,
    _load_wide,
)
DATA = [ORDERS, MICROS, ZEROS, WIDE]
