"""What stands in the file in place of a value; made by the server, before a byte leaves it.

Functions are named with their schema: one of the same name elsewhere on the search path could fit better, and would get
the values and the key.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from streaming_export.errors import InvalidArgument

#: "hash" writes the HMAC-SHA-256 of the value's text in hex, "redact" writes ***, both leave NULL as it is; "drop"
#: leaves the column out.
Mask = Literal["hash", "redact", "drop"]

REDACTED = "***"

#: Settings of a session that hold the key of "hash", padded for the inner and the outer SHA-256.
KEY_SETTINGS = ("streaming_export.mask_inner", "streaming_export.mask_outer")

#: Bytes that a key has at least (RFC 2104, section 3, advises as many as the hash has, and these for shorter ones).
MIN_KEY_BYTES = 16
_BLOCK_BYTES = 64  # of SHA-256 (FIPS 180-4)

# A spreadsheet takes text that begins so for a formula (OWASP, "CSV Injection").
_FORMULA = "^([-=+@\\t\\r\\n＝＋－＠])"  # noqa: RUF001 - full-width signs are taken for their plain ones

# Types that may hold text of anybody's, by ``typcategory`` (PostgreSQL manual, "pg_type"): strings, enums, user-defined
# ones, those of literals and of the server itself; but for some whose text begins otherwise, or is no cell of text.
_CATEGORIES_OF_TEXT = set("SEUXZ")
_TYPES_WITHOUT_TEXT = {"uuid", "bytea", "json", "jsonb"}


def as_text(value: str) -> str:
    """SQL of a value's text as COPY writes it, which a cast does not always give (``char(n)``, ``inet``)."""
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.concat({value}) END"


def masked(value: str, mask: Mask) -> str:
    """SQL of what stands in the place of a value that is not dropped."""
    if mask == "redact":
        return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN '{REDACTED}' END"
    inner, outer = (_pad(name) for name in KEY_SETTINGS)
    text = f"pg_catalog.convert_to({as_text(value)}, 'UTF8')"
    return f"pg_catalog.encode(pg_catalog.sha256({outer} || pg_catalog.sha256({inner} || {text})), 'hex')"


def _pad(setting: str) -> str:
    """SQL of one half of the key; in a subquery, so that the server decodes it once a statement, not once a row."""
    return f"(SELECT pg_catalog.decode(pg_catalog.current_setting('{setting}'), 'hex'))"


def key_settings(key: str | None) -> dict[str, str]:
    """The settings that a session needs for "hash": the key as HMAC pads it (RFC 2104, section 2), in hex.

    They go to the session when it is opened, and so stand in no statement and no log.

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
    """Whether values of a type can begin as a formula does.

    :param category: ``typcategory`` of the type.
    """
    return category in _CATEGORIES_OF_TEXT and type_name not in _TYPES_WITHOUT_TEXT


def spreadsheet_safe(value: str) -> str:
    """SQL of a value's text, with ' before what a spreadsheet would take for a formula."""
    return f"pg_catalog.regexp_replace({as_text(value)}, E'{_FORMULA}', E'''\\\\1')"
