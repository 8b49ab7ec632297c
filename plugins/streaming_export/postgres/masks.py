"""Masks: SQL that replaces a value, so that the original never leaves the database server.

Functions are qualified with their schema: otherwise a function of the same name in another schema on the search path
could match better, and would get the values and the key.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from streaming_export.errors import InvalidArgument

#: "hash" writes the HMAC-SHA-256 of the value's text in hex, "redact" writes ***; both keep NULL. "drop" leaves the
#: column out.
Mask = Literal["hash", "redact", "drop"]

REDACTED = "***"

#: Session settings that hold the key of "hash", padded for the inner and the outer SHA-256.
KEY_SETTINGS = ("streaming_export.mask_inner", "streaming_export.mask_outer")

#: Minimum length of a key in bytes. (RFC 2104, section 3, recommends the length of the hash, 32.)
MIN_KEY_BYTES = 16
_BLOCK_BYTES = 64  # of SHA-256 (FIPS 180-4)

# Spreadsheets take text that begins so for a formula (OWASP, "CSV Injection").
_FORMULA = "^([-=+@\\t\\r\\n＝＋－＠])"  # noqa: RUF001 - full-width signs count as the plain ones

# Types whose values may be any text, by ``typcategory`` (PostgreSQL manual, "pg_type"): strings, enums, user-defined
# types, unknown, internal types; except some whose text never looks like a formula.
_CATEGORIES_OF_TEXT = set("SEUXZ")
_TYPES_WITHOUT_TEXT = {"uuid", "bytea", "json", "jsonb"}


def as_text(value: str) -> str:
    """SQL of a value's text as COPY writes it; a cast to text sometimes differs (``char(n)``, ``inet``)."""
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.concat({value}) END"


def masked(value: str, mask: Mask) -> str:
    """SQL of a masked value; not for "drop"."""
    if mask == "redact":
        return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN '{REDACTED}' END"
    inner, outer = (_pad(name) for name in KEY_SETTINGS)
    text = f"pg_catalog.convert_to({as_text(value)}, 'UTF8')"
    return f"pg_catalog.encode(pg_catalog.sha256({outer} || pg_catalog.sha256({inner} || {text})), 'hex')"


def _pad(setting: str) -> str:
    """SQL of one padded key; in a subquery, so that the server decodes it once per statement, not once per row."""
    return f"(SELECT pg_catalog.decode(pg_catalog.current_setting('{setting}'), 'hex'))"


def key_settings(key: str | None) -> dict[str, str]:
    """The settings that a session needs for "hash": the key as HMAC pads it (RFC 2104, section 2), in hex.

    They are set when the session is opened, and so appear in no statement and no log.

    :raises InvalidArgument: if there is no key, or it is short.
    """
    encoded = (key or "").encode(errors="surrogatepass")
    if len(encoded) < MIN_KEY_BYTES:
        given = f"{len(encoded)} bytes" if key else None
        raise InvalidArgument("mask_key", given, f"at least {MIN_KEY_BYTES} bytes, for the mask 'hash'")
    if len(encoded) > _BLOCK_BYTES:
        encoded = hashlib.sha256(encoded).digest()
    padded = encoded.ljust(_BLOCK_BYTES, b"\0")
    pads = zip(KEY_SETTINGS, (0x36, 0x5C), strict=True)
    return {name: bytes(byte ^ pad for byte in padded).hex() for name, pad in pads}


def holds_text(type_name: str, category: str) -> bool:
    """Whether values of a type can look like a formula.

    :param category: ``typcategory`` of the type.
    """
    return category in _CATEGORIES_OF_TEXT and type_name not in _TYPES_WITHOUT_TEXT


def spreadsheet_safe(value: str) -> str:
    """SQL of a value's text, with a leading ' if a spreadsheet would take it for a formula."""
    return f"pg_catalog.regexp_replace({as_text(value)}, E'{_FORMULA}', E'''\\\\1')"
