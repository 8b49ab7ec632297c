"""Hands values to the SQL of a session without writing them into its text.

What stands in a statement is seen by others, in ``pg_stat_activity`` and in the server's log, and so are bound
parameters (PostgreSQL manual, "What to Log", log_parameter_max_length). A private value becomes a setting of the
session, which no other session can read, by the protocol's function call, of which the server logs the function's
name alone (PostgreSQL manual, "Frontend/Backend Protocol", "Function Call").
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any

import psycopg2
import sqlalchemy as sa

from streaming_export.errors import QueryError

_PREFIX = "streaming_export."
_DATE = re.compile(r"\d{4}-\d\d-\d\d")

# The libpq that psycopg2 itself uses, whether it was linked to it or brings it along: its connections are of that one.
_libpq = ctypes.CDLL(psycopg2._psycopg.__file__)
_COMMAND_OK = 1  # ExecStatusType, libpq-fe.h


class _Argument(ctypes.Structure):
    """PQArgBlock (libpq-fe.h) of an argument that is text."""

    _fields_ = (("len", ctypes.c_int), ("isint", ctypes.c_int), ("text", ctypes.c_char_p))


_libpq.PQfn.argtypes = [
    *(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    *(ctypes.POINTER(_Argument), ctypes.c_int),
]
_libpq.PQfn.restype = ctypes.c_void_p
_libpq.PQresultStatus.argtypes = _libpq.PQclear.argtypes = [ctypes.c_void_p]
_libpq.PQclear.restype = None
_libpq.PQresultErrorField.argtypes = [ctypes.c_void_p, ctypes.c_int]
_libpq.PQresultErrorField.restype = ctypes.c_char_p
_SQLSTATE = ord("C")  # PG_DIAG_SQLSTATE, postgres_ext.h


def impersonal(value: object) -> bool:
    """Whether a value is of nobody's person and may be seen: a date, a time, a boolean, or nothing."""
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return False
        return _DATE.match(value) is not None  # not eight digits, which may be anything
    return value is None or isinstance(value, bool | date | datetime | time)


def private(name: str, type_name: str) -> str:
    """SQL that gives a private value; the server reads it once a statement, not once a row.

    :param type_name: the value's type, as it may stand in a cast.
    """
    value = f"pg_catalog.current_setting('{_PREFIX}{name}')::{type_name}"
    # With a cast it can't be taken for a subquery, as in ANY(…); in parentheses it stands even where no cast may.
    return f"((SELECT {value})::{type_name})"


def private_list(name: str, type_name: str) -> str:
    """SQL that gives a private value which is an array.

    :param type_name: the type of its elements.
    """
    return private(name, f"{type_name}[]")


def set_private(connection: sa.Connection, values: Mapping[str, str]) -> None:
    """Give a session its private values by name; they stay until its transaction is rolled back.

    :param connection: used by nobody else meanwhile.
    :raises QueryError: if the server refuses a value.
    :raises psycopg2.OperationalError: if the connection is lost.
    """
    for name, value in values.items():
        _call_set_config(connection.connection.driver_connection, f"{_PREFIX}{name}", value)


def _call_set_config(connection: Any, name: str, value: str) -> None:
    texts = [name.encode(), value.encode(), b"\0"]  # the last is a boolean: not just for the transaction
    arguments = (_Argument * 3)(*[_Argument(len(text), 0, text) for text in texts])
    # The function returns the value that it has set, and libpq writes that here unchecked. A server may encode some
    # characters otherwise and give back others, none of them longer than four bytes.
    returned, size = ctypes.create_string_buffer(4 * len(texts[1]) + 1), ctypes.c_int()
    result = _libpq.PQfn(connection.pgconn_ptr, _SET_CONFIG_OID, returned, ctypes.byref(size), 0, arguments, 3)
    done = _libpq.PQresultStatus(result) == _COMMAND_OK
    sqlstate = None if done else _libpq.PQresultErrorField(result, _SQLSTATE)
    _libpq.PQclear(result)
    if sqlstate:
        raise QueryError(
            f"Postgres refuses a value of a parameter, of the unique key or of the mask's key (SQLSTATE"
            f" {sqlstate.decode()}); perhaps the database's encoding lacks a character of it. Nothing was published."
            " Correct the value, and export again.",
            sqlstate.decode(),
        )
    if not done:
        raise psycopg2.OperationalError("the connection was lost while a value was handed over")


_SET_CONFIG_OID = 2078  # pg_proc.dat: OIDs of built-in functions never change
