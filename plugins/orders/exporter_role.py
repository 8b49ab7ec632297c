"""Prints exporter_role.sql for the table of models.py, if that is not the one in the file.

PYTHONPATH=plugins python -m orders.exporter_role | psql --single-transaction shop
"""

from __future__ import annotations

import sys
from pathlib import Path

from sqlalchemy.dialects import postgresql

from orders.models import TABLE

_SCHEMA, _TABLE = "GRANT USAGE ON SCHEMA public TO", "GRANT SELECT ON public.orders TO"


def script() -> str:
    """The SQL that creates the role `orders_exporter`, or grants what it lacks."""
    quoting = postgresql.dialect().identifier_preparer
    schema, table = quoting.quote(TABLE.schema or "public"), quoting.quote(TABLE.name)
    sql = Path(__file__).with_name("exporter_role.sql").read_text(encoding="utf-8")
    assert _SCHEMA in sql
    assert _TABLE in sql
    sql = sql.replace(_SCHEMA, f"GRANT USAGE ON SCHEMA {schema} TO")
    return sql.replace(_TABLE, f"GRANT SELECT ON {schema}.{table} TO")


if __name__ == "__main__":
    sys.stdout.write(script())
